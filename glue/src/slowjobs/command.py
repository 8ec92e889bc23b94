"""Handlers that are commands: one process for each request, JSON in, JSON out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, cast

from slowjobs import kafka, kinds, outcomes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from slowjobs import settings

#: exit statuses with a meaning, from sysexits.h.
EX_DATAERR = 65
EX_TEMPFAIL = 75
#: seconds to read what a command that has ended has written; only what left its process group can make it wait.
_LAST_OUTPUT_SECONDS = 5.0
#: bytes of standard error that are kept as the reason.
_REASON_BYTES = 2000
#: what systemd tells the worker and a command has no use for.
_OF_THE_SERVICE = {"CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}
#: setpriv makes the kernel end the command when the worker dies, however it dies.
_GUARD = ("setpriv", "--pdeathsig", "KILL", "--")


class CommandHandler:
    """Run a pool's command: the request on standard input, one JSON object on standard output.

    Exit 0 is the result, 75 a retry, 65 a rejection; anything else, a signal, time-out or other output is an
    unexpected error, which is tried again. The command and what it started are ended at the time limit.
    """

    def __init__(self, pool: settings.Pool) -> None:
        self._command = pool.handler.command
        self._directory = pool.directory
        self._time_limit_seconds = pool.task_timeout_seconds

    async def process(self, request: kinds.Request) -> outcomes.Outcome:
        """Run the command once. When cancelled, the command is ended first."""
        try:
            async with _running(self._command, str(self._directory)) as (transport, run):
                _feed(transport, request.raw)
                try:
                    async with asyncio.timeout(self._time_limit_seconds):
                        await run.ended.wait()
                except TimeoutError:
                    return outcomes.Retry(f"still running after {self._time_limit_seconds:g} s: ended")
                _kill_group(transport.get_pid())  # what it left behind may hold its output open
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_OUTPUT_SECONDS):
                        await run.closed.wait()
                return _judge(
                    transport.get_returncode(), bytes(run.output), run.errors.decode(errors="replace").strip()
                )
        except OSError as error:
            return outcomes.Retry(f"could not start {self._command[0]} in {self._directory}: {error}")


class _Run(asyncio.SubprocessProtocol):
    """What comes from a running command.

    ``ended``: there is nothing more to wait for, it has exited or written too much; ``closed``: its output has ended.
    """

    def __init__(self) -> None:
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

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._open.discard(fd)
        if not self._open:
            self.closed.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.ended.set()


def _judge(status: int | None, output: bytes, reason: str) -> outcomes.Outcome:
    if len(output) > kafka.MAX_BODY_BYTES:
        return outcomes.Reject("result-too-large", f"more than {kafka.MAX_BODY_BYTES} bytes on standard output")
    if status == 0:
        try:
            kinds.job_outcome(kinds.parse_object(output))
        except kinds.RejectedError as error:
            return outcomes.Retry(f"exit 0, but standard output is not the result object: {error}")
        return outcomes.Result(output.strip())
    if status == EX_DATAERR:
        return outcomes.Reject("rejected", reason or "exit 65")
    if status == EX_TEMPFAIL:
        return outcomes.Retry(reason or "exit 75")
    ended = f"ended by {signal.Signals(-status).name}" if status is not None and status < 0 else f"exit {status}"
    return outcomes.Retry(f"{ended}: {reason}" if reason else ended)


@contextlib.asynccontextmanager
async def _running(command: tuple[str, ...], directory: str) -> AsyncIterator[tuple[asyncio.SubprocessTransport, _Run]]:
    """Start the command in a process group of its own, of which nothing is left afterwards.

    Not by asyncio's streams: their ``wait`` lasts until all pipes are closed, also one that nobody reads any more or
    that a process holds which has left the group.
    """
    transport, run = await asyncio.get_running_loop().subprocess_exec(
        _Run,
        *_GUARD,
        *command,
        cwd=directory,
        env={name: value for name, value in os.environ.items() if name not in _OF_THE_SERVICE},
        start_new_session=True,
    )
    try:
        yield transport, run
    finally:
        _kill_group(transport.get_pid())
        await run.exited.wait()
        transport.close()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _feed(transport: asyncio.SubprocessTransport, request: bytes) -> None:
    """Write the request beside the run; a command need not read it to the end."""
    stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
    stdin.write(request + b"\n")
    stdin.write_eof()
