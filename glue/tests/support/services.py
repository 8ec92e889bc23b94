"""The servers that all tests of one run share."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from support.kafka import Kafka
from support.nsqd import Nsqd
from support.postgresql import Postgresql
from support.proxy import Proxy, SwallowingProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import LocalProcess

#: The host that new requests go to, and one that is being emptied or stands by; the second is started when first used.
ACTIVE, SECOND = "svc506", "svc507"


class Services:
    """The servers, and the folder that holds what belongs to this test run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kafka = Kafka(folder / "kafka")
        self.postgresql = Postgresql(folder / "postgresql")
        self._nsqd = {ACTIVE: Nsqd(folder / "nsqd")}

    @property
    def nsqd(self) -> Nsqd:
        """The active nsqd."""
        return self._nsqd[ACTIVE]

    @property
    def second_nsqd(self) -> Nsqd:
        if SECOND not in self._nsqd:
            self._nsqd[SECOND] = Nsqd(self.folder / "second-nsqd", node_id=507)
            self._nsqd[SECOND].start()
        return self._nsqd[SECOND]

    def nsqd_of(self, host: str) -> Nsqd:
        return {ACTIVE: lambda: self.nsqd, SECOND: lambda: self.second_nsqd}[host]()

    @property
    def nsqds(self) -> list[Nsqd]:
        """The one or two that were started."""
        return list(self._nsqd.values())

    def nsqd_behind_proxy(self) -> Proxy:
        """Return another way to nsqd, whose connections can be broken."""
        return Proxy(self.nsqd.tcp_address)

    def swallowing_nsqd(self, command: bytes = b"PUB ") -> SwallowingProxy:
        """Return another way to nsqd, on which ``command`` vanishes."""
        return SwallowingProxy(self.nsqd.tcp_address, command)

    def restore(self) -> None:
        """Have every server answer, whatever the last test did to it."""
        for server in self._servers:
            if server.is_running:
                server.thaw()
            else:
                server.start()

    def discard(self) -> None:
        for server in self._servers:
            server.discard()

    @property
    def _servers(self) -> list[LocalProcess]:
        return [self.kafka, self.postgresql, *self.nsqds]


@contextmanager
def running() -> Iterator[Services]:
    """Start the servers, each in its own folder under a temporary one, and take everything away at the end."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slowjobs-tests-"))
        stack.callback(partial(shutil.rmtree, folder, ignore_errors=True))
        # PostgreSQL's user must be able to reach its own folder in there.
        folder.chmod(0o711)
        services = Services(folder)
        stack.callback(services.discard)
        services.restore()
        services.postgresql.create_role()
        yield services
