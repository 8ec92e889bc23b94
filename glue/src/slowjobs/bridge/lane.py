"""What the bridge knows of one lane; nothing here reads or writes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from slowjobs import documents, kafka, settings
from slowjobs.bridge import backlog, cap, commit, ledger

if TYPE_CHECKING:
    from collections.abc import Iterable

#: bytes that a list leaves free beside an offset: a mark that comes later may have more digits.
_SPARE_BYTES = 64
#: events after which a commit is written anew although nothing else has changed: a restart reads from there.
_EVENTS = 5000


class Lane:
    """One lane: what of it waits here, what NSQ was given, and how much more NSQ may get."""

    def __init__(self, name: str, config: settings.BridgeSettings) -> None:
        lane = config.lanes[name]
        limit = config.pools[lane.pool].task_timeout_seconds
        self.name = name
        self.topic = config.kafka_topic(name)
        self.kind = config.kind_of(name)
        self.channel = lane.pool
        self.cap = cap.Cap(lane.max_outstanding)
        self.backlog = backlog.Backlog()
        self.ledger = ledger.Ledger(
            run_limit_seconds=limit + config.nsqd.msg_timeout_seconds,
            msg_timeout_seconds=config.nsqd.msg_timeout_seconds,
        )
        self._topic_id = ""
        #: the nsqd host of what an earlier bridge published and has not listed.
        self._active = config.nsqd.active
        #: partition -> what is about to be sent, or was sent without an answer.
        self.unsettled: dict[int, commit.Batch] = {}
        #: who waits for all of the lane to be discarded, and hears how many requests that were.
        self.discards: deque[asyncio.Future[int]] = deque()
        #: set by whatever may let the lane go on.
        self.wake = asyncio.Event()
        #: held from the choice of a batch to its answer: nsqd's figures say nothing meanwhile.
        self.publishing = asyncio.Lock()
        #: held while a batch is on its way, so that a stop does not cut it.
        self.sending = asyncio.Lock()
        #: partition -> the lowest position not done, and when it was produced.
        self.lowest: dict[int, tuple[int, float]] = {}
        #: partition -> where it ends, behind its last request.
        self._ends: dict[int, int] = {}
        #: partition -> what was to be committed last, without its batch; those of which Kafka perhaps does not have it.
        self._committed: dict[int, commit.Commit] = {}
        self._doubtful: set[int] = set()

    # Partitions

    def begin(self, committed: kafka.Committed, events: int, topic_id: str) -> int:
        """Take on a partition as the last commit left it; return where its events begin, ``events`` for a new one."""
        at = commit.read(committed.metadata, committed.offset or 0, topic_id)
        self._topic_id = topic_id
        partition = committed.partition
        self.forget(partition)
        begin = events if at.events is None else at.events
        self.ledger.begin(partition, at.mark, at.listed, begin)
        for offset, host in at.undone.items():
            self.ledger.restore(documents.Position(self.topic, partition, offset), host)
        if at.batch:
            sent = [offset for offset in at.batch.offsets if offset in at.undone]
            self.ledger.publish([documents.Position(self.topic, partition, offset) for offset in sent], at.batch.host)
            self.unsettled[partition] = at.batch
        self._committed[partition] = dataclasses.replace(at, events=begin, batch=None)
        return begin

    def forget_all(self) -> None:
        """Drop all partitions."""
        for partition in self.partitions:
            self.forget(partition)

    def forget(self, partition: int) -> None:
        """Drop a partition that went."""
        self.ledger.forget(partition)
        self.backlog.drop(partition)
        for known in (self.unsettled, self._committed, self._ends, self.lowest):
            known.pop(partition, None)
        self._doubtful.discard(partition)

    @property
    def partitions(self) -> list[int]:
        """The partitions that are ours."""
        return list(self._committed)

    def add(self, record: kafka.Record) -> None:
        """Take a request that Kafka gave, each partition's in order of their offsets."""
        position = record.position
        if position.partition not in self._committed:
            return  # it went
        if position.offset < max(self.ledger.listed(position.partition), self.backlog.next(position.partition)):
            return  # Kafka gives some again after a rebalance
        if position.offset >= self.ledger.mark(position.partition):
            self.backlog.add(record)
            self.wake.set()
        elif self.ledger.is_done(position):
            self.ledger.finish(position)
        else:
            self.ledger.restore(position, self._active)

    def end(self, partition: int, offset: int) -> None:
        """Note where a partition ends: Kafka gave all requests before it, and what is behind the last one is none."""
        if partition in self._committed:
            self._ends[partition] = offset

    def pass_ends(self) -> None:
        """Pass what is no request at the ends of partitions of which all requests are published."""
        for partition, end in self._ends.items():
            if not self.backlog.next(partition):
                self.ledger.pass_to(partition, end)

    def finish_all(self, partition: int, end: int) -> None:
        """Note that all below ``end`` is done, published or not; what Kafka gives of it from now on is dropped."""
        self.ledger.finish_all(partition, end)
        self.backlog.pass_to(partition, end)

    # Commit

    def to_commit(self, partition: int, events: int) -> kafka.Committed:
        """Return what is to be committed of a partition; ``events``: all before that were taken in."""
        said, text = self._as_far_as_it_fits(partition, events)
        if batch := self.unsettled.get(partition):
            with contextlib.suppress(commit.TooLongError):  # then the rule finds what became of the batch
                text = dataclasses.replace(said, batch=batch).write()
        self._committed[partition] = said
        self._doubtful.add(partition)
        return kafka.Committed(self.topic, partition, self.ledger.lowest(partition), text)

    def confirm(self, partitions: Iterable[int]) -> None:
        """Note that Kafka has what was last to be committed of ``partitions``."""
        self._doubtful.difference_update(partitions)

    def _as_far_as_it_fits(self, partition: int, events: int) -> tuple[commit.Commit, str]:
        """Return how things are, and the text of it.

        Where too many are not done it is the last list that fitted: the rest counts as not done.
        """
        if self.ledger.count(partition) <= settings.MAX_OUTSTANDING_LIMIT:
            now = self._as_it_is(partition, events)
            with contextlib.suppress(commit.TooLongError):
                return now, now.write(spare_bytes=_SPARE_BYTES)
        last = dataclasses.replace(self._committed[partition], mark=self.ledger.mark(partition))
        return last, last.write()

    def has_changed(self, partition: int, events: int) -> bool:
        """Tell whether a commit would say more than the last one."""
        last = self._committed[partition]
        return (
            partition in self._doubtful
            or last.mark != self.ledger.mark(partition)
            or len(last.undone) != self.ledger.count(partition)
            or events - (last.events or 0) > _EVENTS
        )

    def _as_it_is(self, partition: int, events: int) -> commit.Commit:
        ledger = self.ledger
        return commit.Commit(
            ledger.mark(partition),
            ledger.undone(partition),
            ledger.events_needed(partition, events),
            None,
            ledger.listed(partition),
            self._topic_id,
        )

    # What may be published

    @property
    def room(self) -> int:
        """How many requests NSQ may get now."""
        return min(self.cap.room, self.cap.max_outstanding - self.ledger.outstanding)

    def oldest_seconds(self) -> float | None:
        """Return how long ago the oldest request that is not done was produced; None when there is none."""
        created = [when for _, when in self.lowest.values()]
        waiting = self.backlog.created()
        oldest = min([*created, *([] if waiting is None else [waiting])], default=None)
        return None if oldest is None else max(0.0, time.time() - oldest)

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says of the lane."""
        since = self.ledger.missing_since
        oldest = self.oldest_seconds()
        return {
            "fetched": len(self.backlog),
            "outstanding": self.cap.outstanding,
            "max_outstanding": self.cap.max_outstanding,
            "room": max(0, self.room),
            "undone": self.ledger.outstanding,
            "missing": self.ledger.missing,
            "missing_since": None if since is None else documents.moment(since),
            "unaccounted": self.ledger.unaccounted,
            "holding": self.ledger.holding,
            "lost": len(self.ledger.lost),
            "unsettled": sum(len(batch.offsets) for batch in self.unsettled.values()),
            "oldest_seconds": None if oldest is None else round(oldest, 1),
        }
