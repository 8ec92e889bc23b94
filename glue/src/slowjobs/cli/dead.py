"""``slowjobs dead``."""

from __future__ import annotations

import json
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import click
import rich.box
import rich.markup
import rich.table

from slowjobs import documents, settings
from slowjobs.cli import common
from slowjobs.operations import dead

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@click.group("dead")
def dead_group() -> None:
    """Look at dead letters: requests that came to no result, each with its reason."""


@dead_group.command("list")
@click.option("--lane", help="Only this lane's.")
@click.option("--reason", help="Only those with this reason.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@common.json_option
@common.site_option
def dead_list_command(path: Path, lane: str | None, reason: str | None, limit: int, *, as_json: bool) -> None:
    """List dead letters, the newest last, and count them by reason.

    \b
    Examples:
      slowjobs dead list --lane fixity-check
      slowjobs dead list --reason attempts-exhausted --json
    """
    config, secrets = common.load(path, settings.CliSettings)
    with common.server_errors():
        counts: Counter[str] = Counter()
        shown: deque[dict[str, Any]] = deque(maxlen=limit)
        for letter in dead.read(config, secrets):
            if lane in (None, letter.get("lane")) and reason in (None, letter.get("reason")):
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


def _dead_table(letters: Iterable[dict[str, Any]]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in ("id", "at", "lane", "reason", "key", "error"):
        table.add_column(column, overflow="fold")
    for letter in letters:
        error = str(letter.get("unreadable") or letter.get("error"))
        names = ("id", "at", "lane", "reason", "key")
        table.add_row(*(rich.markup.escape(str(letter.get(name) or "")) for name in names), rich.markup.escape(error))
    return table
