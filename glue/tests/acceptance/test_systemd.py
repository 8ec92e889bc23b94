"""What systemd is told: ready, alive, stopping."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.system import MakeSystem

pytestmark = pytest.mark.acceptance

WATCHDOG_SECONDS = 1.0


class Listener:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def next(self, seconds: float) -> str:
        self._socket.settimeout(seconds)
        return self._socket.recv(4096).decode()

    def wait_for(self, word: str, seconds: float = 20) -> None:
        while word not in self.next(seconds):
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "notify")
    yield listener
    listener.close()


def test_every_service_tells_systemd_that_it_is_ready_alive_and_stopping(
    make_system: MakeSystem, listener: Listener, tmp_path: Path
) -> None:
    system = make_system()
    system.setup()
    system.environment |= {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1_000_000)),
    }
    for process in system.processes:
        process.set_environment(system.environment)
        process.start(ready=False)
        listener.wait_for("READY=1")
        # What says "ready" answers.
        assert process.state()["v"] == 1
        listener.wait_for("WATCHDOG=1", WATCHDOG_SECONDS)
        # Alive is not the same as successful: a server that is away is no reason to restart.
        system.services.kafka.freeze()
        try:
            for _ in range(4):
                listener.wait_for("WATCHDOG=1", WATCHDOG_SECONDS)
        finally:
            system.services.kafka.thaw()
        assert process.stop() == 0
        listener.wait_for("STOPPING=1", 1)


def test_metrics_are_served_beside_the_state(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start()
    for process in system.processes:
        assert "# TYPE slowjobs_" in process.metrics()
