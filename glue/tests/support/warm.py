"""`slowjobs` processes forked from one that has imported it, which takes a second of a core: tests start 1500 of them.

What is forked calls the command line as its script does. The script itself runs in the tests that need a pipe or a
terminal, and on the test hosts.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONTEXT = multiprocessing.get_context("forkserver")
# pytest: a child imports what its parent's main program is.
_CONTEXT.set_forkserver_preload(["slowjobs.cli", "pytest"])
_PR_SET_PDEATHSIG = 1


class Streams(NamedTuple):
    """Files that stand for standard input, output and errors; what is written is appended."""

    input: Path
    output: Path
    errors: Path


class WarmProcess:
    """A running `slowjobs`, as `subprocess.Popen` would show it; it starts in ``folder``."""

    def __init__(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, streams: Streams
    ) -> None:
        # Daemonic: what still runs when pytest ends is ended and not waited for.
        self._process = _CONTEXT.Process(
            target=_run, args=(list(arguments), dict(environment), folder, streams), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("slowjobs", timeout)
        return self._process.exitcode

    def send_signal(self, signal_: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal_)


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, input_: bytes | None, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run `slowjobs` to its end, as `subprocess.run` would."""
    with TemporaryDirectory() as name:
        streams = Streams(*(Path(name, stream) for stream in Streams._fields))
        streams.input.write_bytes(input_ or b"")
        process = WarmProcess(arguments, environment=environment, folder=folder, streams=streams)
        try:
            status = process.wait(seconds)
        finally:
            process.send_signal(signal.SIGKILL)
        output, errors = (file.read_text(encoding="utf-8", errors="replace") for file in streams[1:])
    return subprocess.CompletedProcess(["slowjobs", *arguments], status, output, errors)


def _run(arguments: list[str], environment: dict[str, str], folder: Path, streams: Streams) -> None:
    # Its parent ends with pytest, however that ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for number, (file, flags) in enumerate(zip(streams, (os.O_RDONLY, append, append), strict=True)):
        os.dup2(os.open(file, flags), number)
    # multiprocessing has closed it.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    sys.argv = ["slowjobs", *arguments]

    from slowjobs import cli  # noqa: PLC0415 - nothing of it for those who start it

    cli.main()
