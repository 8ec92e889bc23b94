"""All of it: the clock, chance, Kafka, what is on the way, and what must never be."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slowjobs import documents
from support.world import times
from support.world.faults import FAULTS
from support.world.nsqd import Message, Nsqd
from support.world.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import TypeVar

    from support.world.bridge import Bridge

    T = TypeVar("T")
    Process = Generator[float, None, T]

_START = 1_800_000_000.0
#: faults come at this step at the latest; a world in which none comes takes about so many.
_LAST_FAULT_STEP = 50


class BrokenError(AssertionError):
    """A promise is broken; the text tells how."""


@dataclass
class Committed:
    """What Kafka keeps of one partition of the bridge's group."""

    offset: int = 0
    metadata: str = ""


@dataclass(eq=False)
class Sending:
    """An MPUB on its way to an nsqd. ``left``: what is not stored; ``answer``: None while there is none."""

    host: Nsqd
    left: list[documents.Position]
    answer: bool | None = None
    #: its sender can still be answered.
    connected: bool = True


class World:
    """One schedule. ``bridge``: what is to be proved; ``faults``: of FAULTS, each comes at a step of its own.

    ``clocks_differ``: seconds between the workers' clocks and the others at most. ``still``: a reading of nsqd takes no
    time, nor does a worker from taking a request to telling of it: then one reading is as good as three.
    """

    def __init__(
        self,
        seed: int,
        bridge: type[Bridge],
        faults: Iterable[str] = (),
        *,
        clocks_differ: float = 0.0,
        still: bool = False,
    ) -> None:
        self.random = random.Random(f"{seed} {' '.join(faults)}")
        self.now = _START + self.random.random()
        self.still = still
        #: seconds by which the workers' clocks are ahead of the others at most, or behind.
        self.clocks_ahead = self.random.choice((-1, 1)) * clocks_differ
        self._about = f"seed {seed}, faults {tuple(faults)}, clocks_differ {clocks_differ}"
        self._due: list[tuple[float, int, Process[None] | Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._trace: list[tuple[float, tuple[object, ...]]] = []
        self._plan: defaultdict[int, list[str]] = defaultdict(list)
        for fault in faults:
            self._plan[self.random.randrange(1, _LAST_FAULT_STEP)].append(fault)
        self._over_at = self.now
        #: Kafka: each partition's offsets (with gaps), what the bridge has committed, the events.
        self._requests = {partition: self._offsets() for partition in range(self.random.choice((1, 1, 2)))}
        self.committed = {partition: Committed() for partition in self._requests}
        self.events: list[documents.Event] = []
        self.undone = set(self.all_requests())
        self._last_teller: dict[documents.Position, str] = {}
        self._discarded: set[documents.Position] = set()
        self.cap = self.random.randrange(3, 6)
        self._retries = self.random.choice((0.0, 0.1, 0.4))
        #: how many of the next ones.
        self.lose_answers = self.fail_commits = 0
        #: messages that a fault has doubled.
        self.over_the_cap = 0
        #: promises that the faults excuse from.
        self.excused: set[str] = set()
        #: nsqd: a second host drains until it is taken out.
        self.hosts = [Nsqd(self, name) for name in ("svc506", "svc507")]
        #: the active one first.
        self.configured = self.hosts[:1]
        self.not_understood: set[Message] = set()
        self._sendings: list[Sending] = []
        self.workers = [Worker(self, f"worker{number}/pool") for number in (1, 2)]
        self._bridge_class = bridge
        self.bridge = bridge(self)

    def _offsets(self) -> list[int]:
        return list(itertools.accumulate(self.random.choice((1, 1, 1, 2)) for _ in range(self.random.randrange(3, 8))))

    # Time and chance

    def run(self) -> None:
        """Run until all is done and committed. Raises BrokenError."""
        while not self._is_over():
            if self.now > self._over_at + times.PATIENCE and not self._plan:
                self.broken("P1", "still not done or not committed:", *map(str, self.undone))
            self.now, _, what = heapq.heappop(self._due)
            if callable(what):
                what()
            else:
                self._go_on(what)

    def _is_over(self) -> bool:
        ends = (self.committed[partition].offset > offsets[-1] for partition, offsets in self._requests.items())
        return not self.undone and all(ends)

    def _go_on(self, process: Process[None]) -> None:
        seconds = next(process, None)
        if seconds is not None:
            self._push(seconds, process)

    def _push(self, seconds: float, what: Process[None] | Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), what))

    def start(self, process: Process[None]) -> Process[None]:
        """Begin a process; closing it ends it."""
        self._push(0, process)
        return process

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self._push(seconds, action)

    def pause(self, longest: float) -> float:
        return self.random.random() * longest

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def duration(self) -> float:
        """Return how long a try runs: most are short."""
        return self.pause(times.LONGEST_TRY if self.chance(0.2) else times.STEP * 5)

    def shuffled(self, things: Iterable[T]) -> list[T]:
        return sorted(things, key=lambda _: self.random.random())

    def note(self, *words: object) -> None:
        """Write a line of the trace. Each is a step, and a fault may come right after it."""
        self._trace.append((self.now, words))
        for fault in self._plan.pop(len(self._trace), ()):
            self.after(0, lambda fault=fault: self._strike(fault))

    def _strike(self, fault: str) -> None:
        self.heal(0, lambda: None)
        self.note("FAULT", fault)
        FAULTS[fault](self)

    def heal(self, seconds: float, action: Callable[[], object]) -> None:
        """Have a fault be over after so long."""
        self._over_at = max(self._over_at, self.now + seconds)
        self.after(seconds, action)

    def broken(self, promise: str, *words: object) -> None:
        """Raise BrokenError, unless a fault excuses that."""
        if promise in self.excused:
            return
        self._trace.append((self.now, (promise, *words)))
        lines = [f"{when - _START:8.2f}  {' '.join(map(str, line))}" for when, line in self._trace]
        raise BrokenError("\n".join([f"{promise} is broken by {self._about}", *lines]))

    # Kafka

    def position(self, partition: int, offset: int) -> documents.Position:
        return documents.Position("requests", partition, offset)

    def all_requests(self) -> list[documents.Position]:
        return [position for partition in self._requests for position in self.requests_from(partition, 0)]

    def requests_from(self, partition: int, offset: int) -> list[documents.Position]:
        return [self.position(partition, each) for each in self._requests[partition] if each >= offset]

    def tell(self, event: documents.Event) -> None:
        """Append to the events."""
        self.note(event.worker, "tells", event.event, event.position or "")
        self.events.append(event)
        if event.event == "started" and event.position:
            self._last_teller[event.position] = event.worker
            if event.position in self._discarded:
                self.broken("E", "discarded, and begins:", event.position)
        if event.event == "done" and event.position:
            self.undone.discard(event.position)

    def discard(self, position: documents.Position) -> None:
        """Have a person's wish on Kafka that a request is not worked on."""
        if position in self.undone:
            self._discarded.add(position)
            self.tell(documents.Event("done", "control1/bridge", position=position, outcome="discarded"))

    def commit(self, partition: int, offset: int, metadata: str) -> bool:
        """Commit; return whether the bridge hears that it is so."""
        passed = [each for each in self.undone if each.partition == partition and each.offset < offset]
        if passed:
            self.broken("P3", "the commit passes", *map(str, passed))
        fails = self.fail_commits > 0
        self.fail_commits -= fails
        if not fails or self.chance(0.5):
            if self.committed[partition] != Committed(offset, metadata):
                self.note("bridge commits", f"{partition}@{offset}", metadata)
            self.committed[partition] = Committed(offset, metadata)
        return not fails

    # nsqd

    def disconnect(self, host: Nsqd) -> None:
        """End all connections of an nsqd that ends."""
        for worker in self.workers:
            worker.disconnect(host)
        for sending in self._sendings:
            if sending.host is host:
                sending.left, sending.connected = [], False

    def puts_back(self) -> bool:
        """Tell whether a try ends with a requeue."""
        return self.chance(self._retries)

    def is_on_the_way_to(self, host: Nsqd) -> bool:
        return any(sending.host is host and sending.left for sending in self._sendings)

    def is_held(self, position: documents.Position) -> bool:
        """Tell whether workers can get it, now or soon."""
        on_the_way = (position in sending.left for sending in self._sendings)
        return any(on_the_way) or any(host.consumed and host.holds(position) for host in self.hosts)

    def publish(self, host: Nsqd, positions: list[documents.Position], connected_to: int) -> Sending:
        """Send an MPUB on a connection to the nsqd that began at ``connected_to``."""
        self.note("bridge sends", *(f"{each.partition}@{each.offset}" for each in positions), "to", host.name)
        for position in positions:
            if self.is_held(position):
                self.broken("P2", "published while nsqd has it:", position)
            if position in self._discarded:
                self.broken("E", "discarded, and published:", position)
            teller = self._last_teller.get(position)
            if any(worker.name == teller and worker.runs(position) for worker in self.workers):
                self.broken("O", "published again while", teller, "runs it:", position)
        sending = Sending(host, list(positions))
        self._sendings = [*(each for each in self._sendings if each.left), sending]
        if not host.up or host.start_time != connected_to:
            sending.left, sending.connected = [], False
        in_nsq = sum(
            message.position is not None for each in self.hosts if each.consumed for message in each.messages()
        )
        if in_nsq + sum(len(each.left) for each in self._sendings) > self.cap + self.over_the_cap:
            self.broken("P4", "above the cap of", self.cap)
        self.start(self._carry(sending))
        return sending

    def _carry(self, sending: Sending) -> Process[None]:
        """Bring an MPUB to nsqd, which stores one message after another and answers."""
        yield self.pause(times.SLOW if self.chance(0.1) else times.STEP)
        answered = True
        if self.lose_answers:
            self.lose_answers -= 1
            answered = False
            stored = self.random.choice((0, 1, len(sending.left)))
            del sending.left[stored:]
            self.note("of what is sent nsqd gets", len(sending.left), "and does not answer")
        while sending.left:
            sending.host.put(Message(sending.left.pop(0)))
            yield self.pause(times.STEP / 3)
        if answered and sending.connected:
            sending.answer = True

    def concluded(self, position: documents.Position) -> None:
        """Hear that the bridge takes a position for lost."""
        self.note("bridge concludes", position, "is lost")
        if self.is_held(position):
            self.broken("P5", "concluded, while nsqd has it:", position)

    # The bridge

    def kill_bridge(self) -> None:
        self.bridge.kill()
        for host in self.hosts:
            self.drop_sendings(host)

    def drop_sendings(self, host: Nsqd) -> None:
        """End the bridge's connection to an nsqd, which may have all of what was sent."""
        for sending in self._sendings:
            if sending.host is host:
                sending.connected = False
                if self.chance(0.5):
                    sending.left = []

    def reconfigure_bridge(self, hosts: list[Nsqd]) -> None:
        """Give the bridge other hosts, the active one first, which takes a restart."""
        self.configured = hosts
        self.start_bridge()

    def start_bridge(self) -> None:
        """Have a bridge in place of the one that was, which ends if it has not."""
        self.kill_bridge()
        self.bridge = self._bridge_class(self)
