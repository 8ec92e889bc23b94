"""``slowjobs setup | check | status``: the site as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import NoReturn

import click
import rich.console
import rich.live
import rich.text

from slowjobs import documents, kafka, settings
from slowjobs.cli import common
from slowjobs.operations import check, setup
from slowjobs.operations import status as status_


@click.command("setup")
@click.option("--check", "only_check", is_flag=True, help="Make nothing; exit 1 if anything is missing.")
@common.json_option
@common.site_option
def setup_command(path: Path, *, only_check: bool, as_json: bool) -> None:
    """Make what is missing: Kafka topics, NSQ topics and channels, tables.

    \b
    Examples:
      slowjobs setup --check    what is missing?
      slowjobs setup            make it
    """
    config, secrets = common.load(path, settings.CliSettings)
    items, failures = asyncio.run(setup.setup(config, secrets, only_check=only_check))
    if as_json:
        document = {"items": [item.as_json() for item in items], "errors": failures}
        click.echo(json.dumps({"v": documents.VERSION, **document}))
    else:
        for item in items:
            click.echo(f"{item.state:8} {item.what:8} {item.name} ({item.where})")
        for error in failures:
            click.echo(f"failed: {error}", err=True)
    sys.exit(common.EXIT_FAILED if failures or any(item.state == "missing" for item in items) else common.EXIT_DONE)


@click.command("check")
@click.option(
    "--offline",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Only check this configuration file, of any service; ask no server.",
)
@common.json_option
@common.site_option
def check_command(path: Path, offline: Path | None, *, as_json: bool) -> None:
    """Prove the configuration and every connection, and that the clocks of all hosts agree.

    \b
    Examples:
      slowjobs check
      slowjobs check --offline /etc/slowjobs/bridge.toml
    """
    if offline:
        with common.configuration_errors():
            # Only a service can read its secrets; without any, librdkafka would miss them.
            secrets = settings.Credentials({"sasl.username": "-", "sasl.password": "-"}, None)
            kafka.check_properties(settings.load_any(offline).kafka, secrets)
        return
    config, secrets = common.load(path, settings.CliSettings)
    findings = asyncio.run(check.check(config, secrets))
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "findings": [finding.as_json() for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else 'FAILED':7} {finding.subject}: {finding.answer}")
    sys.exit(common.EXIT_DONE if all(finding.ok for finding in findings) else common.EXIT_FAILED)


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2,
    show_default=True,
    metavar="SECONDS",
    help="How long --watch waits before it looks again.",
)
@common.json_option
@common.site_option
def status_command(path: Path, *, watch: bool, interval: float, as_json: bool) -> None:
    """Show lanes, nsqd hosts, workers and services. Exit 1 when something does not answer.

    \b
    Examples:
      slowjobs status
      slowjobs status --watch
      slowjobs status --watch --interval 60 >> status.log
      slowjobs status --json | jq '.lanes[] | {name, unfinished}'
    """
    if watch and as_json:
        raise click.UsageError("--json prints one document and --watch has no end: take one of them.")
    config, secrets = common.load(path, settings.CliSettings)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(config, secrets, interval))
        return
    document = asyncio.run(status_.read(config, secrets))
    if as_json:
        click.echo(json.dumps(document))
    else:
        common.console.print(*status_.picture(document))
        for error in document["errors"]:
            click.echo(f"error: {error}", err=True)
    sys.exit(common.EXIT_FAILED if document["errors"] else common.EXIT_DONE)


async def _watch(config: settings.CliSettings, secrets: settings.Credentials, interval: float) -> NoReturn:
    """Show the status for ever: in one place of a terminal, one below the other in a file or a pipe."""
    # Into a file the live display would write nothing but the last one.
    display = (
        rich.live.Live(console=common.console, auto_refresh=False)
        if common.console.is_terminal
        else contextlib.nullcontext()
    )
    with display as live:
        while True:
            document = await status_.read(config, secrets)
            errors_ = [rich.text.Text(f"error: {error}") for error in document["errors"]]
            picture = rich.console.Group(documents.now(), *status_.picture(document), *errors_)
            if live:
                live.update(picture, refresh=True)
            else:
                common.console.print(picture)
            await asyncio.sleep(interval)
