"""What commands and Python handlers' processes have in common: where they run, what they print, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger()

#: what systemd tells the worker and a handler has no use for.
_OF_THE_SERVICE = {"CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}

#: bytes; of a longer line the rest is left out.
LINE_BYTES = 8192
#: lines of a pool, and in how many seconds. journald's own limit would leave out the worker's lines as well.
_LINES = 1000
_LINES_SECONDS = 10.0
#: bytes; all that a pipe holds.
_PIPE_BYTES = 65536
#: seconds to wait for what was killed.
KILLED_SECONDS = 5.0
#: control characters, which could end a line for journald, as text.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), 127)}


def environment() -> dict[str, str]:
    """Return the environment of a handler's process."""
    return {name: value for name, value in os.environ.items() if name not in _OF_THE_SERVICE}


def kill_group(group: int) -> None:
    """End all processes of a group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


async def wait(events: Iterable[asyncio.Event], seconds: float) -> bool:
    """Wait for all ``events``; false when they took longer than ``seconds``.

    Also in a task that was cancelled: before Python 3.11.3 asyncio.timeout ends as another cancellation there.
    """

    async def _all() -> None:
        for event in events:
            await event.wait()

    waiting = asyncio.create_task(_all())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
    return bool(done)


async def wait_for_killed(gone: asyncio.Event, process: int | None) -> None:
    """Wait until ``process``, which was killed, is ``gone``.

    What the kernel holds, on a dead file system say, is left to it: it must not hold up others.
    """
    if not await wait([gone], KILLED_SECONDS):
        log.error("handler.not_ended", process=process)


def how_it_ended(status: int, last_words: str = "") -> str:
    """Return an exit status, negative for a signal, as text. Before a signal there are no words of a process's own."""
    if status >= 0:
        return f"exit {status}: {last_words}" if last_words else f"exit {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:  # the real-time signals have no names
        return f"ended by signal {-status}"


class Journal:
    """The output of a pool's handlers as events in the journal, no more than it can take."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: lines that may still be written; below 0 once it was said that some are left out.
        self._room = 0
        self._fills_at = clock()

    def write(self, key: str | None, lines: list[bytes]) -> None:
        """Write the first of ``lines`` for which there is room. ``key``: of the request that was being worked on."""
        if self._clock() >= self._fills_at:
            self._room = _LINES
            self._fills_at = self._clock() + _LINES_SECONDS
        for line in lines[: max(0, self._room)]:
            log.info("handler.output", key=key, line=_text(line))
        if 0 <= self._room < len(lines):
            log.warning("handler.output_left_out", key=key, reason=f"over {_LINES} lines in {_LINES_SECONDS:g} s")
        self._room -= len(lines)


class Lines:
    """Cut what one process writes into lines. ``key``: of the request that it works on; ``last``: its last line."""

    def __init__(self, journal: Journal, key: str | None = None) -> None:
        self.key = key
        self.last = ""
        self._journal = journal
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take more of the output."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: LINE_BYTES + 1]
        self._write(whole)

    def finish(self) -> None:
        """Take what there is as the last line."""
        self._write([self._rest])
        self._rest = b""

    def _write(self, lines: list[bytes]) -> None:
        if said := [line for line in lines if line and not line.isspace()]:
            self.last = _text(said[-1])
            self._journal.write(self.key, said)


class Output:
    """The reading end of a process's output. ``theirs``: its other end, to be closed here once the process has it."""

    def __init__(self, journal: Journal) -> None:
        self.lines = Lines(journal)
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def end(self) -> None:
        """Read what was written until now; what comes later is of no request."""
        self._read()
        self.lines.finish()
        self.lines.key = None

    def close(self) -> None:
        """Read what was written, and no more."""
        self.end()
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)

    def _read(self) -> None:
        try:
            data = os.read(self._ours, _PIPE_BYTES)
        except BlockingIOError:
            return
        if not data:  # nobody can write to it any more
            asyncio.get_running_loop().remove_reader(self._ours)
        self.lines.feed(data)


def _text(line: bytes) -> str:
    shown = line[:LINE_BYTES] + "…".encode() if len(line) > LINE_BYTES else line
    return shown.decode(errors="backslashreplace").rstrip().translate(_VISIBLE)
