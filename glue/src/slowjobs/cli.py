"""The command line: a function for each subcommand, and what their exit statuses mean."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

import click
import rich.box
import rich.console
import rich.live
import rich.markup
import rich.progress
import rich.table
import rich.text

from slowjobs import (
    bridge,
    check,
    dead,
    documents,
    enqueue,
    errors,
    kafka,
    log,
    persister,
    service,
    settings,
    setup,
    try_,
)
from slowjobs import status as status_
from slowjobs import worker as worker_

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_FENCED = 5

#: characters; what is not read at a terminal need not fit one.
_WIDE = 160
_console = rich.console.Console(width=None if sys.stdout.isatty() else _WIDE)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


def _config_option(default: str | None = None) -> Callable[[Any], Any]:
    return click.option(
        "--config",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        default=default,
        envvar="SLOWJOBS_CONFIG" if default else None,
        show_default=default is not None,
        help="The configuration file.",
    )


_site_option = _config_option(str(settings.CONFIG_DIRECTORY / "slowjobs.toml"))


def _load(path: Path, expected: type[settings.S]) -> tuple[settings.S, settings.Credentials]:
    with _configuration_errors():
        config, secrets = settings.load(path, expected), settings.credentials()
        kafka.check_properties(config.kafka, secrets)
    return config, secrets


@contextlib.contextmanager
def _configuration_errors() -> Iterator[None]:
    try:
        yield
    except settings.ConfigurationError as error:
        _fail(str(error), EXIT_USAGE)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(status)


@contextlib.contextmanager
def _server_errors() -> Iterator[None]:
    try:
        yield
    except errors.SERVER_ERRORS as error:
        _fail(f"failed: {errors.text(error)}. `slowjobs check` shows which server.", EXIT_FAILED)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slowjobs")
def main() -> None:
    """Run slow jobs from Kafka through NSQ.

    Exit statuses: 0 done, 1 failed, 2 usage or configuration, 5 another instance has taken over.
    """
    log.configure()


# Services


def _serve(
    config: settings.BridgeSettings | settings.PersisterSettings | settings.WorkerSettings,
    path: Path,
    name: str,
    make: Callable[[], service.Service],
) -> None:
    """Run a service until it is stopped: status 0.

    1 after a failure that another start may mend: systemd tries. It does not after 2, what is configured is wrong, and
    5, another instance has taken over.
    """

    async def _run() -> None:
        await service.run(
            make(), name=name, host=config.host, address=config.state_address, config=settings.fingerprint(path)
        )

    try:
        asyncio.run(_run())
    except* settings.ConfigurationError as group:
        _fail(f"{path}: {group.exceptions[0]}", EXIT_USAGE)
    except* kafka.FencedError as group:
        _fail(f"another {name} has taken over: {group.exceptions[0]}", EXIT_FENCED)
    except* (OSError, kafka.ProducerFailedError, documents.UnknownVersionError) as group:
        _fail(f"{name} failed: {group.exceptions[0]}", EXIT_FAILED)


@main.command("bridge")
@_config_option()
def bridge_command(path: Path | None) -> None:
    """Run the bridge: requests from Kafka to NSQ, under each lane's cap."""
    path = path or settings.CONFIG_DIRECTORY / "bridge.toml"
    config, secrets = _load(path, settings.BridgeSettings)
    _serve(config, path, "slowjobs-bridge", lambda: bridge.Bridge(config, secrets))


@main.command("persister")
@click.argument("instance", type=click.Choice(["requests", "results"]))
@_config_option()
def persister_command(instance: str, path: Path | None) -> None:
    """Run a persister: requests, or results, from Kafka to PostgreSQL."""
    path = path or settings.CONFIG_DIRECTORY / f"persister-{instance}.toml"
    config, secrets = _load(path, settings.PersisterSettings)
    if config.instance != instance:
        _fail(f"{path}: is the persister of {config.instance}, not of {instance}", EXIT_USAGE)
    _serve(config, path, f"slowjobs-persister@{instance}", lambda: persister.Persister(config, secrets))


@main.command("worker")
@click.argument("pool")
@_config_option()
def worker_command(pool: str, path: Path | None) -> None:
    """Run the worker of POOL on this host."""
    path = path or settings.CONFIG_DIRECTORY / f"worker-{pool}.toml"
    config, secrets = _load(path, settings.WorkerSettings)
    if config.pool.name != pool:
        _fail(f"{path}: is the worker of pool {config.pool.name!r}, not of {pool!r}", EXIT_USAGE)
    _serve(config, path, f"slowjobs-worker@{pool}", lambda: worker_.Worker(config, secrets, path))


