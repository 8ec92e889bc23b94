"""``slowjobs empty``."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import click
import rich.console

from slowjobs import documents, settings
from slowjobs.cli import choice, common
from slowjobs.operations import empty, idle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_ASK = (
    "expected --yes, or a terminal to ask at. Nothing was discarded: --dry-run shows what would be, --yes discards it."
)
_COLUMNS = {"on_kafka": "on Kafka", "waiting": "waiting", "deferred": "deferred", "in_flight": "in flight"}


@click.command("empty")
@choice.lanes_options
@click.option("--discard", is_flag=True, help="Also lanes that are not marked safe_to_empty.")
@click.option("--dry-run", is_flag=True, help="Only count; discard nothing.")
@click.option("--yes", is_flag=True, help="Discard without asking first.")
@common.json_option
@common.site_option
def empty_command(path: Path, *, discard: bool, dry_run: bool, yes: bool, as_json: bool, **chosen: Any) -> None:
    """Discard all of the lanes that is on Kafka and in NSQ up to now. It cannot be undone.

    Refused while any of it runs: pause the lanes and wait until they are idle first. What comes later is worked on.
    That its requests were discarded `slowjobs find` knows; to `slowjobs reenqueue` they are requests without a result.

    \b
    Examples:
      slowjobs empty fixity-check --dry-run
      slowjobs pause ingest-bulk && slowjobs wait-idle ingest-bulk && slowjobs empty ingest-bulk --discard
      slowjobs empty --pool fixity --yes
    """
    config, secrets = common.load(path, settings.CliSettings)
    names = choice.chosen(config, **chosen)
    if not (yes or dry_run) and (as_json or not sys.stdin.isatty()):
        common.fail(_ASK, common.EXIT_REFUSED)
    with common.server_errors():
        counts = asyncio.run(empty.count(config, secrets, names))
    if not as_json:
        for line in _table(counts):
            click.echo(line)
    report = empty.Report({}, [])
    if not dry_run:
        _refuse(config, names, discard=discard)
        if not yes:
            click.confirm("Discard all this?", abort=True)
        report = _empty(config, names)
    _tell(counts, report, as_json=as_json)


def _refuse(config: settings.CliSettings, names: Sequence[str], *, discard: bool) -> None:
    """End with EXIT_REFUSED for lanes that must not be emptied, or not now."""
    if unsafe := [name for name in names if not (discard or config.lanes[name].safe_to_empty)]:
        said = f"not marked safe_to_empty: {', '.join(unsafe)}. --discard discards them all the same."
        common.fail(f"{said} Nothing was discarded.", common.EXIT_REFUSED)
    reading = asyncio.run(idle.read(config, names))
    if not reading.idle:
        lanes = " ".join(names)
        said = f"not idle: {reading}. First: slowjobs pause {lanes} && slowjobs wait-idle {lanes}."
        common.fail(f"{said} Nothing was discarded.", common.EXIT_REFUSED)


def _empty(config: settings.CliSettings, names: Sequence[str]) -> empty.Report:
    try:
        with rich.console.Console(stderr=True).status("the bridge discards"), common.interruptible():
            return asyncio.run(empty.empty(config, names))
    except common.Interrupted as interrupted:
        lanes = " ".join(names)
        said = (
            f"interrupted: the bridge goes on, and what it still discards stays paused. Then: slowjobs unpause {lanes}"
        )
        common.fail(said, interrupted.exit_status)


def _table(counts: Sequence[empty.Count]) -> Iterator[str]:
    width = max(len(count.lane) for count in counts)
    yield " ".join([f"{'lane':{width}}", *(f"{title:>10}" for title in _COLUMNS.values())])
    for count in counts:
        yield " ".join([f"{count.lane:{width}}", *(f"{getattr(count, name):10}" for name in _COLUMNS)])


def _tell(counts: Sequence[empty.Count], report: empty.Report, *, as_json: bool) -> None:
    if as_json:
        found = [{**vars(count), "discarded": report.discarded.get(count.lane, 0)} for count in counts]
        click.echo(json.dumps({"v": documents.VERSION, "lanes": found, "errors": report.failures}))
    else:
        for lane, requests in report.discarded.items():
            click.echo(f"discarded {requests} requests of {lane}")
        for failure in report.failures:
            click.echo(f"failed: {failure}", err=True)
    sys.exit(common.EXIT_FAILED if report.failures else common.EXIT_DONE)
