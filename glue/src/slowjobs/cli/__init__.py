"""The command line: a module for each group of subcommands."""

from __future__ import annotations

import click

from slowjobs import log
from slowjobs.cli import dead, empty, enqueue, find, gate, lease, pause, reenqueue, services, site, try_


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slowjobs")
def main() -> None:
    """Run slow jobs from Kafka through NSQ.

    Exit statuses: 0 done, 1 failed, 2 usage or configuration, 3 a deadline passed, 4 refused as unsafe, 5 another
    instance has taken over.
    """
    log.configure()


for _command in (
    services.bridge_command,
    services.persister_command,
    services.intake_command,
    services.worker_command,
    site.setup_command,
    site.check_command,
    site.status_command,
    enqueue.enqueue_command,
    reenqueue.reenqueue_command,
    try_.try_command,
    find.find_command,
    dead.dead_group,
    pause.pause_command,
    pause.unpause_command,
    pause.wait_idle_command,
    empty.empty_command,
    gate.gate_group,
    lease.lease_command,
):
    main.add_command(_command)
