"""Where rounds are played: a slowjobs that is started once, and what a round does to it and sees of it."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from chaos.notes import Note
    from support.kafka import KafkaClient, Tail
    from support.nsqd import NsqdClient

#: seconds; nsqd gives away again what was not touched for so long.
MSG_TIMEOUT_SECONDS = 2
#: small, so that the bridge publishes until a round's end.
CAP = 60
LANES = {"fast": {"weight": 4, "max_outstanding": CAP}, "bulk": {"max_outstanding": CAP}}
WORKERS = ("worker1", "worker2")
SLOTS = 4
_TASK_TIMEOUT_SECONDS = 5
POOL: Mapping[str, Any] = {
    "slots": SLOTS,
    "task_timeout_seconds": _TASK_TIMEOUT_SECONDS,
    "drain_timeout_seconds": 2 * _TASK_TIMEOUT_SECONDS,
    # A frozen worker is given a request again and again, and each of these deliveries counts.
    "max_attempts": 20,
    "retry": {"base_seconds": 0.05, "cap_seconds": 0.5},
}


class Process(Protocol):
    """What faults end and freeze. ``start`` returns when it answers; ``kill`` is SIGKILL, ``stop`` a clean end."""

    name: str

    def start(self) -> None: ...
    def stop(self) -> object: ...
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


class Arena(ABC):
    """A slowjobs of two lanes and two workers. What dies of it is started again."""

    #: what has rounds played here.
    command: ClassVar[str]
    #: how many times longer than with the times of ``chaos.launch`` all takes.
    slowness: ClassVar[float] = 1.0

    #: short name -> the lane's name, and that of its Kafka topic and NSQ topic.
    lanes: dict[str, str]
    pool: str
    result_topic: str
    kafka: KafkaClient
    nsqd: NsqdClient
    bridge: Process
    persisters: Mapping[str, Process]
    workers: Mapping[str, Process]
    #: "kafka", "nsqd" and "postgresql".
    servers: Mapping[str, Process]

    def __init__(self) -> None:
        #: processes that a fault has ended, until it starts them again.
        self.held_down: set[Process] = set()
        #: ``name: exit status`` of each process that ended by itself and was started again.
        self.restarts: list[str] = []
        #: lane -> how many requests Kafka has of it.
        self.sent: Counter[str] = Counter()

    @abstractmethod
    def tend(self) -> None:
        """Start again what has ended by itself."""

    def pause(self, seconds: float) -> None:
        """Let ``seconds`` pass, and tend to the processes meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(left, 0.05))

    @abstractmethod
    def keep(self, folder: Path) -> None:
        """Copy to ``folder`` what tells why a round failed."""

    # What the account is made of

    @abstractmethod
    def _tail(self, topic: str) -> Tail: ...

    def fresh(self, topic: str) -> list[Any]:
        """Return the documents that came to ``topic`` since the last call."""
        messages = self._tail(topic).poll()
        values = [json.loads(message.value()) for message in messages]
        messages.clear()
        return values

    @abstractmethod
    def rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Return what the database of the persisters answers."""

    def held(self) -> dict[str, int]:
        """Return how much nsqd holds of each lane of which it holds anything."""
        held = {lane: self.nsqd.outstanding(lane) for lane in self.lanes.values()}
        return {lane: count for lane, count in held.items() if count}

    def published(self) -> tuple[int, int]:
        """Return when nsqd was started, and how many messages were published to the lanes since."""
        stats = self.nsqd.get("/stats?format=json&include_mem=false")
        counts = [topic["message_count"] for topic in stats["topics"] if topic["topic_name"] in self.lanes.values()]
        return stats["start_time"], sum(counts)

    def uncommitted(self) -> int:
        """Return how many of all requests that there ever were are not committed as done."""
        return self.sent.total() - sum(self.kafka.committed("slowjobs-bridge", lane) for lane in self.sent)

    @abstractmethod
    def missing(self) -> int:
        """Return how many requests the bridge says that NSQ has lost."""

    @abstractmethod
    def notes(self) -> list[Note]:
        """Return what the handlers have noted."""

    @abstractmethod
    def forget_notes(self) -> None:
        """Empty the handlers' notes; none may run."""

    @abstractmethod
    def at_work(self) -> list[Callable[[signal.Signals], None]]:
        """Return for each process of a handler that is at work what sends it a signal."""
