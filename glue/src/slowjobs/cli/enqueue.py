"""``slowjobs enqueue``."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shlex
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import rich.console
import rich.progress
from click.core import ParameterSource

from slowjobs import documents, kafka, lines, settings
from slowjobs.cli import common
from slowjobs.operations import enqueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: seconds that Kafka gets to answer for what is on its way when a signal or an error ends the run.
_LAST_ANSWERS_SECONDS = 10.0
#: new objects between two looks for garbage: lines make no cycles, and Python's own 700 cost a fifth of the time.
_GARBAGE_OBJECTS = 100_000


@click.command("enqueue")
@click.argument("lane")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(["json", "cdx"]), help="What FILE holds. [default: what it looks like]"
)
@click.option("--from-line", type=click.IntRange(min=1), default=1, help="Go on at this line, after an interruption.")
@click.option("--dry-run", is_flag=True, help="Check every line, send nothing.")
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where lines that are not sent go, with their reasons. [default: FILE.rejects.jsonl, or rejects.jsonl]",
)
@common.json_option
@common.site_option
@click.pass_context
def enqueue_command(
    context: click.Context,
    *,
    path: Path,
    lane: str,
    file: Path,
    format_: enqueue.Format | None,
    from_line: int,
    rejects: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send each line of FILE (- for standard input) to LANE as a request: JSON or CDX lines, plain or gzip.

    Each line is checked first; one that the lane's kind does not accept goes to the rejects file. Exit 1 if any did.
    Kafka away: waits for it. When something ends this before its time, it says how to go on where it was.

    CDX lines become requests with url, datetime, sha1hex, mimetype, warc_path, warc_csize and warc_offset. Header lines
    name their fields; without one they have 11 (N b a m s k r M S V g) or 9 (N b a m s k r V g).

    \b
    Examples:
      slowjobs enqueue fixity-check requests.jsonl
      slowjobs enqueue regrobid-bulk captures.cdx.gz --dry-run
      slowjobs enqueue regrobid-bulk captures.cdx.gz --from-line 1200001
      psql -Atc "SELECT ..." | slowjobs enqueue fixity-check - --rejects /tmp/rejects.jsonl
    """
    config, secrets = common.load(path, settings.CliSettings)
    if lane not in config.lanes:
        common.fail(f"there is no lane {lane!r}; lanes: {', '.join(config.lanes)}", common.EXIT_USAGE)
    rejects = rejects or (Path("rejects.jsonl") if str(file) == "-" else file.with_name(f"{file.name}.rejects.jsonl"))
    gc.set_threshold(_GARBAGE_OBJECTS)
    ended: BaseException | None = None
    with (
        common.interruptible(),
        common.server_errors(),
        common.open_lines(file) as source,
        _rejects_file(rejects, append=from_line > 1) as reject,
        _Progress(source, lane) as progress,
    ):
        producer = None if dry_run else _producer(config, secrets, progress)
        run = enqueue.Enqueue(config, lane, producer=producer, rejects=reject)
        report = run.report
        try:
            if producer and not producer.has_topic(config.kafka_topic(lane)):
                common.fail(
                    f"Kafka topic {config.kafka_topic(lane)} is missing: run `slowjobs setup`", common.EXIT_FAILED
                )
            run.run(
                lines.read(source, config.nsqd.max_message_bytes),
                progress=lambda: progress.show(report),
                format_=format_,
                first_line=from_line,
            )
        except (common.Interrupted, OSError, kafka.ProducerFailedError) as error:
            ended = error
            _hear_last_answers(run)
    next_line = max(from_line, report.next_line) if ended else None
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "lane": lane, **_as_json(report), "next_line": next_line}))
    else:
        _print_report(report, lane, rejects, dry_run=dry_run)
    if ended:
        click.echo(f"ended by {ended} at line {report.lines}: all before line {next_line} are dealt with.", err=True)
        click.echo(f"To go on{', with the same input' if str(file) == '-' else ''}:", err=True)
        click.echo(f"  {_command(context)} --from-line {next_line}", err=True)
        sys.exit(ended.exit_status if isinstance(ended, common.Interrupted) else common.EXIT_FAILED)
    sys.exit(common.EXIT_FAILED if report.refused else common.EXIT_DONE)


def _producer(config: settings.CliSettings, secrets: settings.Credentials, progress: _Progress) -> kafka.BulkProducer:
    return kafka.BulkProducer(
        config.kafka,
        secrets,
        client_id="slowjobs-enqueue",
        away=lambda error: progress.say(f"Kafka does not answer: {error}. Waiting for it; this can be interrupted."),
    )


def _hear_last_answers(run: enqueue.Enqueue) -> None:
    """Wait for a short time for what is on its way, so that less is sent again; another signal ends the wait."""
    deadline = time.monotonic() + _LAST_ANSWERS_SECONDS
    with contextlib.suppress(common.Interrupted, OSError, kafka.ProducerFailedError):
        while run.wait(0.5) and time.monotonic() < deadline:
            pass


def _as_json(report: enqueue.Report) -> dict[str, object]:
    return {
        "lines": report.lines,
        "accepted": report.accepted,
        "acknowledged": report.acknowledged,
        "rejected": report.rejected,
        "failed": report.failed,
    }


def _print_report(report: enqueue.Report, lane: str, rejects: Path, *, dry_run: bool) -> None:
    if dry_run:
        click.echo(f"{report.accepted} requests would be sent to lane {lane}")
    else:
        click.echo(f"{report.acknowledged} requests acknowledged on lane {lane}")
    for reason, count in sorted(report.rejected.items()):
        click.echo(f"{count} not sent: {reason}")
    if report.failed:
        click.echo(f"{report.failed} refused by Kafka")
    if report.refused:
        click.echo(f"see {rejects}")


def _command(context: click.Context) -> str:
    """Return the command line as it was given, without --from-line."""
    words = ["slowjobs", "enqueue", context.params["lane"], str(context.params["file"])]
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and isinstance(parameter, click.Option) and parameter.name != "from_line":
            value = context.params[parameter.name or ""]
            words += [parameter.opts[0], *([] if parameter.is_flag else [str(value)])]
    return shlex.join(words)


@contextlib.contextmanager
def _rejects_file(path: Path, *, append: bool) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes a line at once; the file is made by the first, but tried before."""
    with common.file_errors():
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"rejects file {path}: its folder cannot be written to; choose another by --rejects")
    with contextlib.ExitStack() as stack:
        opened: list[io.FileIO] = []

        def _write(line: bytes) -> None:
            if not opened:
                opened.append(stack.enter_context(io.FileIO(path, "ab" if append else "wb")))
            opened[0].write(line)

        yield _write


class _Progress:
    """On a terminal: how much of the file is read, as it is stored, and how many lines a second."""

    def __init__(self, source: io.BufferedReader, lane: str) -> None:
        self._source = source
        status = os.fstat(source.fileno())
        self._is_file = stat.S_ISREG(status.st_mode)
        self._start = time.monotonic()
        console = rich.console.Console(stderr=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.DownloadColumn(),
            rich.progress.TextColumn("{task.fields[lines]:,} lines, {task.fields[rate]:,.0f} a second"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        total = status.st_size if self._is_file else None
        self._task = self._bar.add_task(f"to {lane}", total=total, lines=0, rate=0.0)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, report: enqueue.Report) -> None:
        """Show how far it got."""
        seconds = time.monotonic() - self._start
        read = self._source.tell() if self._is_file else 0
        self._bar.update(self._task, completed=read, lines=report.lines, rate=report.lines / max(seconds, 0.001))

    def say(self, text: str) -> None:
        """Say something above the bar."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
