"""The ledger: which requests of a lane NSQ has lost, from what it holds, what was published and what workers tell.

It has no input, no output and no clock: readings of nsqd and events go in, what is lost comes out. While all is well
nsqd holds at least what is not done, because a worker tells ``done`` before it finishes a message. Where it holds less,
which ones are missing follows by elimination (docs/architecture.md, "The ledger").
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from slowjobs import documents

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: readings in a row that have to agree: nsqd's figures are not atomic.
READINGS = 3
#: seconds beyond msg-timeout in which NSQ is seen empty before what it should hold counts as lost.
EMPTY_MARGIN_SECONDS = 15.0
#: seconds beyond msg-timeout since a later one was started; then one that waits still is overdue.
OVERDUE_MARGIN_SECONDS = 60.0
#: seconds after which what was deferred and due, or in flight and timed out, has surely come back into the queue.
DEFERRED_MARGIN_SECONDS = 10.0
#: seconds that the clocks of nsqd's host and a worker's may differ. What is told so shortly before nsqd's start counts:
#: evidence too much makes the lost ones wait for its end, evidence too little what nsqd holds look lost.
CLOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Figures:
    """What one nsqd holds of the lane: of its topic, and of its pool's channel only.

    ``queued``: the depths of both. ``start_time``: in seconds since 1970; what nsqd had in memory before it is gone.
    """

    start_time: int
    queued: int
    in_flight: int
    deferred: int

    @property
    def held(self) -> int:
        """All that it holds."""
        return self.queued + self.in_flight + self.deferred


@dataclass(frozen=True)
class _Evidence:
    """A worker's word that a request is alive, and not waiting: it runs there, or nsqd holds it back for later.

    ``until``: when that is true no longer, whatever happens. ``offset``: the event's.
    """

    what: Literal["running", "deferred"]
    host: str
    worker: str
    since: float
    until: float
    offset: int

    def counts(self, hosts: Mapping[str, Figures]) -> bool:
        """Tell whether nsqd can still hold what this is about: it has not been started anew since."""
        return self.host in hosts and self.since >= hosts[self.host].start_time - CLOCK_SECONDS

    def is_doubtful(self, hosts: Mapping[str, Figures]) -> bool:
        """Tell whether nsqd, as far as clocks agree, was started anew since."""
        return self.what == "deferred" and self.since < hosts[self.host].start_time


class _State(enum.Enum):
    SENT = enum.auto()  # published, and nsqd's answer is missing
    PUBLISHED = enum.auto()
    LOST = enum.auto()  # to be published again
    DONE = enum.auto()


@dataclass
class _Request:
    """A position that is not done. ``publication`` numbers publications, ``turn`` the entries into nsqd's queue."""

    position: documents.Position
    host: str
    publication: int = 0
    turn: int = 0
    state: _State = _State.PUBLISHED
    evidence: _Evidence | None = None
    #: the run is over without an answer; until its msg-timeout nsqd holds the request in flight all the same.
    ended: bool = False

    def runs(self) -> bool:
        """Tell whether a worker may run it, be it that nsqd has forgotten it."""
        return self.evidence is not None and self.evidence.what == "running" and not self.ended


@dataclass
class _Partition:
    """What is not done below ``listed``, ascending, and what is done from there on, with the offset of the event.

    ``mark``: the first offset not handed to nsqd. What lies between the two was published by an earlier bridge, and
    Kafka has to give it again, so that gaps in the offsets are seen as such.
    """

    mark: int
    listed: int
    #: the first event that is not taken in: earlier ones were, or are about a topic of the same name that is gone.
    events: int
    undone: dict[int, _Request] = field(default_factory=dict)
    ahead: dict[int, int] = field(default_factory=dict)


