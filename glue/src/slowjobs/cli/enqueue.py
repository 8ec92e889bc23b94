"""``slowjobs enqueue``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import rich.console
import rich.progress

from slowjobs import documents, settings
from slowjobs.cli import common
from slowjobs.operations import enqueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@click.command("enqueue")
@click.argument("lane")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where lines that are not sent go, with their reasons. [default: FILE.rejects.jsonl, or rejects.jsonl]",
)
@common.json_option
@common.site_option
def enqueue_command(path: Path, lane: str, file: Path, rejects: Path | None, *, as_json: bool) -> None:
    """Send each line of FILE (JSON lines; - for standard input) to LANE as a request.

    Each line is checked first; one that the lane's kind does not accept goes to the rejects file. Exit 1 if any did.

    \b
    Examples:
      slowjobs enqueue fixity-check requests.jsonl
      zcat requests.jsonl.gz | slowjobs enqueue fixity-check - --rejects /tmp/rejects.jsonl
    """
    config, secrets = common.load(path, settings.CliSettings)
    if lane not in config.lanes:
        common.fail(f"there is no lane {lane!r}; lanes: {', '.join(config.lanes)}", common.EXIT_USAGE)
    from_stdin = str(file) == "-"
    rejects = rejects or (Path("rejects.jsonl") if from_stdin else file.with_name(f"{file.name}.rejects.jsonl"))
    with (
        common.open_lines(file) as lines,
        _rejects_file(rejects) as reject,
        _progress(file, lane) as advance,
        common.server_errors(),
    ):
        report = asyncio.run(enqueue.enqueue(config, secrets, lane, lines, rejects=reject, progress=advance))
    refused = sum(report.rejected.values()) + report.failed
    if as_json:
        document = {"acknowledged": report.acknowledged, "rejected": report.rejected, "failed": report.failed}
        click.echo(json.dumps({"v": documents.VERSION, "lane": lane, **document}))
    else:
        click.echo(f"{report.acknowledged} requests acknowledged on lane {lane}")
        for reason, count in sorted(report.rejected.items()):
            click.echo(f"{count} not sent: {reason}")
        if report.failed:
            click.echo(f"{report.failed} refused by Kafka")
        if refused:
            click.echo(f"see {rejects}")
    sys.exit(common.EXIT_FAILED if refused else common.EXIT_DONE)


@contextlib.contextmanager
def _rejects_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes a line; the file is made by the first, but tried at once."""
    with common.file_errors():
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"rejects file {path}: its folder cannot be written to; choose another by --rejects")
    with contextlib.ExitStack() as stack:
        opened: list[BinaryIO] = []

        def _write(line: bytes) -> None:
            if not opened:
                opened.append(stack.enter_context(path.open("wb")))
            opened[0].write(line)

        yield _write


@contextlib.contextmanager
def _progress(file: Path, lane: str) -> Iterator[Callable[[int], None]]:
    """Show on standard error how much of the file is acknowledged, if that is a terminal."""
    total = None if str(file) == "-" else file.stat().st_size
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"to {lane}", total=total)
        yield lambda count: bar.advance(task, count)
