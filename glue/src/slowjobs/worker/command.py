"""Handlers that are commands: one process for each request, JSON in, JSON out."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

from slowjobs import kafka, outcomes
from slowjobs.worker import processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from slowjobs import kinds, settings

#: exit statuses with a meaning, from sysexits.h.
EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_TEMPFAIL = 75
#: seconds to read what a command that has ended has written; only what left its process group can make it wait.
_LAST_OUTPUT_SECONDS = 5.0
#: bytes of standard error that are kept as the reason.
_REASON_BYTES = 2000
#: setpriv makes the kernel end the command when the worker dies, however it dies.
_GUARD = ("setpriv", "--pdeathsig", "KILL", "--")


class CommandHandler:
    """Run a pool's command: the request on standard input, one JSON object on standard output.

    Exit 0 is the result, 75 ``Retry``, 69 ``Busy``, 65 ``Reject``; any other status, a signal or the time limit is
    ``Failed``. The end of standard error is the reason, and all of it is in the journal. The command and what it has
    started are ended with the try.
    """

    def __init__(self, pool: settings.Pool) -> None:
        self._command = pool.handler.command or ()
        self._directory = pool.directory
        self._time_limit_seconds = pool.task_timeout_seconds
        self._journal = processes.Journal()

    async def start(self) -> None:
        """Do nothing: each request has a process of its own."""

    def configure(self, pool: settings.Pool) -> None:
        """Take a new time limit, for the tries to come."""
        self._time_limit_seconds = pool.task_timeout_seconds

    async def close(self) -> None:
        """Do nothing: no try leaves anything behind."""

    async def process(self, request: kinds.Request) -> outcomes.Outcome:
        """Run the command once. When cancelled, the command is ended first."""
        limit = self._time_limit_seconds
        lines = processes.Lines(self._journal, request.key)
        try:
            async with _running(self._command, str(self._directory), lines) as (transport, run):
                _feed(transport, request.raw)
                try:
                    async with asyncio.timeout(limit):
                        await run.ended.wait()
                except TimeoutError:
                    return outcomes.Failed(f"still running after {limit:g} s: ended")
                processes.kill_group(transport.get_pid())  # what it left behind may hold its output open
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_OUTPUT_SECONDS):
                        await run.closed.wait()
                return _judge(
                    transport.get_returncode() or 0, bytes(run.output), run.errors.decode(errors="replace").strip()
                )
        except OSError as error:
            return outcomes.Failed(f"could not start {self._command[0]} in {self._directory}: {error}")


class _Run(asyncio.SubprocessProtocol):
    """What comes from a running command.

    ``ended``: there is nothing more to wait for, it has exited or written too much; ``closed``: its output has ended.
    """

    def __init__(self, lines: processes.Lines) -> None:
        self._lines = lines
        self.output = bytearray()
        self.errors = b""
        self.ended = asyncio.Event()
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self.output += data
            if len(self.output) > kafka.MAX_BODY_BYTES:
                self.ended.set()
        else:
            self.errors = (self.errors + data)[-_REASON_BYTES:]
            self._lines.feed(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._open.discard(fd)
        if not self._open:
            self.closed.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.ended.set()


def _judge(status: int, output: bytes, reason: str) -> outcomes.Outcome:
    if len(output) > kafka.MAX_BODY_BYTES:
        too_much = f"more than {kafka.MAX_BODY_BYTES} bytes on standard output"
        return outcomes.Reject(too_much, code="result-too-large")
    how = processes.how_it_ended(status)
    if status == 0:
        return outcomes.Result(output.strip())
    if status == EX_DATAERR:
        return outcomes.Reject(reason or how)
    if status == EX_UNAVAILABLE:
        return outcomes.Busy(reason=reason or how)
    if status == EX_TEMPFAIL:
        return outcomes.Retry(reason=reason or how)
    return outcomes.Failed(f"{how}: {reason}" if reason else how)


@contextlib.asynccontextmanager
async def _running(
    command: tuple[str, ...], directory: str, lines: processes.Lines
) -> AsyncIterator[tuple[asyncio.SubprocessTransport, _Run]]:
    """Start the command in a process group of its own, which is ended afterwards.

    Not by asyncio's streams: their ``wait`` lasts until all pipes are closed, also one that nobody reads any more or
    that a process holds which has left the group.
    """
    transport, run = await asyncio.get_running_loop().subprocess_exec(
        lambda: _Run(lines),
        *_GUARD,
        *command,
        cwd=directory,
        env=processes.environment(),
        start_new_session=True,
    )
    try:
        yield transport, run
    finally:
        processes.kill_group(transport.get_pid())
        await processes.wait_for_killed(run.exited, transport.get_pid())
        transport.close()
        lines.finish()


def _feed(transport: asyncio.SubprocessTransport, request: bytes) -> None:
    """Write the request beside the run; a command need not read it to the end."""
    stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
    stdin.write(request + b"\n")
    stdin.write_eof()
