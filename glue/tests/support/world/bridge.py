"""What the bridge does around the real ledger, as ``bridge/publishing.py`` and ``bridge/readings.py`` do it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from slowjobs.bridge import cap, commit
from slowjobs.bridge.ledger import Figures, Ledger
from support.world import times

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slowjobs import documents
    from support.world.nsqd import Nsqd
    from support.world.world import Process, World

_ANSWER_SECONDS = 3.0


class Bridge:
    """One process of the bridge, from its start to its end. Whoever seeds a bug overrides one of its steps."""

    ledger_class: type[Ledger] = Ledger

    def __init__(self, world: World) -> None:
        self._world = world
        self.ledger = self.ledger_class(run_limit_seconds=times.RUN_LIMIT, msg_timeout_seconds=times.MSG_TIMEOUT)
        self._cap = cap.Cap(world.cap)
        #: partition -> what is about to be sent, or was sent without an answer.
        self._unsettled: dict[int, commit.Batch] = {}
        #: from the choice of a batch to its answer, and while nsqd is read.
        self._locked = False
        self._committing = self._begun = False
        self._next_event = 0
        #: the lane is being emptied; it was.
        self.stopped = self.emptied = False
        self._frozen_until = 0.0
        self._processes = [world.start(self._run())]

    def kill(self) -> None:
        """Kill -9."""
        for process in self._processes:
            process.close()

    def freeze(self, seconds: float) -> None:
        """Stop it for a while, but not so long that another bridge could take its place."""
        self._frozen_until = self._world.now + seconds

    def _wait(self, seconds: float) -> Process:
        yield seconds
        while self._frozen_until > self._world.now:
            yield self._frozen_until - self._world.now

    def _step(self) -> Process:
        yield from self._wait(self._world.pause(times.STEP))

    def _lock(self) -> Process:
        while self._locked:
            yield from self._wait(0.05)
        self._locked = True

    def _run(self) -> Process:
        yield from self._step()
        self._begin()
        yield from self._step()
        self._follow()
        self._begun = True
        for part in (self._follow_for_ever, self._count, self._read_for_ever, self._publish_for_ever, self._commit):
            self._processes.append(self._world.start(part()))

    # Kafka

    def _begin(self) -> None:
        begins = []
        for partition, committed in self._world.committed.items():
            at = commit.read(committed.metadata, committed.offset)
            self.ledger.begin(partition, at.mark, at.listed, 0)
            for offset, host in at.undone.items():
                self.ledger.restore(self._world.position(partition, offset), host)
            if at.batch:
                self._unsettled[partition] = at.batch
            begins.append(len(self._world.events) if at.events is None else at.events)
        self._next_event = min(begins)

    def _follow(self) -> None:
        for offset in range(self._next_event, len(self._world.events)):
            self.ledger.apply(self._world.events[offset], offset)
        self._next_event = len(self._world.events)

    def _follow_for_ever(self) -> Process:
        while True:
            yield from self._wait(self._world.pause(1))
            self._follow()

    def _commit(self) -> Process:
        while True:
            yield from self._wait(self._world.pause(2))
            yield from self._commit_all()

    def _commit_all(self) -> Process:
        for partition in self._world.committed:
            yield from self._commit_one(partition)

    def _commit_one(self, partition: int) -> Process:
        """Commit a partition, one after another; each try takes its time, and may fail."""
        while self._committing:
            yield from self._wait(0.05)
        self._committing = True
        while True:
            offset, text = self.ledger.lowest(partition), self._text(partition)
            yield from self._step()
            if self._world.commit(partition, offset, text):
                break
        yield from self._step()
        self._committing = False

    def _text(self, partition: int) -> str:
        return commit.Commit(
            mark=self.ledger.mark(partition),
            undone=self.ledger.undone(partition),
            events=self.ledger.events_needed(partition, self._next_event),
            batch=self._unsettled.get(partition),
            listed=self.ledger.listed(partition),
        ).write()

    # Emptying the lane

    def empty_lane(self) -> None:
        """Discard all that is on Kafka and NSQ. It may die of it: whoever asked asks again."""
        self.stopped = True
        self._processes.append(self._world.start(self._empty_lane()))

    def _empty_lane(self) -> Process:
        yield from self._lock()
        while not self._begun or self._unsettled or not all(host.answers for host in self._hosts()):
            self._locked = False
            yield from self._step()
            yield from self._lock()
        yield from self._discard()
        self._locked = self.stopped = False
        self.emptied = True

    def _discard(self) -> Process:
        self._follow()
        for host in self._hosts():
            host.empty()
        yield from self._commit_all()
        yield from self._tell_of_all()

    def _tell_of_all(self) -> Process:
        yield from self._step()
        for position in self._world.all_requests():
            if position.offset in self.ledger.not_done(position.partition, range(position.offset + 1)):
                self._world.discard(position)
                yield from self._step()
                self.ledger.finish_all(position.partition, position.offset + 1)

    # nsqd

    def _hosts(self) -> list[Nsqd]:
        return self._world.configured

    def _active(self) -> Nsqd:
        return self._world.configured[0]

    def _figures(self) -> Process[dict[str, Figures] | None]:
        """Ask every host, one after another; None where one does not answer."""
        figures = {}
        for host in self._hosts():
            yield from self._step()
            if not host.answers:
                return None
            figures[host.name] = yield from self._figures_of(host)
        return figures

    def _figures_of(self, host: Nsqd) -> Process[Figures]:
        in_flight, deferred = len(host.in_flight), len(host.deferred)
        yield from self._wait(0 if self._world.still else 0.01)  # nsqd reads one after another, in this order
        return Figures(host.start_time, host.depth(), in_flight, deferred)

    def _count(self) -> Process:
        while True:
            yield from self._wait(self._world.pause(1))
            mark = self._cap.begin_reading()
            figures = yield from self._figures()
            if figures is None:
                self._cap.forget()
            else:
                self._cap.end_reading(mark, sum(each.held for each in figures.values()), copying=False)

    def _read_for_ever(self) -> Process:
        while True:
            yield from self._wait(times.READING)
            figures = yield from self._read()
            if figures is None:
                self.ledger.miss_reading()
                continue
            yield from self._step()
            self._judge(figures)

    def _read(self) -> Process[dict[str, Figures] | None]:
        yield from self._lock()
        figures = None
        if not self._unsettled:
            self.ledger.begin_reading(self._world.now)
            figures = yield from self._figures()
        self._locked = False
        return figures

    def _judge(self, figures: Mapping[str, Figures]) -> None:
        self._follow()
        before = self.ledger.lost
        self.ledger.end_reading(figures, self._world.now)
        shown = {name: (each.queued, each.in_flight, each.deferred) for name, each in figures.items()}
        self._world.note("bridge reads", shown, "undone", self.ledger.outstanding, *["holds"] * self.ledger.holding)
        self._conclude(before)

    def _conclude(self, before: list[documents.Position]) -> None:
        for position in self.ledger.lost:
            if position not in before:
                self._world.concluded(position)

    # Publishing

    def _publish_for_ever(self) -> Process:
        while True:
            yield from self._wait(self._world.pause(0.5))
            if self._unsettled:
                yield from self._settle()
            elif not self.stopped and self._active().answers and self._cap.room:
                yield from self._lock()
                yield from self._publish()
                self._locked = False

    def _publish(self) -> Process:
        lost = sorted(self.ledger.lost, key=lambda position: (position.partition, position.offset))
        if lost:
            chosen = [each for each in lost if each.partition == lost[0].partition][: self._cap.room]
        else:
            chosen = [] if self.ledger.holding else self._choose_new()
        if chosen:
            yield from self._send(chosen[0].partition, chosen)

    def _choose_new(self) -> list[documents.Position]:
        room = min(self._cap.room, self._world.cap - self.ledger.outstanding)
        for partition in self._world.shuffled(self._world.committed):
            waiting = self._world.requests_from(partition, self.ledger.listed(partition))
            while waiting and self.ledger.is_done(waiting[0]):
                self.ledger.finish(waiting.pop(0))
            chosen = list(itertools.takewhile(lambda position: not self.ledger.is_done(position), waiting[:room]))
            if chosen:
                return chosen
        return []

    def _send(self, partition: int, positions: list[documents.Position]) -> Process:
        active = self._active()
        self._unsettled[partition] = commit.Batch(
            active.name, active.start_time, active.message_count, tuple(each.offset for each in positions)
        )
        connected_to = active.start_time
        self.ledger.publish(positions, active.name)
        yield from self._commit_one(partition)
        if (yield from self._mpub(active, positions, connected_to)):
            self.ledger.settle(positions, len(positions))
            del self._unsettled[partition]

    def _mpub(self, host: Nsqd, positions: list[documents.Position], connected_to: int) -> Process[bool]:
        """Return whether nsqd has answered that it has all."""
        self._cap.send(len(positions))
        sending = self._world.publish(host, positions, connected_to)
        until = self._world.now + _ANSWER_SECONDS
        while sending.answer is None and sending.connected and self._world.now < until:
            yield from self._wait(0.1)
        sending.connected = False
        self._cap.settle(len(positions))
        return bool(sending.answer)

    def _settle(self) -> Process:
        for partition, batch in list(self._unsettled.items()):
            stored = yield from self._stored(batch)
            self._follow()
            before = self.ledger.lost
            self.ledger.settle([self._world.position(partition, offset) for offset in batch.offsets], stored)
            del self._unsettled[partition]
            self._cap.forget()  # what was stored since the last readings is not in them
            self._world.note("bridge settles", batch.offsets, "of partition", partition, "stored", stored)
            self._conclude(before)

    def _stored(self, batch: commit.Batch) -> Process[int]:
        host = next((host for host in self._hosts() if host.name == batch.host), None)
        if host is None:
            return len(batch.offsets)
        yield from self._outlast(host)
        yield from self._step()
        while not host.answers:
            yield from self._wait(0.5)
        if host.start_time != batch.start_time:
            return len(batch.offsets)
        return max(0, min(len(batch.offsets), host.message_count - batch.count))

    def _outlast(self, host: Nsqd) -> Process:
        """Wait until nsqd has stored all that a connection brought."""
        while not host.answers or self._world.is_on_the_way_to(host):
            yield from self._wait(0.5)