# Operations


@main.command("setup")
@click.option("--check", "only_check", is_flag=True, help="Make nothing; exit 1 if anything is missing.")
@_json_option
@_site_option
def setup_command(path: Path, *, only_check: bool, as_json: bool) -> None:
    """Make what is missing: Kafka topics, NSQ topics and channels, tables.

    \b
    Examples:
      slowjobs setup --check    what is missing?
      slowjobs setup            make it
    """
    config, secrets = _load(path, settings.CliSettings)
    items, failures = asyncio.run(setup.setup(config, secrets, only_check=only_check))
    if as_json:
        document = {"items": [item.as_json() for item in items], "errors": failures}
        click.echo(json.dumps({"v": documents.VERSION, **document}))
    else:
        for item in items:
            click.echo(f"{item.state:8} {item.what:8} {item.name} ({item.where})")
        for error in failures:
            click.echo(f"failed: {error}", err=True)
    sys.exit(EXIT_FAILED if failures or any(item.state == "missing" for item in items) else EXIT_DONE)


@main.command("check")
@click.option(
    "--offline",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Only check this configuration file, of any service; ask no server.",
)
@_json_option
@_site_option
def check_command(path: Path, offline: Path | None, *, as_json: bool) -> None:
    """Prove the configuration and every connection.

    \b
    Examples:
      slowjobs check
      slowjobs check --offline /etc/slowjobs/bridge.toml
    """
    if offline:
        with _configuration_errors():
            # Only a service can read its secrets; without any, librdkafka would miss them.
            secrets = settings.Credentials({"sasl.username": "-", "sasl.password": "-"}, None)
            kafka.check_properties(settings.load_any(offline).kafka, secrets)
        return
    config, secrets = _load(path, settings.CliSettings)
    findings = asyncio.run(check.check(config, secrets))
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "findings": [finding.as_json() for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else 'FAILED':7} {finding.subject}: {finding.answer}")
    sys.exit(EXIT_DONE if all(finding.ok for finding in findings) else EXIT_FAILED)


@main.command("status")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2,
    show_default=True,
    metavar="SECONDS",
    help="How long --watch waits before it looks again.",
)
@_json_option
@_site_option
def status_command(path: Path, *, watch: bool, interval: float, as_json: bool) -> None:
    """Show lanes, nsqd hosts, workers and services. Exit 1 when something does not answer.

    \b
    Examples:
      slowjobs status
      slowjobs status --watch
      slowjobs status --watch --interval 60 >> status.log
      slowjobs status --json | jq '.lanes[] | {name, unfinished}'
    """
    if watch and as_json:
        raise click.UsageError("--json prints one document and --watch has no end: take one of them.")
    config, secrets = _load(path, settings.CliSettings)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(config, secrets, interval))
        return
    document = asyncio.run(status_.read(config, secrets))
    if as_json:
        click.echo(json.dumps(document))
    else:
        _console.print(*status_.tables(document))
        for error in document["errors"]:
            click.echo(f"error: {error}", err=True)
    sys.exit(EXIT_FAILED if document["errors"] else EXIT_DONE)


async def _watch(config: settings.CliSettings, secrets: settings.Credentials, interval: float) -> NoReturn:
    """Show the status for ever: in one place of a terminal, one below the other in a file or a pipe."""
    # Into a file the live display would write nothing but the last one.
    display = rich.live.Live(console=_console, auto_refresh=False) if _console.is_terminal else contextlib.nullcontext()
    with display as live:
        while True:
            document = await status_.read(config, secrets)
            errors_ = [rich.text.Text(f"error: {error}") for error in document["errors"]]
            picture = rich.console.Group(documents.now(), *status_.tables(document), *errors_)
            if live:
                live.update(picture, refresh=True)
            else:
                _console.print(picture)
            await asyncio.sleep(interval)


