"""``slowjobs find``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from slowjobs import documents, kinds, settings
from slowjobs.cli import common
from slowjobs.operations import find

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@click.command("find")
@click.argument("key")
@common.json_option
@common.site_option
def find_command(path: Path, key: str, *, as_json: bool) -> None:
    """Show where a request is: its rows, its place on Kafka, what its workers did with it, its dead letters.

    KEY is the key of a request or of a result (the text of a JSON array), or one value: that of a key with one member,
    or the base_url or link_source_id of an ingest request. Exit 1 if nothing is found, or a server does not answer.

    \b
    Examples:
      slowjobs find '["/srv/a.pdf"]'
      slowjobs find https://example.org/paper
      slowjobs find '["pdf", "https://example.org/paper"]' --json
    """
    config, secrets = common.load(path, settings.CliSettings)
    try:
        wanted = find.Wanted.of(key)
    except kinds.RejectedError as error:
        common.fail(f"KEY: no request can have it: {error}", common.EXIT_USAGE)
    matches, failures = find.find(config, secrets, wanted)
    if as_json:
        document = {"matches": [match.as_json() for match in matches], "errors": failures}
        click.echo(json.dumps({"v": documents.VERSION, **document}))
    else:
        for match in matches:
            click.echo("\n".join(_lines(match)))
        click.echo(f"{len(matches)} found")
        for failure in failures:
            click.echo(f"error: {failure}", err=True)
    sys.exit(common.EXIT_DONE if matches and not failures else common.EXIT_FAILED)


def _lines(match: find.Match) -> Iterator[str]:
    yield f"{match.kind} {match.key or '(a result without a request)'}"
    if match.request:
        row = {name: value for name, value in match.request.items() if name != "created" and value is not None}
        yield f"  request      created {match.request['created']}  {json.dumps(row, ensure_ascii=False)}"
    if match.result:
        hit = "a hit" if match.result["hit"] else "no hit"
        yield f"  result       {match.result['status']} ({hit}), updated {match.result['updated']}"
    if match.position:
        place = documents.Position(*(match.position[name] for name in ("topic", "partition", "offset")))
        yield f"  on Kafka     {place}, lane {match.lane or '?'}: {_reached(match)}"
        yield f"  last seen    {match.position['last_seen'] or 'only re-enqueued'}"
        if match.position["reenqueue_count"]:
            count, last = match.position["reenqueue_count"], match.position["reenqueued_at"]
            yield f"  re-enqueued  {count} times, last {last}"
    for event in match.events:
        yield f"  {event['event']:<12} {_told(event)}"
    for letter in match.dead_letters:
        replayed = " (replayed)" if letter["replayed"] else ""
        yield f"  dead letter  {letter['id']}, {letter['at']}, {letter['reason']}: {letter['error']}{replayed}"


def _reached(match: find.Match) -> str:
    if match.in_backlog is None:
        return "Kafka does not say how far the bridge is"
    if match.in_backlog:
        return "not handed to NSQ yet"
    return {True: "done", False: "handed to NSQ, not done", None: "of a topic that was there before"}[match.done]


def _told(event: dict[str, Any]) -> str:
    """Return what is known of an event but its name."""
    said = f"{event['at']}, {event['worker']}"
    for name, text in (
        ("attempt", "attempt {}"),
        ("nsqd", "from {}"),
        ("until", "waits until {}"),
        ("outcome", "{}"),
        ("reason", "{}"),
    ):
        if event[name] is not None:
            said += f", {text.format(event[name])}"
    return said
