"""The processes of a Python handler: they run in the pool's own interpreter, on nothing but the standard library.

``nursery``: imports the handler and forks a child for each slot. It ends a child together with all that it has started,
and ends all of them when the worker goes away in whatever way.
``child``: makes the handler and answers one request after the other.

Not a library's, because none fits: pebble leaves grandchildren alive and its children outlive a worker that is killed,
and multiprocessing's forkserver knows no interpreter but its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from slowjobs import outcomes

if TYPE_CHECKING:
    from collections.abc import Callable

#: between worker and nursery: what, a child's number, a value.
RECORD = struct.Struct("=cIi")
#: to the nursery. START carries two descriptors, the child's: its channel, and where its output goes.
START, KILL = b"S", b"K"
#: to the worker. ENDED: the value is the exit status, negative for a signal; THREADS: how many the import has started.
ENDED, THREADS = b"E", b"T"
#: the exit status of a child that could not be forked, from sysexits.h.
EX_OSERR = 71

#: between worker and child: bytes of a frame's head, a JSON object, and of its body.
_SIZES = struct.Struct("=II")
#: characters of a reason.
_REASON_CHARACTERS = 2000

_PR_SET_PDEATHSIG = 1


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """Return a frame."""
    text = json.dumps(head).encode()
    return _SIZES.pack(len(text), len(body)) + text + body


def unpack(buffer: bytearray, max_bytes: int) -> tuple[dict[str, Any], bytes] | None:
    """Take the first frame off ``buffer``; None while it is not there as a whole. ValueError for what is no frame."""
    if len(buffer) < _SIZES.size:
        return None
    head_size, body_size = _SIZES.unpack_from(buffer)
    if head_size + body_size > max_bytes:
        raise ValueError("a frame that is too long")
    body_start = _SIZES.size + head_size
    end = body_start + body_size
    if len(buffer) < end:
        return None
    head, body = json.loads(buffer[_SIZES.size : body_start]), bytes(buffer[body_start:end])
    del buffer[:end]
    return head, body


def main() -> None:
    """Be ``nursery module:Class DESCRIPTOR PARENT fork|exec``, or ``child module:Class DESCRIPTOR``."""
    role, name, descriptor, *rest = sys.argv[1:]
    _print_at_once()
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - pathlib is not loaded for this
    given = socket.socket(fileno=int(descriptor))
    if role == "nursery":
        parent, way = rest
        # Once it serves, the nursery sees the worker's end itself, and ends the children's children too.
        _die_with(int(parent))
        load = _preloaded(name) if way == "fork" else None
        _outlive()
        given = _Nursery(given, name, fork=way == "fork").serve()
        if load is None:
            _start_anew(name, given)
        _Child(given).work(load)
    else:
        _Child(given).work(lambda: _find(name))


# The nursery


class _Nursery:
    """Start children, end them, and tell the worker when they have ended."""

    def __init__(self, control: socket.socket, name: str, *, fork: bool) -> None:
        self._control = control
        self._name = name
        self._fork = fork
        #: process id -> number, of children that are not reaped: nobody else can have their ids.
        self._children: dict[int, int] = {}
        self._wake, self._waker = socket.socketpair()

    def serve(self) -> socket.socket:
        """Return the channel to the worker in each child that is forked; in the nursery itself never."""
        threads = len(os.listdir("/proc/self/task")) - 1  # noqa: PTH208
        if self._fork and threads:
            self._tell(THREADS, 0, threads)
        gc.collect()
        gc.freeze()  # a collection in a child must not write to all that it shares
        self._listen_to_signals()
        while True:
            ready, _, _ = select.select([self._control, self._wake], [], [])
            if self._control in ready:
                channel = self._obey()
                if channel:
                    return channel
            if self._wake in ready:
                self._wake.recv(4096)
                self._reap()

    def _listen_to_signals(self) -> None:
        # The worker decides when to stop, and what systemd or a terminal sends to all is for it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def _obey(self) -> socket.socket | None:
        try:
            record, descriptors, _, _ = socket.recv_fds(self._control, RECORD.size, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            record = b""
        if not record:
            self._end_all()
        command, number, _ = RECORD.unpack(record)
        if command == START:
            return self._start(number, *descriptors)
        for process in [process for process, known in self._children.items() if known == number]:
            _kill(process)
        return None

    def _start(self, number: int, channel: int, output: int) -> socket.socket | None:
        nursery = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            process = os.fork()
        except OSError as error:
            os.write(output, f"could not start a child: {error}\n".encode())
            self._tell(ENDED, number, EX_OSERR)
            process = None
        if process == 0:
            os.setsid()
            _die_with(nursery)
            self._leave_to_child(output)
            return socket.socket(fileno=channel)
        os.close(channel)
        os.close(output)
        if process:
            self._children[process] = number
        return None

    def _leave_to_child(self, output: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for ours in (self._control, self._wake, self._waker):
            ours.close()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            process = ended.si_pid
            if process in self._children:
                _kill(process)  # what it has started; its own id is its until it is reaped
            _, status = os.waitpid(process, 0)
            number = self._children.pop(process, None)
            if number is not None:
                self._tell(ENDED, number, os.waitstatus_to_exitcode(status))

    def _tell(self, what: bytes, number: int, value: int) -> None:
        try:
            self._control.send(RECORD.pack(what, number, value))
        except ConnectionError:  # children that are idle end with the worker, and may be seen before its own end
            self._end_all()

    def _end_all(self) -> NoReturn:
        for process in self._children:
            _kill(process)
        os.killpg(0, signal.SIGKILL)  # what the import has started, and this
        os._exit(0)


def _preloaded(name: str) -> Callable[[], Any]:
    """Import now. A failure is kept for the child, which tells the worker."""
    try:
        found = _find(name)
    except BaseException as error:  # noqa: BLE001 - SystemExit, too, is a handler's that cannot be imported
        failure = error

        def _fail() -> NoReturn:
            raise failure

        return _fail
    return lambda: found


def _find(name: str) -> Any:
    module, _, class_name = name.partition(":")
    return getattr(importlib.import_module(module), class_name)


def _start_anew(name: str, channel: socket.socket) -> NoReturn:
    channel.set_inheritable(True)
    os.execv(  # noqa: S606 - no shell, and the nursery's own interpreter
        sys.executable, [sys.executable, "-P", "-m", "slowjobs.worker.child", "child", name, str(channel.fileno())]
    )


def _kill(child: int) -> None:
    # It leads a group of its own as soon as it runs; before that it has started nothing.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def _die_with(parent: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _outlive() -> None:
    _prctl(_PR_SET_PDEATHSIG, 0)


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415 - a child that is started anew and the worker need not carry it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


# A child


class _Child:
    """Make the handler, then answer requests until the worker closes the channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._process = os.getpid()
        self._max_result_bytes = 0

    def work(self, load: Callable[[], Any]) -> None:
        first = self._receive()
        if first is None:
            return
        self._max_result_bytes = first[0]["max_result_bytes"]
        try:
            made = load()
            self._send({"state": "imported", "process": self._process})
            handler = made(**first[0]["options"])
        except BaseException as error:  # noqa: BLE001 - whatever it is, the worker is told
            _print_traceback(error)
            self._send({"state": "failed", "reason": _reason(error)})
            return
        self._send({"state": "ready"})
        while frame := self._receive():
            head, body = self._try(handler, *frame)
            _flush()
            self._send({"state": "answered", "memory_bytes": _memory_bytes(), **head}, body)

    def _try(self, handler: Any, about: dict[str, Any], raw: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            return self._answer(handler, json.loads(raw), about["key"])
        except BaseException as error:  # noqa: BLE001 - one try ends, the others go on
            _print_traceback(error)
            return {"outcome": "failed", "reason": _reason(error)}, b""

    def _answer(self, handler: Any, request: dict[str, Any], key: str) -> tuple[dict[str, Any], bytes]:
        try:
            if hasattr(handler, "want") and not handler.want(request):
                return {"outcome": "skipped"}, b""
            result = handler.process(request, key=key)
        except outcomes.Retry as told:
            return {"outcome": "retry", "delay": _delay(told.delay), "reason": _text(told.reason)}, b""
        except outcomes.Busy as told:
            return {"outcome": "busy", "delay": _delay(told.delay), "reason": _text(told.reason)}, b""
        except outcomes.Reject as told:
            return {"outcome": "reject", "code": _text(told.code), "reason": _text(told.reason)}, b""
        if not isinstance(result, dict):
            raise TypeError(f"process() returned {type(result).__name__}, expected a dict")
        body = json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
        if len(body) > self._max_result_bytes:
            reason = f"{len(body)} bytes, at most {self._max_result_bytes}"
            return {"outcome": "reject", "code": "result-too-large", "reason": reason}, b""
        return {"outcome": "result"}, body

    def _receive(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the next frame; None when the worker has closed the channel."""
        sizes = self._receive_exactly(_SIZES.size)
        if not sizes:
            return None
        head_size, body_size = _SIZES.unpack(sizes)
        return json.loads(self._receive_exactly(head_size)), self._receive_exactly(body_size)

    def _receive_exactly(self, size: int) -> bytes:
        received = self._channel.recv(size, socket.MSG_WAITALL)
        while received and len(received) < size:  # a signal came between
            received += self._channel.recv(size - len(received), socket.MSG_WAITALL)
        return received

    def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        if os.getpid() != self._process:
            os._exit(1)  # the handler has forked, and its child came back here
        self._channel.sendall(pack(head, body))


def _delay(seconds: Any) -> float | None:
    if seconds is None:
        return None
    delay = float(seconds)
    if not math.isfinite(delay) or delay < 0:
        raise ValueError(f"delay: expected seconds, got {seconds!r}")
    return delay


def _reason(error: BaseException) -> str:
    return _text("".join(traceback.format_exception_only(error)))


def _text(value: Any) -> str:
    """Return the end of it as text that can be encoded."""
    return str(value).strip()[-_REASON_CHARACTERS:].encode(errors="backslashreplace").decode()


def _memory_bytes() -> int:
    """Return what is resident."""
    with open("/proc/self/statm", "rb", buffering=0) as statm:  # noqa: PTH123 - this is once for each request
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Output: of whatever kind the handler has made of it, it must not end a try.


def _print_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()


def _print_traceback(error: BaseException) -> None:
    inner = error.__traceback__
    while inner and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next  # the user's code begins behind ours
    with contextlib.suppress(Exception):
        traceback.print_exception(type(error), error, inner)


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
