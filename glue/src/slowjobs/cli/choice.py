"""The lanes that a command is about: LANE..., --pool or --all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slowjobs.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

    from slowjobs import settings


def lanes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what names lanes: LANE..., --pool, --all."""
    for option in (
        click.argument("lanes", metavar="[LANE]...", nargs=-1),
        click.option("--pool", help="All lanes of this pool."),
        click.option("--all", "everything", is_flag=True, help="All lanes."),
    ):
        command = option(command)
    return command


def chosen(config: settings.CliSettings, lanes: tuple[str, ...], pool: str | None, *, everything: bool) -> list[str]:
    """Return the lanes that are meant, as the options and the configuration order them."""
    if sum(map(bool, (lanes, pool, everything))) != 1:
        raise click.UsageError("expected one of LANE..., --pool and --all.")
    if unknown := [lane for lane in lanes if lane not in config.lanes]:
        common.fail(f"no lanes: {', '.join(unknown)}; lanes: {', '.join(config.lanes)}", common.EXIT_USAGE)
    if pool and pool not in config.pools:
        common.fail(f"there is no pool {pool!r}; pools: {', '.join(config.pools)}", common.EXIT_USAGE)
    found = [name for name, lane in config.lanes.items() if everything or name in lanes or lane.pool == pool]
    return found or common.fail("there are no such lanes", common.EXIT_USAGE)
