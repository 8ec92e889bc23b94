"""A local process that a test starts, stops, kills and freezes, by its own process id."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from random import SystemRandom
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Below Linux's range for outgoing connections: a client that keeps trying a closed port inside that range can end up
#: connected to itself, and then the server cannot have its port back.
PORTS = range(18000, 30000)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on."""
    for _ in range(200):
        port = SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port in {PORTS}")


class Running(Protocol):
    """What is asked of a process: that much of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int: ...

    def send_signal(self, signal_: signal.Signals, /) -> None: ...


class LocalProcess:
    """One program with its log file. It may be started again after it ended: same command, same log."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        death_signal: str = "KILL",
    ) -> None:
        self.name = name
        self.log = log
        self._environment = dict(environment) if environment is not None else None
        # The kernel ends what we started even when pytest is killed and no fixture gets to clean up.
        wrapper = ["setpriv", f"--pdeathsig={death_signal}"]
        if user is not None:
            wrapper += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self._argv = [*wrapper, *argv]
        self._process: Running | None = None

    def start(self) -> None:
        assert not self.is_running, f"{self.name} runs already"
        assert threading.current_thread() is threading.main_thread(), "the kernel's death signal follows the thread"
        self._process = self._begin()

    def _begin(self) -> Running:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, cwd=self.log.parent
            )

    def set_environment(self, environment: Mapping[str, str]) -> None:
        """Give the next start other variables."""
        self._environment = dict(environment)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """As a shell would not say it: minus the signal's number if a signal ended the process."""
        return None if self._process is None else self._process.poll()

    def trouble(self) -> str | None:
        """Say that the process has ended, with the end of its log, or return None while it runs."""
        if self.is_running:
            return None
        return f"{self.name} ended with {self.exit_status}:\n{self.log_tail()}"

    def wait(self, seconds: float) -> int:
        """Wait until the process has ended by itself and return its exit status."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {seconds:g} s:\n{self.log_tail()}") from None

    def stop(self, signal_: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
        """End the process with ``signal_`` and return its exit status; one that has ended already is fine."""
        if self.is_running:
            self.signal(signal_)
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, as a power cut or the kernel's out-of-memory killer would."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def freeze(self) -> None:
        """Let the process stand still: its connections stay open and nobody answers."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, signal_: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signal_)

    def discard(self) -> None:
        """Make sure that the process is gone; for the end of a test, whatever state it is in."""
        if self._process is not None and self.is_running:
            self.kill()

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])