@main.command("enqueue")
@click.argument("lane")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where lines that are not sent go, with their reasons. [default: FILE.rejects.jsonl, or rejects.jsonl]",
)
@_json_option
@_site_option
def enqueue_command(path: Path, lane: str, file: Path, rejects: Path | None, *, as_json: bool) -> None:
    """Send each line of FILE (JSON lines; - for standard input) to LANE as a request.

    Each line is checked first; one that the lane's kind does not accept goes to the rejects file. Exit 1 if any did.

    \b
    Examples:
      slowjobs enqueue fixity-check requests.jsonl
      zcat requests.jsonl.gz | slowjobs enqueue fixity-check - --rejects /tmp/rejects.jsonl
    """
    config, secrets = _load(path, settings.CliSettings)
    if lane not in config.lanes:
        _fail(f"there is no lane {lane!r}; lanes: {', '.join(config.lanes)}", EXIT_USAGE)
    from_stdin = str(file) == "-"
    rejects = rejects or (Path("rejects.jsonl") if from_stdin else file.with_name(f"{file.name}.rejects.jsonl"))
    with _open(file) as lines, _rejects_file(rejects) as reject, _progress(file, lane) as advance, _server_errors():
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
    sys.exit(EXIT_FAILED if refused else EXIT_DONE)


@contextlib.contextmanager
def _open(file: Path) -> Iterator[io.BufferedReader]:
    if str(file) == "-":
        yield cast("io.BufferedReader", sys.stdin.buffer)
        return
    with _file_errors(), file.open("rb") as lines:
        yield lines


@contextlib.contextmanager
def _rejects_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes a line; the file is made by the first, but tried at once."""
    with _file_errors():
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
def _file_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _fail(f"failed: {error}", EXIT_FAILED)


@contextlib.contextmanager
def _progress(file: Path, lane: str) -> Iterator[Callable[[int], None]]:
    """Show on standard error how much of the file is acknowledged, if that is a terminal."""
    total = None if str(file) == "-" else file.stat().st_size
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"to {lane}", total=total)
        yield lambda count: bar.advance(task, count)


@main.command("try")
@click.argument("pool")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--lane", help="Whose kind checks the requests; needed when the pool's lanes are of several kinds.")
@_json_option
@_config_option()
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
    with _configuration_errors():
        config = settings.load(path, settings.WorkerSettings)
    if config.pool.name != pool:
        _fail(f"{path}: is the worker of pool {config.pool.name!r}, not of {pool!r}", EXIT_USAGE)
    lane = _lane_to_try(config, lane)
    tries: list[try_.Try] = []

    async def _run(lines: io.BufferedReader) -> None:
        async for tried in try_.run(config, lane, lines):
            tries.append(tried)
            if not as_json:
                _print_try(tried)

    with _open(file) as lines, _file_errors(), _configuration_errors():
        asyncio.run(_run(lines))
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "tries": [tried.as_json() for tried in tries]}))
    else:
        counts = Counter(tried.name for tried in tries)
        summary = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        click.echo(f"{len(tries)} tried" + (f": {summary}" if tries else ""))
    sys.exit(EXIT_DONE if all(tried.good for tried in tries) else EXIT_FAILED)


def _lane_to_try(config: settings.WorkerSettings, lane: str | None) -> str:
    lanes = ", ".join(config.lanes)
    if lane is None and len({known.kind for known in config.lanes.values()}) > 1:
        _fail(f"the lanes of pool {config.pool.name!r} are of several kinds: choose one by --lane: {lanes}", EXIT_USAGE)
    if lane not in (None, *config.lanes):
        _fail(f"pool {config.pool.name!r} has no lane {lane!r}; lanes: {lanes}", EXIT_USAGE)
    return lane or next(iter(config.lanes))


def _print_try(tried: try_.Try) -> None:
    about = tried.as_json()
    click.echo(f"{about['outcome']:8} {about['seconds']:8.3f} s  {about['key'] or '-'}")
    if "result" in about:
        click.echo(f"    {json.dumps(about['result'], ensure_ascii=False)}")
    for line in about.get("reason", "").splitlines():
        click.echo(f"    {line}")


@main.group("dead")
def dead_group() -> None:
    """Look at dead letters: requests that came to no result, each with its reason."""


@dead_group.command("list")
@click.option("--lane", help="Only this lane's.")
@click.option("--reason", help="Only those with this reason.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@_json_option
@_site_option
def dead_list_command(path: Path, lane: str | None, reason: str | None, limit: int, *, as_json: bool) -> None:
    """List dead letters, the newest last, and count them by reason.

    \b
    Examples:
      slowjobs dead list --lane fixity-check
      slowjobs dead list --reason attempts-exhausted --json
    """
    config, secrets = _load(path, settings.CliSettings)
    with _server_errors():
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
        _console.print(_dead_table(shown))
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
