"""The arena of local processes: servers of the harness's own, and a slowjobs on them that ``chaos.launch`` runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chaos import handler
from chaos.arena import LANES, MSG_TIMEOUT_SECONDS, POOL, WORKERS, Arena
from chaos.notes import Note, busy, read_notes
from support.nsqd import Nsqd
from support.processes import LocalProcess
from support.proxy import Proxy
from support.services import ACTIVE, Services
from support.system import Service, System

if TYPE_CHECKING:
    import signal
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from support.processes import Running

#: what nsqd's disk holds, far beyond what all rounds write.
DISK = "256m"
#: exit statuses after which systemd does not start a service again: well, wrongly configured, fenced.
_LEFT_ALONE = {0, 2, 5}


class Servers(Services):
    """A Kafka, a PostgreSQL, and an nsqd whose disk can be filled."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        nsqd = Nsqd(folder / "small-nsqd", flags=(f"--msg-timeout={MSG_TIMEOUT_SECONDS}s",))
        self._nsqd = {ACTIVE: nsqd}
        self.disk = folder / "small-nsqd" / "data"

    @contextmanager
    def started(self) -> Iterator[Servers]:
        with ExitStack() as stack:
            _as_root("mount", "-t", "tmpfs", "-o", f"size={DISK},mode=1777", "slowjobs-chaos", str(self.disk))
            stack.callback(_as_root, "umount", "--lazy", str(self.disk))
            stack.callback(self.discard)
            self.restore()
            self.postgresql.create_role()
            yield self


def _as_root(*command: str) -> None:
    subprocess.run([*([] if os.geteuid() == 0 else ["sudo"]), *command], check=True)


class Launched(Service):
    """A service that ``chaos.launch`` starts."""

    def __init__(self, name: str, arguments: Sequence[str], *, config: Path, environment: dict[str, str]) -> None:
        super().__init__(name, arguments, config=config, environment=environment)
        self._wrapper = self._argv[:2]
        #: what is wrong with it, at each start.
        self.bug: str | None = None
        #: the step at which it dies, after the next start.
        self.die_at: str | None = None

    def _begin(self) -> Running:
        options = [f"--{name}={value}" for name, value in (("die-at", self.die_at), ("bug", self.bug)) if value]
        self._argv = [*self._wrapper, sys.executable, "-m", "chaos.launch", *options, "--", *self._arguments]
        self.die_at = None
        # Not forked from what has imported slowjobs: it changes values before others take them over.
        return LocalProcess._begin(self)


class Way(Proxy):
    """A way to nsqd that can fall silent: its connections stay open, and nothing comes through any more."""

    #: what its clients say does not come to nsqd; what nsqd says does not come to them.
    mute = False
    deaf = False

    def _pass_on(self, source: socket.socket, target: socket.socket, passes: Callable[[bytes], bool]) -> None:
        to_nsqd = passes == self._passes
        super()._pass_on(source, target, lambda _: not (self.mute if to_nsqd else self.deaf))


class Processes(System, Arena):
    """An arena with ways to nsqd that can be broken, and a second bridge; ``bug``: what is wrong with all services."""

    command = "make chaos"

    def __init__(self, servers: Servers, *, bug: str | None = None) -> None:
        pool = {**POOL, "handler": {"python": "handler:Handler", "interpreter": sys.executable}}
        System.__init__(self, servers, lanes=LANES, pool=pool, worker_hosts=WORKERS)
        Arena.__init__(self)
        self.kafka, self.nsqd = servers.kafka, servers.nsqd
        self.servers = {"kafka": servers.kafka, "nsqd": servers.nsqd, "postgresql": servers.postgresql}
        self.disk = servers.disk
        shutil.copy(handler.__file__, self.pool_folder)
        self.second_bridge = self._service("bridge-2", ["bridge"])
        self.documents["bridge"]["nsqd"]["msg_timeout_seconds"] = MSG_TIMEOUT_SECONDS
        self.documents["bridge-2"] = {**self.documents["bridge"], "state_address": self.second_bridge.state_address}
        self.proxies = [Way(servers.nsqd.tcp_address) for _ in ("bridge", *WORKERS)]
        for name, proxy in zip(("bridge", *WORKERS), self.proxies, strict=True):
            self.documents[name]["nsqd"]["hosts"][ACTIVE]["tcp_address"] = proxy.address
        self.write()
        for service in (*self.processes, self.second_bridge):
            service.bug = bug
        self._notes = self.pool_folder / "runs.log"
        self._notes.touch()

    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment(),
            "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}",
        }

    def _service(self, name: str, arguments: Sequence[str]) -> Launched:
        return Launched(name, arguments, config=self.folder / f"{name}.toml", environment=self.environment)

    @contextmanager
    def started(self) -> Iterator[Processes]:
        with ExitStack() as stack:
            for proxy in self.proxies:
                stack.enter_context(proxy)
            stack.callback(self.discard)
            stack.callback(self.second_bridge.discard)
            self.setup()
            self.start()
            yield self

    def tend(self) -> None:
        """Start again what has ended by itself, as systemd would."""
        for service in self.processes:
            if service.exit_status is not None and service not in self.held_down:
                self._start_again(service, service.exit_status)

    def _start_again(self, service: Service, status: int) -> None:
        assert status not in _LEFT_ALONE, service.trouble()
        self.restarts.append(f"{service.name}: {status}")
        service.start()

    def keep(self, folder: Path) -> None:
        self.tell_what_goes_on()
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("credentials", "*.sock"))
        for server in (self.services.kafka, self.services.postgresql, self.services.nsqd):
            shutil.copy(server.log, folder)

    def missing(self) -> int:
        return sum(lane["missing"] for lane in self.bridge.state()["lanes"].values())

    def notes(self) -> list[Note]:
        return read_notes(self._notes)

    def forget_notes(self) -> None:
        self._notes.write_bytes(b"")

    def at_work(self) -> list[Callable[[signal.Signals], None]]:
        return [partial(_signal, pid) for pid in busy(self.notes()) if Path(f"/proc/{pid}").exists()]


def _signal(process: int, signal_: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal_)
