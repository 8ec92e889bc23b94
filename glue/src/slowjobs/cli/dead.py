"""``slowjobs dead``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import click
import rich.box
import rich.markup
import rich.table

from slowjobs import documents, kafka, settings
from slowjobs.cli import common
from slowjobs.operations import dead

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta
    from pathlib import Path

#: seconds that Kafka gets to answer for what is on its way when a signal ends a replay.
_LAST_ANSWERS_SECONDS = 10.0

_lane_option = click.option("--lane", help="Only this lane's.")
_reason_option = click.option("--reason", help="Only those with this reason.")
_since_option = click.option("--since", type=common.DURATION, help="Only those that are no older, e.g. 12h or 8d.")


@click.group("dead")
def dead_group() -> None:
    """Look at dead letters, requests that came to no result, and send them again."""


@dead_group.command("list")
@_lane_option
@_reason_option
@_since_option
@click.option("--all", "with_replayed", is_flag=True, help="Also those that were replayed.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@common.json_option
@common.site_option
def dead_list_command(
    path: Path,
    lane: str | None,
    reason: str | None,
    since: timedelta | None,
    limit: int,
    *,
    with_replayed: bool,
    as_json: bool,
) -> None:
    """List dead letters, the newest last, and count them by reason.

    \b
    Examples:
      slowjobs dead list --lane fixity-check --since 8d
      slowjobs dead list --reason attempts-exhausted --json
    """
    config, secrets = common.load(path, settings.CliSettings)
    choice = _choice(lane, reason, since)
    with common.server_errors():
        counts: Counter[str] = Counter()
        shown: deque[dict[str, Any]] = deque(maxlen=limit)
        for letter in dead.read(config, secrets):
            if choice.takes(letter) and (with_replayed or not letter["replayed"]):
                counts[str(letter.get("reason", "unreadable"))] += 1
                shown.append(letter)
    if as_json:
        document = {"total": counts.total(), "by_reason": dict(counts), "dead_letters": list(shown)}
        click.echo(json.dumps({"v": documents.VERSION, **document}))
        return
    if shown:
        common.console.print(_dead_table(shown))
    for name, count in counts.most_common():
        click.echo(f"{count:6} {name}")
    click.echo(f"{counts.total()} dead letters" + (f", the last {limit} shown" if counts.total() > limit else ""))


@dead_group.command("show")
@click.argument("id_", metavar="ID", type=click.IntRange(min=0))
@common.json_option
@common.site_option
def dead_show_command(path: Path, id_: int, *, as_json: bool) -> None:
    """Show one dead letter with its request.

    \b
    Examples:
      slowjobs dead show 17
      slowjobs dead show 17 --json | jq .dead_letter.request
    """
    config, secrets = common.load(path, settings.CliSettings)
    with common.server_errors():
        letter = dead.find(config, secrets, id_)
    if letter is None:
        common.fail(f"there is no dead letter {id_}", common.EXIT_FAILED)
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "dead_letter": letter}))
        return
    refusal = dead.refusal(config, letter, again=True)
    click.echo(json.dumps(letter, indent=2, ensure_ascii=False))
    click.echo(f"not to be replayed: {refusal}" if refusal else f"send it again: slowjobs dead replay {id_}")


@dead_group.command("replay")
@click.argument("ids", metavar="[ID]...", type=click.IntRange(min=0), nargs=-1)
@_lane_option
@_reason_option
@_since_option
@click.option("--again", is_flag=True, help="Also what was replayed before.")
@click.option("--dry-run", is_flag=True, help="Only count; send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.json_option
@common.site_option
def dead_replay_command(
    path: Path,
    ids: tuple[int, ...],
    lane: str | None,
    reason: str | None,
    since: timedelta | None,
    *,
    again: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Put the requests of dead letters on their lanes again, byte for byte: those of IDs, or those that are chosen.

    Counts them first. What was replayed is no longer listed. Exit 1 if any of them cannot be sent again.

    \b
    Examples:
      slowjobs dead replay 17 18
      slowjobs dead replay --lane ingest-daily --reason attempts-exhausted --since 2d --dry-run
      slowjobs dead replay --lane ingest-daily --reason attempts-exhausted --since 2d --yes
    """
    config, secrets = common.load(path, settings.CliSettings)
    chosen = any(value is not None for value in (lane, reason, since))
    if bool(ids) == chosen:
        raise click.UsageError("expected either IDs, or one or more of --lane, --reason and --since")
    asking = chosen and not (yes or dry_run)
    if asking and (as_json or not sys.stdin.isatty()):
        common.fail("expected --yes, or a terminal to ask at; nothing was sent. --dry-run counts.", common.EXIT_REFUSED)
    choice = _choice(lane, reason, since) if chosen else frozenset(ids)
    with common.server_errors():
        letters, refused = dead.sort_out(config, secrets, choice, again=again)
    if not as_json:
        _print_count(letters)
    if not letters or dry_run or (asking and not click.confirm("Send them again?")):
        replayed = set[int]()
    else:
        replayed, failed = _replay(config, secrets, letters)
        refused |= failed
    if as_json:
        document = {"chosen": sorted(letters), "replayed": sorted(replayed), "refused": refused}
        click.echo(json.dumps({"v": documents.VERSION, **document}))
    else:
        for id_, why in sorted(refused.items()):
            click.echo(f"dead letter {id_} is not sent: {why}", err=True)
        click.echo(f"{len(replayed)} sent again")
    sys.exit(common.EXIT_FAILED if refused else common.EXIT_DONE)


def _choice(lane: str | None, reason: str | None, since: timedelta | None) -> dead.Choice:
    return dead.Choice(lane, reason, documents.now(-since.total_seconds()) if since else None)


def _print_count(letters: dict[int, dead.Subject]) -> None:
    counts = Counter(letters.values())
    for (lane, reason), count in sorted(counts.items()):
        click.echo(f"{count:6} {lane}: {reason}")


def _replay(
    config: settings.CliSettings, secrets: settings.Credentials, letters: dict[int, dead.Subject]
) -> tuple[set[int], dict[int, str]]:
    """Return what was sent and marked, and what Kafka did not take; a signal ends it early, with all marks made."""

    def _away(error: str) -> None:
        click.echo(f"Kafka does not answer: {error}. Waiting for it; this can be interrupted.", err=True)

    producer = kafka.BulkProducer(config.kafka, secrets, client_id="slowjobs-dead", away=_away)
    replay = dead.Replay(config, secrets, producer)
    with common.server_errors(), common.interruptible():
        try:
            replay.run(letters)
        except (common.Interrupted, kafka.ProducerFailedError) as error:
            with contextlib.suppress(common.Interrupted, kafka.ProducerFailedError):
                replay.finish(_LAST_ANSWERS_SECONDS)
            status = error.exit_status if isinstance(error, common.Interrupted) else common.EXIT_FAILED
            common.fail(f"ended by {error}: {len(replay.replayed)} of {len(letters)} sent again and marked", status)
    return replay.replayed, replay.failed


def _dead_table(letters: Iterable[dict[str, Any]]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in ("id", "at", "lane", "reason", "key", "error"):
        table.add_column(column, overflow="fold")
    for letter in letters:
        error = str(letter.get("unreadable") or letter.get("error")) + (" (replayed)" if letter["replayed"] else "")
        shown = [str(letter.get(name) or "") for name in ("at", "lane", "reason", "key")]
        table.add_row(str(letter["id"]), *map(rich.markup.escape, (*shown, error)))
    return table
