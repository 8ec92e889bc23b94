"""What the subcommands share: options, files, exit statuses, and how a failure is told."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import types
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click
import rich.console

from slowjobs import documents, errors, kafka, settings

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DEADLINE = 3
EXIT_REFUSED = 4
EXIT_FENCED = 5
EXIT_SILENT = 6

#: characters; what is not read at a terminal need not fit one.
_WIDE = 160
_LONGEST = timedelta(days=36500)
console = rich.console.Console(width=None if sys.stdout.isatty() else _WIDE)


class _Duration(click.ParamType[timedelta]):
    """A time such as 8d, 12h, 90m or 30s, as a timedelta of at most 100 years."""

    name = "duration"
    _units = types.MappingProxyType({"s": "seconds", "m": "minutes", "h": "hours", "d": "days"})

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,10}(?:\.\d{1,6})?)([smhd])", value, re.ASCII)
        if match is None:
            self.fail(f"expected a number and a unit, such as 8d, 12h, 90m or 30s, got {value!r}", param, ctx)
        seconds = float(match[1]) * timedelta(**{self._units[match[2]]: 1}).total_seconds()
        if seconds > _LONGEST.total_seconds():
            self.fail(f"expected at most {_LONGEST.days}d, got {value!r}", param, ctx)
        return timedelta(seconds=seconds)


DURATION = _Duration()

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


def config_option(default: str | None = None) -> Callable[[Any], Any]:
    """Return the option ``--config``."""
    return click.option(
        "--config",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        default=default,
        envvar="SLOWJOBS_CONFIG" if default else None,
        show_default=default is not None,
        help="The configuration file.",
    )


site_option = config_option(str(settings.CONFIG_DIRECTORY / "slowjobs.toml"))


def load(path: Path, expected: type[settings.S]) -> tuple[settings.S, settings.Credentials]:
    """Read a configuration and the secrets; end with EXIT_USAGE when something is wrong with them."""
    with configuration_errors():
        config, secrets = settings.load(path, expected), settings.credentials()
        kafka.check_properties(config.kafka, secrets)
    return config, secrets


@contextlib.contextmanager
def configuration_errors() -> Iterator[None]:
    """End with EXIT_USAGE for a mistake in a configuration."""
    try:
        yield
    except settings.ConfigurationError as error:
        fail(str(error), EXIT_USAGE)


class Interrupted(BaseException):
    """A signal came that asks this command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        #: as shells say it
        self.exit_status = 128 + number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted for Ctrl-C, SIGTERM and a lost terminal, so that a command can say how far it got."""

    def _interrupt(number: int, _: object) -> None:
        raise Interrupted(number)

    # What is ignored stays so: nohup.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(message: str, status: int) -> NoReturn:
    """Say why, and end."""
    click.echo(message, err=True)
    sys.exit(status)


@contextlib.contextmanager
def server_errors() -> Iterator[None]:
    """End with EXIT_FAILED for a server that is away or refuses, or tells what only a newer release can read."""
    try:
        yield
    except documents.UnknownVersionError as error:
        fail(f"failed: {error}", EXIT_FAILED)
    except errors.SERVER_ERRORS as error:
        fail(f"failed: {errors.text(error)}. `slowjobs check` shows which server.", EXIT_FAILED)


@contextlib.contextmanager
def open_lines(file: Path) -> Iterator[io.BufferedReader]:
    """Open FILE, or standard input for ``-``."""
    if str(file) == "-":
        yield cast("io.BufferedReader", sys.stdin.buffer)
        return
    with file_errors(), file.open("rb") as lines:
        yield lines


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """End with EXIT_FAILED for a file that cannot be read or written."""
    try:
        yield
    except OSError as error:
        fail(f"failed: {error}", EXIT_FAILED)
