"""Handlers that are commands: one process for each request, JSON in, JSON out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from slowjobs import kafka, kinds, outcomes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from slowjobs import settings

#: exit statuses with a meaning, from sysexits.h.
EX_DATAERR = 65
EX_TEMPFAIL = 75
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
            async with _running(self._command, str(self._directory)) as process:
                try:
                    async with asyncio.timeout(self._time_limit_seconds):
                        output, errors = await _talk(process, request.raw)
                except TimeoutError:
                    return outcomes.Retry(f"still running after {self._time_limit_seconds:g} s: ended")
        except OSError as error:
            return outcomes.Retry(f"could not start {self._command[0]} in {self._directory}: {error}")
        reason = errors.decode(errors="replace").strip()
        return _judge(process.returncode, output, reason)


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
async def _running(command: tuple[str, ...], directory: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the command in a process group of its own, of which nothing is left afterwards."""
    process = await asyncio.create_subprocess_exec(
        *_GUARD,
        *command,
        cwd=directory,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name not in _OF_THE_SERVICE},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill_group(process.pid)  # at the time limit, or cancelled
        await process.wait()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


async def _talk(process: asyncio.subprocess.Process, request: bytes) -> tuple[bytes, bytes]:
    """Feed the request and read to the end; return standard output and the end of standard error."""
    feeding = asyncio.create_task(_feed(process.stdin, request))
    output = asyncio.create_task(_head(process.stdout))
    errors = asyncio.create_task(_tail(process.stderr))
    exiting = asyncio.create_task(_exit(process.pid))
    try:
        await asyncio.wait([exiting, output], return_when=asyncio.FIRST_COMPLETED)
        if output.done() and len(output.result()) <= kafka.MAX_BODY_BYTES:
            await exiting
        _kill_group(process.pid)  # what it left behind may hold its output open
        return await output, await errors
    finally:
        for task in (feeding, output, errors, exiting):
            task.cancel()


async def _exit(pid: int) -> None:
    """Return when the process has ended; asyncio's own wait can last until its pipes are closed, too."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _feed(stdin: asyncio.StreamWriter | None, request: bytes) -> None:
    if stdin is None:
        return
    # A command need not read its input to the end.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(request + b"\n")
        await stdin.drain()
        stdin.close()


async def _head(stream: asyncio.StreamReader | None) -> bytes:
    output = bytearray()
    while stream and len(output) <= kafka.MAX_BODY_BYTES and (chunk := await stream.read(65536)):
        output += chunk
    return bytes(output)


async def _tail(stream: asyncio.StreamReader | None) -> bytes:
    end = b""
    while stream and (chunk := await stream.read(65536)):
        end = (end + chunk)[-_REASON_BYTES:]
    return end
