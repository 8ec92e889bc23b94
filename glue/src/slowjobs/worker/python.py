"""Handlers that are Python classes: child processes that are ready before their requests come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar, cast

import structlog

from slowjobs import kafka, outcomes, settings
from slowjobs.worker import child, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from slowjobs import kinds

log = structlog.get_logger()

#: bytes of a frame from a child: a result and what is said of it.
_MAX_FRAME_BYTES = kafka.MAX_BODY_BYTES + 1024 * 1024
_READ_BYTES = 65536
#: seconds in which a child that is not needed any more may end by itself.
_LEAVE_SECONDS = 3.0

_T = TypeVar("_T")


class PythonHandler:
    """Run a pool's class in ``slots`` child processes, each of which answers one request after the other.

    ``want(request)``, where there is one, false: skipped. ``process(request, key=key)`` returns a dict, or raises
    ``outcomes.Retry``, ``Busy`` or ``Reject``. Any other end of a try, of its process or of its time is ``Failed``; its
    process is replaced. When the worker is gone, so are all processes.
    """

    def __init__(self, pool: settings.Pool) -> None:
        self._pool = pool
        self._journal = processes.Journal()
        self._nursery: _Nursery | None = None
        self._opening = asyncio.Lock()
        #: ready ones are at the right, where the next is taken; those that start are at the left.
        self._idle: deque[_Child] = deque()
        self._running = 0
        self._filling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Import the class, and start a child for each slot without waiting for what it makes.

        Raises settings.ConfigurationError when the import fails, OSError when another start may go better.
        """
        try:
            await self._import()
        except BaseException:
            await self.close()
            raise
        await self._fill()

    async def process(self, request: kinds.Request) -> outcomes.Outcome:
        """Try ``request`` once. When cancelled, its child is ended with all that it has started."""
        self._running += 1
        try:
            used, outcome = await self._process(request)
        except OSError as error:
            return outcomes.Failed(f"could not start a process: {error}")
        finally:
            self._running -= 1
        if used.made:
            await self._fill()  # where a handler cannot be made, the next try sees whether it still cannot
        return outcome

    def configure(self, pool: settings.Pool) -> None:
        """Take new slots, time limit and recycling; what runs goes on as it began."""
        self._pool = pool
        while self._idle and self._running + len(self._idle) > pool.slots:
            self._idle.popleft().leave()
        self._filling = asyncio.create_task(self._fill())

    async def close(self) -> None:
        """Let children that are idle end by themselves, end all others."""
        if self._filling:
            self._filling.cancel()
        idle = list(self._idle)
        self._idle.clear()
        if self._nursery:
            await self._nursery.close(idle)

    async def _import(self) -> None:
        first = self._start_child(await self._open())
        self._idle.append(first)
        failure = await first.imported
        if failure:
            why = f"pool.handler.python: {self._pool.handler.python}: {failure.reason}"
            raise ChildProcessError(why) if first.broken_off else settings.ConfigurationError(why)

    async def _process(self, request: kinds.Request) -> tuple[_Child, outcomes.Outcome]:
        chosen = self._idle.pop() if self._idle else self._start_child(await self._open())
        limit = self._pool.task_timeout_seconds
        try:
            async with asyncio.timeout(limit):
                return chosen, await chosen.run(request)
        except TimeoutError:
            return chosen, outcomes.Failed(f"still running after {limit:g} s: ended")
        finally:
            await self._put_back(chosen)

    async def _put_back(self, used: _Child) -> None:
        if not used.free:
            await used.end()
        elif self._worn(used) or self._running + len(self._idle) > self._pool.slots:
            used.leave()
        else:
            self._idle.append(used)

    def _worn(self, used: _Child) -> bool:
        tasks, megabytes = self._pool.recycle.tasks, self._pool.recycle.megabytes
        return bool((tasks and used.tries >= tasks) or (megabytes and used.memory_bytes > megabytes * 1_000_000))

    async def _fill(self) -> None:
        """Start a child for each slot that has none."""
        try:
            nursery = await self._open()
            while self._running + len(self._idle) < self._pool.slots:
                self._idle.appendleft(self._start_child(nursery))
        except OSError as error:
            log.warning("handler.not_started", error=str(error))  # the next try starts one

    def _start_child(self, nursery: _Nursery) -> _Child:
        return nursery.start_child(self._pool.handler.options)

    async def _open(self) -> _Nursery:
        async with self._opening:
            if self._nursery is None or self._nursery.gone.is_set():
                self._nursery = await _Nursery.open(self._pool, self._journal, self._ended)
            return self._nursery

    def _ended(self, ended: _Child) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(ended)
            log.warning("handler.idle_child_ended", error=ended.how)