@dataclass
class _Suspicion:
    """Since when a condition has held in all readings, and which requests have been suspects in all of them."""

    readings: int = 0
    since: float = math.inf
    #: publications.
    suspects: set[int] = field(default_factory=set)

    def look(self, suspects: set[int], now: float, *, holds: bool) -> None:
        if not holds:
            self.readings, self.since, self.suspects = 0, math.inf, set()
        elif not self.readings:
            self.readings, self.since, self.suspects = 1, now, suspects
        else:
            self.readings += 1
            self.suspects &= suspects


@dataclass
class _Known:
    """What was published, at a reading: how many in all, who may wait or be lost, and who is alive.

    ``doubtful``: put back so shortly before nsqd's start that it may have been before. They are lost where as many are
    missing; that NSQ is empty proves nothing of them.
    """

    count: int = 0
    suspects: list[_Request] = field(default_factory=list)
    doubtful: list[_Request] = field(default_factory=list)
    running: int = 0
    deferred: int = 0


class Ledger:
    """All positions of one lane that were published and are not done. Times are seconds since 1970.

    ``run_limit_seconds``: how long after ``started`` a try can run at most, nsqd's time-out after it included.
    """

    def __init__(self, *, run_limit_seconds: float, msg_timeout_seconds: float) -> None:
        self._run_limit_seconds = run_limit_seconds
        self._msg_timeout_seconds = msg_timeout_seconds
        self._partitions: dict[int, _Partition] = {}
        self._publications = 0
        self._starts = _Starts()
        #: publications up to this one were known before the reading that goes on.
        self._before = 0
        self._short = _Suspicion()
        self._explained = _Suspicion()
        self._doubted = _Suspicion()
        self._empty = _Suspicion()
        self._lost: list[_Request] = []
        self._suspects = 0
        #: how many fewer than are not done nsqd held in the last reading.
        self._deficit = 0
        #: publish nothing new.
        self.holding = False
        #: when the first reading was in which NSQ held too little.
        self.missing_since: float | None = None

    # What the bridge publishes

    def begin(self, partition: int, mark: int, listed: int, events: int) -> None:
        """Begin with a partition, or anew: all below ``listed`` is done, but for what ``restore`` says.

        ``events``: the offset of the first event that is taken in.
        """
        self.forget(partition)
        self._partitions[partition] = _Partition(mark, listed, events)

    def forget(self, partition: int) -> None:
        """Drop a partition: its commit says all."""
        dropped = self._partitions.pop(partition, None)
        for request in dropped.undone.values() if dropped else ():
            request.state = _State.DONE

    def restore(self, position: documents.Position, host: str) -> None:
        """Take on a position below the mark that was published to ``host`` before this bridge began."""
        self._publications += 1
        self._add(_Request(position, host, publication=self._publications))

    def publish(self, positions: Sequence[documents.Position], host: str) -> None:
        """Note positions of one partition, in their order, that are about to be sent; their answer is missing yet."""
        for position in positions:
            self._publications += 1
            request = self._find(position)
            if request is None:
                request = _Request(position, host)
                self._add(request)
            request.host, request.state = host, _State.SENT
            request.publication = request.turn = self._publications
            request.evidence, request.ended = None, False

    def settle(self, positions: Sequence[documents.Position], stored: int) -> None:
        """Note nsqd's answer, or what it is known to be: it may have the first ``stored``, and has surely no more."""
        for number, position in enumerate(positions):
            request = self._find(position)
            if request and (number < stored or request.evidence):
                request.state = _State.PUBLISHED
            elif request:
                self._lose(request)

    def finish(self, position: documents.Position) -> None:
        """Note that a position is done: the bridge's own word, or what is told of one that was not published."""
        partition = self._partitions[position.partition]
        if position.offset in partition.undone:
            partition.undone.pop(position.offset).state = _State.DONE
        elif position.offset >= partition.listed:
            self._pass(position)
        partition.ahead.pop(position.offset, None)

    def pass_to(self, partition: int, end: int) -> None:
        """Note that there is no request between the last one that was published and ``end``."""
        known = self._partitions[partition]
        known.listed = max(known.listed, end)
        known.mark = max(known.mark, end)

    def not_done(self, partition: int, there: range) -> Iterator[int]:
        """Yield what of ``there``, all offsets of a partition, is not done, published or not, ascending.

        What was never published counts as a request at each offset, gaps too. All may be done meanwhile.
        """
        known = self._partitions[partition]
        undone, unlisted = list(known.undone), range(max(known.listed, there.start), there.stop)
        yield from undone
        yield from (offset for offset in unlisted if offset not in known.ahead)

    def finish_all(self, partition: int, end: int) -> None:
        """Note that all below ``end`` is done, published or not."""
        known = self._partitions[partition]
        for offset in [offset for offset in known.undone if offset < end]:
            known.undone.pop(offset).state = _State.DONE
        for offset in [offset for offset in known.ahead if offset < end]:
            del known.ahead[offset]
        self.pass_to(partition, end)

    def is_done(self, position: documents.Position) -> bool:
        """Tell whether a position that was not published here is done: a dead letter, discarded, or of before."""
        return position.offset in self._partitions[position.partition].ahead

    def _add(self, request: _Request) -> None:
        position = request.position
        if position.offset >= self._partitions[position.partition].listed:
            self._pass(position)
        self._partitions[position.partition].undone[position.offset] = request

    def _pass(self, position: documents.Position) -> None:
        partition = self._partitions[position.partition]
        partition.listed = position.offset + 1
        partition.mark = max(partition.mark, partition.listed)

    def _find(self, position: documents.Position) -> _Request | None:
        partition = self._partitions.get(position.partition)
        return partition.undone.get(position.offset) if partition else None

    # What goes into the commit

    def mark(self, partition: int) -> int:
        """Return the first offset that was not handed to nsqd."""
        return self._partitions[partition].mark

    def listed(self, partition: int) -> int:
        """Return the offset below which all that is not done is known: the mark, but shortly after a start."""
        return self._partitions[partition].listed

    def lowest(self, partition: int) -> int:
        """Return the lowest offset that is not done."""
        return next(iter(self._partitions[partition].undone), self._partitions[partition].listed)

    def count(self, partition: int) -> int:
        """Return how many positions below the mark are not done."""
        return len(self._partitions[partition].undone)

    def undone(self, partition: int) -> dict[int, str]:
        """Return ``offset -> nsqd host`` of what is below the mark and not done, ascending."""
        return {offset: request.host for offset, request in self._partitions[partition].undone.items()}

    def events_needed(self, partition: int, end: int) -> int:
        """Return where the events have to be read from after a restart; ``end``: what was read is before it."""
        known = self._partitions[partition]
        evidence = (request.evidence.offset for request in known.undone.values() if request.evidence)
        return min(itertools.chain(evidence, known.ahead.values()), default=end)

    # What the events tell

    def apply(self, event: documents.Event, offset: int) -> None:
        """Take in an event, in the order in which they were written. The latest of a position wins; done is final."""
        if event.event == "up":
            self._end_runs_of(event, offset)
            return
        if event.position is None or event.position.partition not in self._partitions:
            return
        partition = self._partitions[event.position.partition]
        if offset < partition.events:
            return  # heard already, or about another topic
        partition.events = offset + 1
        if event.event == "done":
            self.note_done(event.position, offset)
            return
        request = self._find(event.position)
        if request is None:
            return
        if event.event == "started":
            self._start(request, event, offset)
        elif event.event == "requeued" and not self._is_others(request, event):
            since = documents.seconds(event.at)
            until = documents.seconds(event.until or event.at) + DEFERRED_MARGIN_SECONDS
            self._prove(request, _Evidence("deferred", event.nsqd or "", event.worker, since, until, offset))
        elif event.event == "abandoned" and not self._is_others(request, event):
            self._end(request, event)

    def note_done(self, position: documents.Position, offset: int) -> None:
        """Note that a position is done, published or not; ``offset``: of the event that says so."""
        partition = self._partitions[position.partition]
        if position.offset >= partition.listed:
            partition.ahead[position.offset] = offset
        else:
            self.finish(position)

    def _start(self, request: _Request, event: documents.Event, offset: int) -> None:
        since = documents.seconds(event.at)
        until = since + self._run_limit_seconds
        host = event.nsqd or ""
        self._starts.note(host, request.turn, since)
        self._prove(request, _Evidence("running", host, event.worker, since, until, offset))

    def _prove(self, request: _Request, evidence: _Evidence) -> None:
        request.evidence, request.ended = evidence, False
        if request.state is _State.LOST:
            request.state = _State.PUBLISHED  # it is not

    def _is_others(self, request: _Request, event: documents.Event) -> bool:
        """Tell whether a worker speaks late, of a request that another one has begun since."""
        evidence = request.evidence
        return evidence is not None and evidence.what == "running" and evidence.worker != event.worker

    def _end_runs_of(self, event: documents.Event, offset: int) -> None:
        """End what earlier processes ran in the place of a worker: host and pool are the first parts of its name."""
        place = event.worker.rpartition("/")[0]
        for request in self._requests():
            evidence = request.evidence if request.runs() else None
            if evidence and evidence.offset < offset and evidence.worker.rpartition("/")[0] == place:
                self._end(request, event)

    def _end(self, request: _Request, event: documents.Event) -> None:
        """End a run that gave no answer: nsqd counts it as in flight until msg-timeout, and so must the evidence."""
        if request.evidence:
            noticed = documents.seconds(event.at) + self._msg_timeout_seconds + DEFERRED_MARGIN_SECONDS
            until = min(request.evidence.until, noticed)
            request.evidence, request.ended = dataclasses.replace(request.evidence, until=until), True

    # The rule

    def begin_reading(self, now: float) -> None:
        """Prepare for a reading of all hosts, which follows; then the events have to be read to their end.

        Evidence ends here and not later, so that both halves of a reading see the same.
        """
        self._before = self._publications
        self._starts.settle(now - self._msg_timeout_seconds - OVERDUE_MARGIN_SECONDS)
        for request in self._requests():
            if request.evidence and request.evidence.until < now:
                request.evidence, request.ended = None, False
                request.turn = self._publications  # it is at the end of the queue again

    def end_reading(self, hosts: Mapping[str, Figures], now: float) -> None:
        """Compare what ``hosts``, all that serve, held with what is not done, and conclude what is lost."""
        known = self._sort(hosts)
        self._deficit = known.count - sum(figures.held for figures in hosts.values())
        self._look(known, hosts, now)
        self._hold(hosts, known.suspects)
        if self._deficit <= 0 and not self.lost:
            self.missing_since = None
        elif self.missing_since is None:
            self.missing_since = now
        self._suspects = len(known.suspects)
        # All of them where that is sure, or what is left waits for another turn of the queue.
        if self._doubted.readings >= READINGS:
            self._conclude(known.suspects + known.doubtful, self._doubted.suspects)
        elif self._explained.readings >= READINGS:
            self._conclude(known.suspects, self._explained.suspects)
        elif now - self._empty.since > self._msg_timeout_seconds + EMPTY_MARGIN_SECONDS:
            self._conclude(known.suspects, self._empty.suspects)

    def _sort(self, hosts: Mapping[str, Figures]) -> _Known:
        """Sort what was published before the reading by what workers have told of it."""
        known = _Known()
        for request in self._requests():
            if request.state is not _State.PUBLISHED or request.publication > self._before:
                continue
            known.count += 1
            if request.evidence is None or not request.evidence.counts(hosts):
                known.suspects.append(request)
            elif request.evidence.what == "running":
                known.running += 1
            elif request.evidence.is_doubtful(hosts):
                known.doubtful.append(request)
            else:
                known.deferred += 1
        return known

    def _look(self, known: _Known, hosts: Mapping[str, Figures], now: float) -> None:
        """Note which conditions for a conclusion this reading meets."""
        in_flight = sum(figures.in_flight for figures in hosts.values())
        put_back = sum(figures.deferred for figures in hosts.values())
        nothing_waits = not any(figures.queued for figures in hosts.values())
        suspects = {request.publication for request in known.suspects}
        doubted = suspects | {request.publication for request in known.doubtful}
        # What is said to run, or to be put back, and is not at nsqd: so many of the missing are no suspects.
        missing = self._deficit - max(0, known.running - in_flight)
        missing_of_doubted = missing - max(0, known.deferred - put_back)
        missing_of_suspects = missing - max(0, known.deferred + len(known.doubtful) - put_back)
        self._short.look(set(), now, holds=self._deficit > 0)
        self._explained.look(suspects, now, holds=0 < len(suspects) <= missing_of_suspects)
        self._doubted.look(doubted, now, holds=0 < len(doubted) <= missing_of_doubted)
        self._empty.look(suspects, now, holds=nothing_waits and in_flight <= known.running)

    def miss_reading(self) -> None:
        """Begin to count anew: a host did not answer, or a publication was open."""
        for suspicion in (self._short, self._explained, self._doubted, self._empty):
            suspicion.look(set(), math.inf, holds=False)

    def _hold(self, hosts: Mapping[str, Figures], suspects: Sequence[_Request]) -> None:
        overdue = False
        for request in suspects:
            if request.evidence:  # of before nsqd's restart, which may have put it at the end of the queue
                request.turn = self._before
            overdue = overdue or (request.host in hosts and self._starts.passed(request.host, request.turn))
        if self._short.readings >= READINGS or overdue:
            self.holding = True
        elif self._deficit <= 0:
            self.holding = False

    def _conclude(self, suspects: Sequence[_Request], agreed: set[int]) -> None:
        for request in suspects:
            # One that still runs is left alone, nsqd or no nsqd: it ends by itself, or its time does.
            if request.publication in agreed and not request.runs():
                self._lose(request)
                self._deficit -= 1
        self.miss_reading()

    def _lose(self, request: _Request) -> None:
        request.state = _State.LOST
        self._lost.append(request)

    # What follows from it

    @property
    def lost(self) -> list[documents.Position]:
        """The positions that are to be published again."""
        self._lost = [request for request in self._lost if request.state is _State.LOST]
        return [request.position for request in self._lost]

    @property
    def missing(self) -> int:
        """How many NSQ has lost, as far as that is sure."""
        return len(self.lost) + (max(0, self._deficit) if self.holding else 0)

    @property
    def unaccounted(self) -> int:
        """How many may be among the missing: published, not done, and no worker has told that they are alive."""
        return self._suspects if self.holding else 0

    @property
    def outstanding(self) -> int:
        """How many were published and are not done."""
        return sum(len(partition.undone) for partition in self._partitions.values())

    def _requests(self) -> Iterator[_Request]:
        for partition in self._partitions.values():
            yield from partition.undone.values()


class _Starts:
    """How far each nsqd's queue has come for sure, in turns: what should have been started before that is overdue."""

    def __init__(self) -> None:
        #: host -> (when, the highest turn that was started in the second that began then).
        self._started: dict[str, deque[tuple[float, int]]] = {}
        self._passed: dict[str, int] = {}

    def note(self, host: str, turn: int, when: float) -> None:
        started = self._started.setdefault(host, deque())
        if started and when < started[-1][0] + 1:
            when, highest = started.pop()
            turn = max(turn, highest)
        started.append((when, turn))

    def settle(self, before: float) -> None:
        """Take as passed what was started before ``before``."""
        for host, started in self._started.items():
            while started and started[0][0] + 1 < before:
                self._passed[host] = max(self._passed.get(host, 0), started.popleft()[1])

    def passed(self, host: str, turn: int) -> bool:
        return turn < self._passed.get(host, 0)
