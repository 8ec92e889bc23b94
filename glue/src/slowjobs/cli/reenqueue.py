"""``slowjobs reenqueue``."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
import rich.console
import rich.progress

from slowjobs import documents, errors, kafka, settings
from slowjobs.cli import common
from slowjobs.operations import reenqueue, under_way

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: what a message's header says when no policy sent it.
_BY_PERSON = "person"
#: characters of a request that are shown.
_SHOWN = 300
_COUNTING, _SENDING = "counting", "sending"
_DAY, _HOUR = timedelta(days=1), timedelta(hours=1)
_ASK = "expected --yes, or a terminal to ask at. Nothing was sent: --dry-run shows what would be, --yes sends it."


@click.command("reenqueue")
@click.argument("lane", required=False)
@click.option("--policy", "name", help="Take LANE and what to select from this policy of the configuration.")
@click.option("--window", type=common.DURATION, help="Requests that came, or came again, within this time, e.g. 8d.")
@click.option("--older-than", type=common.DURATION, help="Also those whose result is older than this.")
@click.option("--status", "statuses", multiple=True, metavar="GLOB", help="Also those whose result has such a status.")
@click.option(
    "--exclude-status", "excluded", multiple=True, metavar="GLOB", help="Of these none whose result has such."
)
@click.option("--limit", type=click.IntRange(min=1), help="So many at most, less what LANE has not done yet.")
@click.option("--cool-down", type=common.DURATION, help="None that was sent again within this time.  [default: 24h]")
@click.option("--dry-run", is_flag=True, help="Only count and show; send nothing.")
@click.option("--yes", is_flag=True, help="Send without counting and asking first.")
@click.option(
    "--timeout", type=common.DURATION, default="10m", show_default=True, help="How long persisters are waited for."
)
@common.json_option
@common.site_option
def reenqueue_command(
    path: Path,
    lane: str | None,
    name: str | None,
    timeout: timedelta,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """Send old requests of LANE's kind to LANE again: those without a result, and others by the age or status of it.

    Of requests that share a result the newest is sent. Left out is what is still on its way, on Kafka or in NSQ, and
    what was sent again a short time ago.

    \b
    Examples:
      slowjobs reenqueue ingest-bulk --window 8d --dry-run
      slowjobs reenqueue ingest-bulk --window 91d --status 'spn2-*' --exclude-status '*:not-found'
      slowjobs reenqueue fixity-check --window 3650d --older-than 90d --limit 2500
      slowjobs reenqueue --policy ingest-daily --yes
    """
    config, secrets = common.load(path, settings.CliSettings)
    policy = _from_configuration(config, name, lane, selection) if name else _from_options(config, lane, **selection)
    if not (yes or dry_run) and (as_json or not sys.stdin.isatty()):
        common.fail(_ASK, common.EXIT_REFUSED)
    display = _Display()
    run = reenqueue.Reenqueue(
        config, secrets, policy, timeout_seconds=timeout.total_seconds(), waiting=display.wait, advance=display.advance
    )
    sending, at_most = yes and not dry_run, None
    if not sending:
        with _failures(display), display.step(_COUNTING, policy.limit):
            report = run.count()
        if not as_json:
            _show(config, policy, report, "to send")
        at_most = report.requests
        question = f"Send {at_most} requests to lane {policy.lane}?"
        sending = not dry_run and at_most > 0 and click.confirm(question, abort=True)
    if sending:
        with _failures(display), display.step(_SENDING, at_most or policy.limit):
            report = run.send(name or _BY_PERSON, at_most=at_most)
        if not as_json:
            _show(config, policy, report, "sent")
    if as_json:
        click.echo(json.dumps(_document(config, policy, report, name, sent=sending)))
    sys.exit(common.EXIT_FAILED if reenqueue.NOT_SENT in report.refused else common.EXIT_DONE)


def _from_configuration(
    config: settings.CliSettings, name: str, lane: str | None, selection: Mapping[str, Any]
) -> settings.Policy:
    if lane or any(value not in (None, ()) for value in selection.values()):
        raise click.UsageError("--policy says which requests and which lane: leave out LANE and all that selects.")
    if name not in config.policies:
        known = ", ".join(config.policies) or "none"
        common.fail(f"there is no policy {name!r}; policies: {known}", common.EXIT_USAGE)
    return config.policies[name]


def _from_options(
    config: settings.CliSettings,
    lane: str | None,
    *,
    window: timedelta | None,
    older_than: timedelta | None,
    statuses: tuple[str, ...],
    excluded: tuple[str, ...],
    limit: int | None,
    cool_down: timedelta | None,
) -> settings.Policy:
    if lane is None or not window:
        raise click.UsageError("expected LANE and --window, e.g. --window 8d, or --policy.")
    if lane not in config.lanes:
        common.fail(f"there is no lane {lane!r}; lanes: {', '.join(config.lanes)}", common.EXIT_USAGE)
    if excluded and not statuses and older_than is None:
        raise click.UsageError("--exclude-status narrows --status or --older-than: expected one of them, too.")
    return settings.Policy(
        lane=lane,
        window_days=window / _DAY,
        result_older_than_days=None if older_than is None else older_than / _DAY,
        statuses=statuses,
        exclude_statuses=excluded,
        limit=limit,
        cool_down_hours=24 if cool_down is None else cool_down / _HOUR,
    )


class _Display:
    """Shows on standard error what goes on, if that is a terminal."""

    def __init__(self) -> None:
        console = rich.console.Console(stderr=True)
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
        )
        self._bar = rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("")
        self._step = ""
        self._done = 0

    @contextlib.contextmanager
    def step(self, what: str, total: int | None) -> Iterator[None]:
        """Show how ``what`` gets on with ``total`` requests, None for as many as there are."""
        self._step, self._done = what, 0
        self._bar.reset(self._task, total=total, description=what)
        with self._bar:
            yield

    def wait(self, persister: str, left: int) -> None:
        """Show that a persister is waited for."""
        self._bar.update(self._task, description=f"waiting for {persister}, which has {left} messages to go")

    def advance(self, count: int) -> None:
        """Show ``count`` more requests."""
        self._done += count
        self._bar.update(self._task, advance=count, description=self._step)

    @property
    def reached(self) -> str:
        """Say how far it got."""
        return f"{self._done} requests were sent" if self._step == _SENDING and self._done else "nothing was sent"


@contextlib.contextmanager
def _failures(display: _Display) -> Iterator[None]:
    """End with the exit status of what went wrong, and say how far it got: another run goes on from there."""
    try:
        with common.configuration_errors(), common.interruptible():
            yield
    except errors.SERVER_ERRORS as error:
        said = (
            f"failed: {errors.text(error)}; {display.reached}. `slowjobs check` shows which server. Then run it again."
        )
        common.fail(said, common.EXIT_FAILED)
    except documents.UnknownVersionError as error:
        common.fail(f"failed: {error}; {display.reached}.", common.EXIT_FAILED)
    except kafka.ProducerFailedError as error:
        common.fail(f"failed: {error}; {display.reached}. Run it again.", common.EXIT_FAILED)
    except common.Interrupted as interrupted:
        common.fail(f"{interrupted}: {display.reached}. Run it again for the rest.", interrupted.exit_status)
    except under_way.DeadlineError as error:
        common.fail(f"{error}; {display.reached}", common.EXIT_DEADLINE)
    except reenqueue.RunningError as error:
        common.fail(f"{error}; {display.reached}", common.EXIT_REFUSED)


def _show(config: settings.CliSettings, policy: settings.Policy, report: reenqueue.Report, what: str) -> None:
    for line in _lines(config, policy, report, what):
        click.echo(line)


def _lines(config: settings.CliSettings, policy: settings.Policy, report: reenqueue.Report, what: str) -> Iterator[str]:
    lane = policy.lane
    yield f"{report.requests} requests {what} on lane {lane}" + (", such as" if report.sample else "")
    for request in report.sample:
        shown = json.dumps(request, ensure_ascii=False)
        yield f"  {shown[:_SHOWN]}" + ("..." if len(shown) > _SHOWN else "")
    topic = config.kafka_topic(lane)
    unfinished = report.under_way.unpublished(topic) + report.under_way.outstanding(topic)
    if policy.limit is not None and unfinished:
        yield f"{unfinished} requests of the lane are not done and count for the limit of {policy.limit}"
    for (reason, topic), count in sorted(report.left_out.items()):
        name = config.lane_of_topic.get(topic, topic)
        yield (
            f"{count} left out: "
            + {
                reenqueue.ON_KAFKA: f"on Kafka for lane {name}, not handed to NSQ yet",
                reenqueue.IN_NSQ: f"handed to NSQ for lane {name}, not done yet",
                reenqueue.COOL_DOWN: f"sent again on lane {name} within the last {policy.cool_down_hours:g} h",
            }[reason]
        )
    for reason, count in sorted(report.refused.items()):
        yield f"{count} refused: {reason}"
    for key, error in report.refusals:
        yield f"  {key}: {error}"


def _document(
    config: settings.CliSettings, policy: settings.Policy, report: reenqueue.Report, name: str | None, *, sent: bool
) -> dict[str, Any]:
    seen = report.under_way
    return {
        "v": documents.VERSION,
        "lane": policy.lane,
        "policy": name,
        "selected": report.requests,
        "sent": report.requests if sent else 0,
        "sample": report.sample,
        "left_out": [
            {"reason": reason, "lane": config.lane_of_topic.get(topic, topic), "requests": count}
            for (reason, topic), count in sorted(report.left_out.items())
        ],
        "refused": report.refused,
        "refusals": [{"key": key, "error": error} for key, error in report.refusals],
        "outstanding": {config.lane_of_topic[topic]: seen.outstanding(topic) for topic in seen.partitions},
        "backlog": {config.lane_of_topic[topic]: seen.unpublished(topic) for topic in seen.partitions},
    }