class _Nursery(asyncio.SubprocessProtocol):
    """The worker's side of the process that starts children and ends them (slowjobs.worker.child).

    ``gone``: it has ended, and so have all its children.
    """

    _transport: asyncio.SubprocessTransport

    def __init__(self, control: socket.socket, journal: processes.Journal, ended: Callable[[_Child], None]) -> None:
        self.gone = asyncio.Event()
        self._control = control
        self._journal = journal
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._output = processes.Output(journal)
        self._inbox = bytearray()
        #: records that the socket has no room for, with the descriptors that go with them and are closed here then.
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        #: number -> a child that has not ended.
        self._children: dict[int, _Child] = {}
        self._numbers = itertools.count(1)

    @classmethod
    async def open(cls, pool: settings.Pool, journal: processes.Journal, ended: Callable[[_Child], None]) -> _Nursery:
        """Start it. It takes orders at once, and carries them out when it has imported the handler."""
        handler = pool.handler
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        nursery = cls(ours, journal, ended)
        argv = (str(handler.interpreter), "-P", "-m", "slowjobs.worker.child", "nursery", str(handler.python))
        try:
            await nursery._loop.subprocess_exec(
                lambda: nursery,
                *argv,
                *(str(theirs.fileno()), str(os.getpid()), "fork" if handler.preload else "exec"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=nursery._output.theirs,
                stderr=nursery._output.theirs,
                pass_fds=(theirs.fileno(),),
                cwd=str(pool.directory),
                env=processes.environment(),
                start_new_session=True,
            )
        except BaseException:
            nursery._output.close()
            ours.close()
            raise
        finally:
            os.close(nursery._output.theirs)
            theirs.close()
        nursery._loop.add_reader(ours, nursery._read)
        return nursery

    def start_child(self, options: dict[str, Any]) -> _Child:
        """Start a child. It need not run yet to be given its first request."""
        number = next(self._numbers)
        started = _Child(self._journal, options, kill=lambda: self._send(child.KILL, number))
        self._children[number] = started
        self._send(child.START, number, started.theirs)
        return started

    async def close(self, idle: Collection[_Child]) -> None:
        """End all: children that are ``idle`` by themselves if they do so in time, then the nursery."""
        with contextlib.suppress(ProcessLookupError):
            self._transport.terminate()  # while it imports; later it does not listen
        for one in list(self._children.values()):
            if one in idle:
                one.leave()
            else:
                one.kill()
        await processes.wait([one.gone for one in self._children.values()], _LEAVE_SECONDS)
        self._hang_up()  # it ends what is left, and itself
        if not await processes.wait([self.gone], processes.KILLED_SECONDS):
            processes.kill_group(self._transport.get_pid())
            await processes.wait_for_killed(self.gone, self._transport.get_pid())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def process_exited(self) -> None:
        while self._read():
            pass
        self._hang_up()
        self._output.close()
        status = self._transport.get_returncode() or 0
        how = f"the process that children are forked from: {processes.how_it_ended(status, self._output.lines.last)}"
        processes.kill_group(self._transport.get_pid())  # what the import has started
        for number, one in list(self._children.items()):
            one.kill_group()  # the child went with its parent; this is for what it has started
            self._forget(number, status, how)
        self._transport.close()
        self.gone.set()

    def _send(self, command: bytes, number: int, descriptors: tuple[int, ...] = ()) -> None:
        if self._control.fileno() < 0:
            _close(descriptors)
            return  # it is gone, or told to go, and its children with it
        self._outbox.append((child.RECORD.pack(command, number, 0), descriptors))
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            record, descriptors = self._outbox[0]
            try:
                socket.send_fds(self._control, [record], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._control, self._flush)
                return
            except OSError:
                self._loop.remove_writer(self._control)
                return  # it is gone, as process_exited will say
            self._outbox.popleft()
            _close(descriptors)
        self._loop.remove_writer(self._control)

    def _read(self) -> bool:
        """Take what has come; false when nothing has."""
        try:
            data = self._control.recv(_READ_BYTES)
        except OSError:
            return False
        if not data:
            self._loop.remove_reader(self._control)
            return False
        self._inbox += data
        while len(self._inbox) >= child.RECORD.size:
            what, number, value = child.RECORD.unpack_from(self._inbox)
            del self._inbox[: child.RECORD.size]
            if what == child.THREADS:
                log.warning("handler.threads", threads=value, advice="the import started them: set preload to false")
            else:
                self._forget(number, value, f"its process: {processes.how_it_ended(value)}")
        return True

    def _forget(self, number: int, status: int, how: str) -> None:
        ended = self._children.pop(number)
        ended.close(status, how)
        self._ended(ended)

    def _hang_up(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control)
            self._loop.remove_writer(self._control)
            self._control.close()
        for _, descriptors in self._outbox:
            _close(descriptors)
        self._outbox.clear()


class _Child:
    """The worker's side of a child: its channel, its output, and the try that it is at.

    ``imported``: None once it has the class, or why it has not. ``made``: it has an object of the class.
    ``tries``: how many it has answered; ``memory_bytes``: what was resident then. ``gone``: it has ended, with all that
    it has started; ``how`` says how. ``broken_off``: by a signal, or for want of a process: by nothing of its own.
    """

    def __init__(self, journal: processes.Journal, options: dict[str, Any], *, kill: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.imported: asyncio.Future[outcomes.Failed | None] = self._loop.create_future()
        self.made = False
        self.tries = 0
        self.memory_bytes = 0
        self.gone = asyncio.Event()
        self.how = ""
        self.broken_off = False
        self.kill = kill
        self._process: int | None = None
        self._ready: asyncio.Future[outcomes.Failed | None] = self._loop.create_future()
        self._answer: asyncio.Future[outcomes.Outcome] | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self._channel, theirs = socket.socketpair()
        self._output = processes.Output(journal)
        #: its own descriptors: channel and output.
        self.theirs = (theirs.detach(), self._output.theirs)
        self._inbox = bytearray()
        self._unsent = memoryview(b"")
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._read)
        self._write(child.pack({"options": options, "max_result_bytes": kafka.MAX_BODY_BYTES}))

    @property
    def free(self) -> bool:
        """It can take a request."""
        return self.made and self._answer is None and not self.gone.is_set()

    async def run(self, request: kinds.Request) -> outcomes.Outcome:
        """Let it try ``request``. When cancelled before it answers, it is free no more."""
        self._output.lines.key = request.key
        failure = await self._ready
        if failure:
            return failure
        self._answer = self._loop.create_future()
        self._write(child.pack({"key": request.key}, request.raw))
        return await self._answer

    def leave(self) -> None:
        """Let it end by itself, or end it if it takes too long."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        self._leaving = self._loop.call_later(_LEAVE_SECONDS, self.kill)

    async def end(self) -> None:
        """End it, with all that it has started."""
        self.kill()
        await processes.wait_for_killed(self.gone, self._process)

    def kill_group(self) -> None:
        """End what it has started; for when it has ended itself, unseen by the nursery."""
        if self._process:
            processes.kill_group(self._process)

    def close(self, status: int, how: str) -> None:
        """Take its last answer and output; it has ended by ``status``, and ``how`` says how."""
        while self._read():
            pass
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()
        self._output.close()
        if self._leaving:
            self._leaving.cancel()
        self.how = how
        self.broken_off = status < 0 or status == child.EX_OSERR
        self._fail(how)
        self.gone.set()

    def _write(self, data: bytes) -> None:
        self._unsent = memoryview(data)
        self._flush()

    def _flush(self) -> None:
        try:
            self._unsent = self._unsent[self._channel.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = memoryview(b"")  # it is going, as its nursery will say
        if self._unsent:
            self._loop.add_writer(self._channel, self._flush)
        else:
            self._loop.remove_writer(self._channel)

    def _read(self) -> bool:
        """Take what has come; false when nothing has."""
        try:
            data = self._channel.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel)  # it is going
            return False
        self._inbox += data
        try:
            while frame := child.unpack(self._inbox, _MAX_FRAME_BYTES):
                self._take(*frame)
        except (KeyError, TypeError, ValueError) as error:
            self.made = False
            self._loop.remove_reader(self._channel)
            self._output.end()
            self._fail(f"its process sent what is no answer: {error!r}")
            return False
        return True

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        match head["state"]:
            case "imported":
                self._process = head["process"]
                _settle(self.imported, None)
            case "ready":
                self.made = True
                _settle(self._ready, None)
            case "failed":
                self._output.end()
                self._fail(head["reason"])
            case "answered" if self._answer:
                outcome = _outcome(head, body)
                self.tries += 1
                self.memory_bytes = head["memory_bytes"]
                self._output.end()
                _settle(self._answer, outcome)
                self._answer = None
            case _:
                raise ValueError("unexpected")

    def _fail(self, reason: str) -> None:
        """Answer with ``reason`` whoever waits, now or later."""
        failure = outcomes.Failed(reason)
        _settle(self.imported, failure)
        _settle(self._ready, failure)
        if self._answer:
            _settle(self._answer, failure)


def _outcome(head: dict[str, Any], body: bytes) -> outcomes.Outcome:
    match head["outcome"]:
        case "result":
            return outcomes.Result(body)
        case "skipped":
            return outcomes.Skipped()
        case "retry":
            return outcomes.Retry(head["delay"], head["reason"])
        case "busy":
            return outcomes.Busy(head["delay"], head["reason"])
        case "reject":
            return outcomes.Reject(head["reason"], head["code"])
        case "failed":
            return outcomes.Failed(head["reason"])
    raise ValueError(head["outcome"])


def _settle(future: asyncio.Future[_T], value: _T) -> None:
    if not future.done():
        future.set_result(value)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
