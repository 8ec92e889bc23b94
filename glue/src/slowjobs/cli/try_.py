"""``slowjobs try``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slowjobs import documents, settings
from slowjobs.cli import common
from slowjobs.operations import try_

if TYPE_CHECKING:
    import io


@click.command("try")
@click.argument("pool")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--lane", help="Whose kind checks the requests; needed when the pool's lanes are of several kinds.")
@common.json_option
@common.config_option()
def try_command(path: Path | None, pool: str, file: Path, lane: str | None, *, as_json: bool) -> None:
    """Run POOL's handler on each line of FILE (JSON lines; - for standard input), without any queue.

    Runs on this host, one request after the other, each once; asks no server. What the handler prints goes to standard
    error. Exit 1 unless all came to a result or were skipped.

    Run it as the workers' user: what it leaves in the pool's folder as root, say, is in the worker's way.

    \b
    Examples:
      sudo -u slowjobs-worker slowjobs try fixity requests.jsonl
      slowjobs try ingest - --lane ingest-daily < requests.jsonl
      slowjobs try fixity requests.jsonl --json | jq '.tries[] | select(.outcome == "failed")'
    """
    path = path or settings.CONFIG_DIRECTORY / f"worker-{pool}.toml"
    with common.configuration_errors():
        config = settings.load(path, settings.WorkerSettings)
    if config.pool.name != pool:
        common.fail(f"{path}: is the worker of pool {config.pool.name!r}, not of {pool!r}", common.EXIT_USAGE)
    lane = _lane_to_try(config, lane)
    tries: list[try_.Try] = []

    async def _run(lines: io.BufferedReader) -> None:
        async for tried in try_.run(config, lane, lines):
            tries.append(tried)
            if not as_json:
                _print_try(tried)

    with common.open_lines(file) as lines, common.file_errors(), common.configuration_errors():
        asyncio.run(_run(lines))
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "tries": [tried.as_json() for tried in tries]}))
    else:
        counts = Counter(tried.name for tried in tries)
        summary = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        click.echo(f"{len(tries)} tried" + (f": {summary}" if tries else ""))
    sys.exit(common.EXIT_DONE if all(tried.good for tried in tries) else common.EXIT_FAILED)


def _lane_to_try(config: settings.WorkerSettings, lane: str | None) -> str:
    lanes = ", ".join(config.lanes)
    if lane is None and len({known.kind for known in config.lanes.values()}) > 1:
        common.fail(
            f"the lanes of pool {config.pool.name!r} are of several kinds: choose one by --lane: {lanes}",
            common.EXIT_USAGE,
        )
    if lane not in (None, *config.lanes):
        common.fail(f"pool {config.pool.name!r} has no lane {lane!r}; lanes: {lanes}", common.EXIT_USAGE)
    return lane or next(iter(config.lanes))


def _print_try(tried: try_.Try) -> None:
    about = tried.as_json()
    click.echo(f"{about['outcome']:8} {about['seconds']:8.3f} s  {about['key'] or '-'}")
    if "result" in about:
        click.echo(f"    {json.dumps(about['result'], ensure_ascii=False)}")
    for line in about.get("reason", "").splitlines():
        click.echo(f"    {line}")
