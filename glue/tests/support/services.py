"""The three servers that all tests of one run share."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.kafka import Kafka
from support.nsqd import Nsqd
from support.postgresql import Postgresql
from support.proxy import SwallowingProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import LocalProcess


@dataclass
class Services:
    """The servers, and the folder that holds what belongs to this test run."""

    folder: Path
    kafka: Kafka
    postgresql: Postgresql
    nsqd: Nsqd

    def swallowing_nsqd(self) -> SwallowingProxy:
        """Return another way to nsqd, on which publications vanish."""
        return SwallowingProxy(self.nsqd.tcp_address)

    def restore(self) -> None:
        """Have every server answer again, whatever the last test did to it."""
        for server in (self.kafka, self.postgresql, self.nsqd):
            if server.is_running:
                server.thaw()
            else:
                server.start()


@contextmanager
def running() -> Iterator[Services]:
    """Start the servers, each in its own folder under a temporary one, and take everything away at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slowjobs-tests-"))
    # PostgreSQL's user must be able to reach its own folder in there.
    folder.chmod(0o711)
    started: list[LocalProcess] = []
    try:
        kafka = Kafka(folder / "kafka")
        postgresql = Postgresql(folder / "postgresql")
        nsqd = Nsqd(folder / "nsqd")
        for server in (kafka, postgresql, nsqd):
            started.append(server)
            server.start()
        postgresql.create_role()
        yield Services(folder, kafka, postgresql, nsqd)
    finally:
        for server in started:
            server.discard()
        shutil.rmtree(folder, ignore_errors=True)
