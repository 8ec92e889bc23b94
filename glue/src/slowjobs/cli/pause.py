"""``slowjobs pause | unpause | wait-idle``: lanes stand still, and it is known when."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import rich.console
import rich.markup

from slowjobs import documents, settings
from slowjobs.cli import choice, common
from slowjobs.operations import idle, pause

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path

#: lines about what is waited for, while it is.
_SHOWN = 8


@click.command("pause")
@choice.lanes_options
@common.json_option
@common.site_option
def pause_command(path: Path, *, as_json: bool, **chosen: Any) -> None:
    """Have no request of the lanes begin any more, on no host; what runs goes on to its end.

    Within a second of its end nothing begins. What workers had taken and not begun goes back to NSQ. The bridge goes
    on filling the lanes up to their cap. A lane stays paused, over restarts too, until `slowjobs unpause`.

    \b
    Examples:
      slowjobs pause ingest-daily ingest-bulk
      slowjobs pause --pool ingest
      slowjobs pause --all && slowjobs wait-idle
    """
    config, _ = common.load(path, settings.CliSettings)
    report = asyncio.run(pause.pause(config, choice.chosen(config, **chosen)))
    _tell(report, "paused", as_json=as_json)


@click.command("unpause")
@choice.lanes_options
@common.json_option
@common.site_option
def unpause_command(path: Path, *, as_json: bool, **chosen: Any) -> None:
    """Let requests of the lanes begin again, whoever paused them.

    \b
    Examples:
      slowjobs unpause ingest-daily ingest-bulk
      slowjobs unpause --all
    """
    config, _ = common.load(path, settings.CliSettings)
    report = asyncio.run(pause.unpause(config, choice.chosen(config, **chosen)))
    _tell(report, "unpaused", as_json=as_json)


def _tell(report: pause.Report, what: str, *, as_json: bool) -> None:
    if as_json:
        document = {
            "lanes": [{"lane": each.lane, "nsqd": each.host, "changed": each.changed} for each in report.settings],
            "workers": [
                {"host": each.worker.host, "pool": each.worker.pool, "released": each.requests}
                for each in report.releases
            ],
            "errors": report.failures,
        }
        click.echo(json.dumps({"v": documents.VERSION, **document}))
    else:
        for setting in report.settings:
            click.echo(f"{what if setting.changed else f'was {what}':12} {setting.lane} on {setting.host}")
        for release in report.releases:
            gave = "is stopped" if release.requests is None else f"gave back {release.requests}"
            click.echo(f"{gave:12} {release.worker.name} on {release.worker.host}")
        for failure in report.failures:
            click.echo(f"failed: {failure}", err=True)
    sys.exit(common.EXIT_FAILED if report.failures else common.EXIT_DONE)


@click.command("wait-idle")
@choice.lanes_options
@click.option(
    "--timeout", type=common.DURATION, default="10m", show_default=True, help="How long to wait; then exit 3."
)
@click.option("--paused", is_flag=True, help="Until the lanes are paused, too: then nothing can begin.")
@common.json_option
@common.site_option
def wait_idle_command(path: Path, timeout: timedelta, *, paused: bool, as_json: bool, **chosen: Any) -> None:
    """Wait until nothing of the lanes runs. Without LANE, --pool or --all: of all lanes.

    Idle means that nsqd has nothing in flight on any host and that every worker says it has nothing, in three readings
    2 s apart. A worker whose port is closed is stopped, hence idle; one that does not answer is not.

    \b
    Examples:
      slowjobs pause --all && slowjobs wait-idle --paused --timeout 30m
      slowjobs wait-idle --pool ingest --json
    """
    config, _ = common.load(path, settings.CliSettings)
    if not any(chosen.values()):
        chosen["everything"] = True
    names = choice.chosen(config, **chosen)
    begun = time.monotonic()
    console = rich.console.Console(stderr=True)
    # Nothing of it is shown where it is no terminal.
    with console.status("asking nsqd and the workers") as status:

        def _show(outcome: idle.Outcome) -> None:
            left = max(0.0, timeout.total_seconds() - (time.monotonic() - begun))
            lines = [f"{_summary(outcome)}; {left:.0f} s left", *itertools.islice(_what_runs(outcome), _SHOWN)]
            status.update(rich.markup.escape("\n".join(lines)))

        outcome = asyncio.run(
            idle.wait(
                config,
                None if chosen["everything"] else names,
                paused=paused,
                timeout_seconds=timeout.total_seconds(),
                progress=_show,
            )
        )
    seconds = round(time.monotonic() - begun, 1)
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "seconds": seconds, **_document(outcome)}))
    elif outcome.idle:
        click.echo(f"idle after {seconds:g} s")
        for line in _what_can_begin(outcome):
            click.echo(line, err=True)
    else:
        click.echo("\n".join([f"not idle after {seconds:g} s: {_summary(outcome)}", *_what_runs(outcome)]), err=True)
    sys.exit(common.EXIT_DONE if outcome.idle else common.EXIT_DEADLINE)


def _summary(outcome: idle.Outcome) -> str:
    if outcome.readings:
        return f"idle in {outcome.readings} of {idle.READINGS} readings"
    return str(outcome.last)


def _what_runs(outcome: idle.Outcome) -> Iterator[str]:
    reading = outcome.last
    for task in reading.tasks:
        said = task.said
        where = f"{task.worker.name} on {task.worker.host}"
        yield f"  {where}: {task.stage} since {said['since']}: {said['lane']} {said['key']}, attempt {said['attempt']}"
    for each in reading.in_flight:
        share = "" if each.unclaimed == each.requests else f"{each.unclaimed} of them "
        stranger = "; or one's that is not configured" if each.clients else ""
        note = f": {share}a dead worker's, back within msg-timeout{stranger}" if each.unclaimed else ""
        yield f"  nsqd {each.host}: {each.lane} (in flight {each.requests}, clients {each.clients}){note}"
    for unknown in reading.unknown:
        yield f"  {unknown}"
    for line in _what_can_begin(outcome):
        yield f"  {line}"


def _what_can_begin(outcome: idle.Outcome) -> Iterator[str]:
    if outcome.last.unpaused:
        yield f"more can begin at any moment: not paused: {', '.join(outcome.last.unpaused)}"


def _document(outcome: idle.Outcome) -> dict[str, Any]:
    reading = outcome.last
    return {
        "idle": outcome.idle,
        "tasks": [
            {"host": task.worker.host, "pool": task.worker.pool, "stage": task.stage, **task.said}
            for task in reading.tasks
        ],
        "in_flight": [
            {"nsqd": each.host, "lane": each.lane, "in_flight": each.requests, "clients": each.clients,
             "unclaimed": each.unclaimed}
            for each in reading.in_flight
        ],
        "unpaused": reading.unpaused,
        "errors": reading.unknown,
    }  # fmt: skip
