"""Where rounds are played: servers of the harness's own, and a slowjobs on them that is started once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos import handler
from support.nsqd import Nsqd
from support.proxy import Proxy
from support.services import ACTIVE, Services
from support.system import Service, System

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from support.processes import LocalProcess

#: seconds; nsqd gives away again what was not touched for so long.
MSG_TIMEOUT_SECONDS = 2
#: what nsqd's disk holds, far beyond what all rounds write.
DISK = "256m"
#: small, so that the bridge publishes until a round's end.
CAP = 60
LANES = {"fast": {"weight": 4, "max_outstanding": CAP}, "bulk": {"max_outstanding": CAP}}
WORKERS = ("worker1", "worker2")
SLOTS = 4
TASK_TIMEOUT_SECONDS = 5
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
        self._wrapper, self._arguments = self._argv[:2], self._argv[3:]
        #: what is wrong with it, at each start.
        self.bug: str | None = None
        #: the step at which it dies, after the next start.
        self.die_at: str | None = None

    def start(self, *, ready: bool = True) -> None:
        options = [f"--{name}={value}" for name, value in (("die-at", self.die_at), ("bug", self.bug)) if value]
        self._argv = [*self._wrapper, sys.executable, "-m", "chaos.launch", *options, "--", *self._arguments]
        self.die_at = None
        super().start(ready=ready)


class Way(Proxy):
    """A way to nsqd that can fall silent: its connections stay open, and nothing comes through any more."""

    #: what its clients say does not come to nsqd; what nsqd says does not come to them.
    mute = False
    deaf = False

    def _pass_on(self, source: socket.socket, target: socket.socket, passes: Callable[[bytes], bool]) -> None:
        to_nsqd = passes == self._passes
        super()._pass_on(source, target, lambda _: not (self.mute if to_nsqd else self.deaf))


class Arena(System):
    """A slowjobs of two lanes and two workers. Its ways to nsqd can be broken, and what dies is started again."""

    def __init__(self, servers: Servers, *, bug: str | None = None) -> None:
        pool = {
            "handler": {"python": "handler:Handler", "interpreter": sys.executable},
            "task_timeout_seconds": TASK_TIMEOUT_SECONDS,
            "drain_timeout_seconds": 2 * TASK_TIMEOUT_SECONDS,
            # A frozen worker is given a request again and again, and each of these deliveries counts.
            "max_attempts": 20,
            "retry": {"base_seconds": 0.05, "cap_seconds": 0.5},
        }
        super().__init__(servers, lanes=LANES, pool=pool, slots=SLOTS, worker_hosts=WORKERS)
        self.servers = servers
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
        #: processes that a fault has ended, until it starts them again.
        self.held_down: set[LocalProcess] = set()
        #: ``name: exit status`` of each process that ended by itself and was started again.
        self.restarts: list[str] = []
        #: lane -> how many requests Kafka has of it.
        self.sent: Counter[str] = Counter()
        self._runs = self.pool_folder / "runs.log"
        self._runs.touch()

    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment(),
            "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}",
        }

    def _service(self, name: str, arguments: Sequence[str]) -> Launched:
        return Launched(name, arguments, config=self.folder / f"{name}.toml", environment=self.environment)

    @contextmanager
    def started(self) -> Iterator[Arena]:
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

    def pause(self, seconds: float) -> None:
        """Let ``seconds`` pass, and tend to the processes meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(left, 0.05))

    # What the account is made of

    def fresh(self, topic: str) -> list[Any]:
        """Return the documents that came to ``topic`` since the last call."""
        messages = self._tail(topic).poll()
        values = [json.loads(message.value()) for message in messages]
        messages.clear()
        return values

    def held(self) -> dict[str, int]:
        """Return how much nsqd holds of each lane of which it holds anything."""
        held = {lane: self.services.nsqd.outstanding(lane) for lane in self.lanes.values()}
        return {lane: count for lane, count in held.items() if count}

    def published(self) -> tuple[int, int]:
        """Return when nsqd was started, and how many messages were published to the lanes since."""
        stats = self.services.nsqd.get("/stats?format=json&include_mem=false")
        counts = [topic["message_count"] for topic in stats["topics"] if topic["topic_name"] in self.lanes.values()]
        return stats["start_time"], sum(counts)

    def uncommitted(self) -> int:
        """Return how many of all requests that there ever were are not committed as done."""
        return self.sent.total() - sum(self.services.kafka.committed("slowjobs-bridge", lane) for lane in self.sent)

    def missing(self) -> int:
        """Return how many requests the bridge says that NSQ has lost."""
        return sum(lane["missing"] for lane in self.bridge.state()["lanes"].values())

    def forget_runs(self) -> None:
        """Empty the handlers' notes; none may run."""
        self._runs.write_bytes(b"")

    def runs(self) -> list[tuple[str, int, int]]:
        """Return what the handlers noted, in order: what, the request's number and the process."""
        lines = [line.split() for line in self._runs.read_text(encoding="utf-8").splitlines()]
        return [(what, int(number), int(process)) for what, number, process, _ in lines]

    def running(self) -> list[int]:
        """Return the processes of handlers that are at work."""
        at_work: dict[int, bool] = {}
        for what, _, process in self.runs():
            at_work[process] = what in {"begin", "overlap"}
        return [process for process, works in at_work.items() if works and Path(f"/proc/{process}").exists()]
