"""``slowjobs lease``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slowjobs.cli import common
from slowjobs.operations import lease

if TYPE_CHECKING:
    from datetime import timedelta


@click.command("lease", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--holder", help="Take the lease in this name.")
@click.option("--renew", is_flag=True, help="Hold on to it instead: HOLDER took it, and nobody else has had it since.")
@click.option(
    "--for", "period", type=common.DURATION, default="120s", show_default=True, help="How long it then holds."
)
@click.option("--drop", is_flag=True, help="Give it up instead, if HOLDER has it.")
@click.option(
    "--file", "path", type=click.Path(path_type=Path), default="/run/slowjobs.lease", show_default=True, hidden=True
)
@click.argument("command", metavar="[COMMAND]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def lease_command(
    context: click.Context,
    path: Path,
    holder: str | None,
    period: timedelta,
    command: tuple[str, ...],
    *,
    renew: bool,
    drop: bool,
) -> None:
    """Say whether a playbook is under way that no other may cross, or be that playbook. Exit 4 if another one has it.

    COMMAND is one of slowjobs' own; it runs once the lease is taken or renewed, or not at all.

    \b
    Examples:
      slowjobs lease
      slowjobs lease --holder "migrate-nsq-host by anna"
      slowjobs lease --holder "migrate-nsq-host by anna" --renew gate empty svc506
      slowjobs lease --holder "migrate-nsq-host by anna" --drop
    """
    try:
        if holder and drop:
            lease.drop(path, holder)
        elif holder and renew:
            lease.renew(path, holder, period.total_seconds())
        elif holder:
            lease.take(path, holder, period.total_seconds())
        elif drop or renew:
            common.fail("--drop and --renew need --holder, the name in which it was taken", common.EXIT_USAGE)
        else:
            lease.look(path)
    except lease.HeldError as error:
        common.fail(f"under way: {error}", common.EXIT_REFUSED)
    except lease.LostError as error:
        remedy = "Run the playbook again, which goes on from where things are."
        common.fail(f"the lease of {holder} was lost: it is {error}. {remedy}", common.EXIT_REFUSED)
    if command:
        context.find_root().command.main(args=list(command), prog_name="slowjobs")
