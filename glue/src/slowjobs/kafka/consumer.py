"""The one member of a consumer group."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import confluent_kafka
import structlog

from slowjobs import retry
from slowjobs.kafka.commits import Committed, Committer
from slowjobs.kafka.common import (
    CLOSE_SECONDS,
    FETCH_AHEAD_KIBIBYTES,
    SESSION_SECONDS,
    TIMEOUT_SECONDS,
    FencedError,
    PlaceLostError,
    Record,
    close,
    gather,
    hears,
    is_end,
    properties,
    raise_if_fenced,
    records,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from slowjobs import settings

T = TypeVar("T")

log = structlog.get_logger()

#: seconds that a fetch waits for another call to end.
_TURN_SECONDS = 0.1
#: what a commit was answered with when there was no error.
_TAKEN = object()
#: seconds after which a commit hangs, while Kafka answers others.
_HANGING_SECONDS = 5.0


class Consumer:
    """The one member of a consumer group: classic protocol, static membership, commits by hand.

    A second instance fences the first. A new group begins at the earliest message: nothing that waits is skipped.
    Calls are made one after another, from one task; only ``commit_now`` and ``committed`` also from others.
    ``begin``: what says where to begin a partition that was assigned, None for where it was committed. It is called in
    the thread of ``fetch``, which raises what it raises; but after a confluent_kafka.KafkaException it is asked again.
    A topic that is made anew while this runs is neither lost nor joined: where the new one is shorter than this has
    come, it is read from its first offset on; where it is longer, librdkafka goes on at the old offset and passes over
    what the new topic has below. What a new partition beside it makes librdkafka ask again can come twice.
    """

    def __init__(
        self,
        kafka: settings.Kafka,
        secrets: settings.Credentials,
        *,
        group: str,
        topics: Sequence[str],
        begin: Callable[[Committed], int | None] | None = None,
    ) -> None:
        self._topics = list(topics)
        self._begin = begin
        self._closing = threading.Event()
        #: librdkafka takes one call at a time, and a commit can hang: who holds this makes one.
        self._turn = threading.Lock()
        #: topics that are to be held back, and those that are.
        self._hold_back: set[str] = set()
        self._held_back: set[str] = set()
        #: what the last ``fetch``, in its own thread, has consumed, and was told of partitions that came or went.
        self._fetched: list[confluent_kafka.Message] = []
        self._assigned: list[confluent_kafka.TopicPartition] = []
        self._revoked: list[confluent_kafka.TopicPartition] = []
        #: partition -> the offset after the last message that ``fetch`` has returned of it.
        self._next: dict[tuple[str, int], int] = {}
        #: with ``begin``: what was committed of the partitions that came.
        self._began: dict[tuple[str, int], Committed] = {}
        self._joined = False
        #: Kafka was away for too long, and this is no member until it has partitions again.
        self._place_lost = False
        #: offsets that are on their way to Kafka, those that go next, and Kafka's answer to the first.
        self._committing: dict[tuple[str, int], int] = {}
        self._uncommitted: dict[tuple[str, int], int] = {}
        self._answer: confluent_kafka.KafkaError | object | None = None
        self._consumer = confluent_kafka.Consumer(
            properties(
                kafka,
                secrets,
                **{
                    "client.id": group,
                    "group.id": group,
                    "group.instance.id": group,
                    "group.protocol": "classic",
                    "partition.assignment.strategy": "cooperative-sticky",
                    "session.timeout.ms": SESSION_SECONDS * 1000,
                    # PostgreSQL can be away for long; that this process works is systemd's watchdog to say.
                    "max.poll.interval.ms": 24 * 3600 * 1000,
                    "auto.offset.reset": "earliest",
                    "enable.partition.eof": True,
                    "enable.auto.commit": False,
                    "on_commit": self._committed,
                    "queued.max.messages.kbytes": FETCH_AHEAD_KIBIBYTES,
                    "fetch.message.max.bytes": 4 * 1024 * 1024,
                    "fetch.wait.max.ms": 100,
                    # Else what was full of messages once gets none for a second.
                    "fetch.queue.backoff.ms": 10,
                    "allow.auto.create.topics": False,
                },
            )
        )
        self._committer = Committer(self._consumer, self._turn)
        self._subscribe()

    async def fetch(self, count: int, *, wait_seconds: float, gather_seconds: float = 0) -> list[Record]:
        """Return at most ``count`` messages, and fewer when they are large: those on the way are not all in memory.

        Waits at most ``wait_seconds`` for the first, then ``gather_seconds`` for more. Raises FencedError or
        PlaceLostError.
        """
        self._fetched = []
        await asyncio.to_thread(self._fetch, count, wait_seconds, gather_seconds)
        with self._telling_who():
            self._follow_commit()
            came = list(records(self._fetched))
        # What an earlier configuration subscribed to can come first: Kafka remembers this member by its name.
        fetched = [record for record in came if record.position.topic in self._topics]
        self._next |= {record.position.partition_of: record.position.offset + 1 for record in fetched}
        return fetched

    def ends(self) -> dict[tuple[str, int], int]:
        """Return the partitions that the last ``fetch`` brought to their ends, ``(topic, partition) -> next offset``.

        Only those in which there is something behind the last message, as transactions leave it: a group that commits
        no more than messages never comes to the end of such a partition.
        """
        ends = {
            (each.topic() or "", each.partition() or 0): each.offset() or 0 for each in self._fetched if is_end(each)
        }
        return {
            where: end for where, end in ends.items() if where[0] in self._topics and end > self._next.get(where, 0)
        }

    def _fetch(self, count: int, wait_seconds: float, gather_seconds: float) -> None:
        gather(self._consume, self._fetched, count, wait_seconds=wait_seconds, gather_seconds=gather_seconds)

    def _consume(self, count: int) -> list[confluent_kafka.Message]:
        """Return what is here, or nothing while a commit hangs."""
        if not self._turn.acquire(timeout=_TURN_SECONDS):
            return []
        try:
            self._follow_hold_back()
            consumed = self._consumer.consume(count, 0)
            self._follow_rebalance()
        finally:
            self._turn.release()
        return consumed

    def lost(self) -> set[tuple[str, int]]:
        """Return the partitions that went since the last call: what of them is not committed will come again."""
        lost = {(partition.topic, partition.partition) for partition in self._revoked}
        self._revoked = []
        self._uncommitted = {where: offset for where, offset in self._uncommitted.items() if where not in lost}
        return lost

    def joined(self) -> list[Committed]:
        """Return the partitions that came since the last call, as they were committed; for a consumer with ``begin``.

        One that went and came again is in ``lost``, too, which is asked first: all that ``fetch`` returned by then
        comes again, from where ``begin`` said.
        """
        joined, self._began = self._began, {}
        return list(joined.values())

    async def committed(self, partitions: Iterable[tuple[str, int]]) -> list[Committed]:
        """Return what the group has committed of ``partitions``. Raises confluent_kafka.KafkaException."""
        asked = [confluent_kafka.TopicPartition(*where) for where in partitions]
        return await asyncio.to_thread(self._ask_in_turn, asked)

    def _ask_in_turn(self, partitions: list[confluent_kafka.TopicPartition]) -> list[Committed]:
        with self._turn:
            return self._ask_committed(partitions)

    def _ask_committed(self, partitions: list[confluent_kafka.TopicPartition]) -> list[Committed]:
        return [Committed.of(each) for each in self._consumer.committed(partitions, timeout=TIMEOUT_SECONDS)]

    async def commit_now(self, commits: Iterable[Committed]) -> None:
        """Return when Kafka has the commits, which are made in the order of the calls; not to be mixed with ``commit``.

        Raises FencedError, PlaceLostError, or CommitError when Kafka perhaps has not: the same or a later one may be
        tried. One that has begun goes on when its caller is cancelled, ``close`` waits for it a short time, and the log
        has its error.
        """
        with self._telling_who():
            await self._committer.commit(commits)

    def hears(self) -> bool:
        """Tell whether Kafka answers this client; for ``until_deaf``."""
        if self._committer.seconds > _HANGING_SECONDS or not self._turn.acquire(timeout=_HANGING_SECONDS):
            return False
        try:
            return hears(self._consumer)
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _telling_who(self) -> Iterator[None]:
        """Tell being fenced by another instance from that by ourselves.

        librdkafka gives its name in the group up after the session timeout and joins anew, and a commit that it had put
        off goes without a name: Kafka takes that for another instance's.
        """
        try:
            yield
        except FencedError as error:
            if self._place_lost:
                raise PlaceLostError(f"Kafka was away for longer than {SESSION_SECONDS} s: {error}") from error
            raise

    def hold_back(self, topics: set[str]) -> None:
        """Fetch nothing of just these topics until told otherwise; the group membership goes on."""
        self._hold_back = set(topics)

    def _follow_hold_back(self) -> None:
        wanted = self._hold_back
        for change, call in (
            (wanted - self._held_back, self._consumer.pause),
            (self._held_back - wanted, self._resume),
        ):
            if change:
                call([partition for partition in self._consumer.assignment() if partition.topic in change])
        self._held_back = wanted

    def _resume(self, partitions: list[confluent_kafka.TopicPartition]) -> None:
        self._consumer.resume(partitions)
        # With all partitions paused librdkafka's thread sleeps for up to a second, and resuming does not wake it.
        # Seeking does; pausing had thrown away what was fetched beyond this position anyway.
        with contextlib.suppress(confluent_kafka.KafkaException):  # one that goes just now
            for position in self._consumer.position(partitions):
                if position.offset >= 0:
                    self._consumer.seek(position)

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit ``(topic, partition) -> next offset``, beside the work; what Kafka does not take is tried again.

        ``fetch`` is what hears the answers, so it is called on and on.
        """
        self._uncommitted |= offsets
        if self._uncommitted and not self._committing:
            self._committing, self._uncommitted = self._uncommitted, {}
            partitions = [confluent_kafka.TopicPartition(*where, offset) for where, offset in self._committing.items()]
            try:
                self._consumer.commit(offsets=partitions, asynchronous=True)
            except confluent_kafka.KafkaException as error:
                self._answer = error.args[0]

    async def close(self) -> None:
        """Wait for the last commit and close, each for a short time: with Kafka away both would last its time-outs.

        Kafka keeps this member's place for its session timeout, so that a restart changes nothing.
        """
        self._closing.set()
        await asyncio.to_thread(self._finish_commits)
        if await asyncio.to_thread(self._committer.close, CLOSE_SECONDS):  # librdkafka takes no close beside a commit
            await asyncio.to_thread(close, self._turn.acquire, self._consumer.close)

    def _finish_commits(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS
        while (self._committing or self._uncommitted) and time.monotonic() < deadline:
            self.commit({})
            self._consumer.poll(0.1)  # what it brings is not committed, so it comes again
            self._follow_commit()

    def _committed(self, error: confluent_kafka.KafkaError | None, _: Sequence[confluent_kafka.TopicPartition]) -> None:
        if self._committing:  # or it was told to ``commit_now``
            self._answer = error or _TAKEN

    def _follow_commit(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(answer, confluent_kafka.KafkaError):
            raise_if_fenced(answer)
            log.warning("kafka.commit_failed", error=answer.str())
            self._uncommitted = {**self._committing, **self._uncommitted}
        self._committing = {}

    def _subscribe(self) -> None:
        self._consumer.subscribe(self._topics, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)

    def _lose(self, consumer: object, partitions: list[confluent_kafka.TopicPartition]) -> None:
        self._place_lost = True
        self._revoke(consumer, partitions)

    def _revoke(self, _: object, partitions: list[confluent_kafka.TopicPartition]) -> None:
        gone = {(partition.topic, partition.partition) for partition in partitions}
        log.info("kafka.revoked", partitions=len(gone), topics=" ".join(sorted({topic for topic, _ in gone})))
        self._revoked.extend(partitions)
        self._began = {where: committed for where, committed in self._began.items() if where not in gone}
        self._next = {where: offset for where, offset in self._next.items() if where not in gone}
        # In place: a fetch goes on adding to it.
        self._fetched[:] = [each for each in self._fetched if (each.topic(), each.partition()) not in gone]

    def _assign(self, _: object, partitions: list[confluent_kafka.TopicPartition]) -> None:
        self._assigned.extend(partitions)
        self._place_lost = False
        if self._begin is None:
            return
        ours = [partition for partition in partitions if partition.topic in self._topics]
        # To begin a partition elsewhere than where its commit says would be wrong.
        commits = self._outlast(functools.partial(self._ask_committed, ours))
        for partition, committed in zip(ours, commits, strict=True):
            self._began[committed.topic, committed.partition] = committed
            offset = self._outlast(functools.partial(self._begin, committed))
            if offset is not None:
                partition.offset = offset
        self._consumer.incremental_assign(partitions)

    def _follow_rebalance(self) -> None:
        if not self._assigned:
            return
        assigned = {(partition.topic, partition.partition) for partition in self._assigned}
        topics = {topic for topic, _ in assigned}
        log.info("kafka.assigned", partitions=len(assigned), topics=" ".join(sorted(topics)))
        self._assigned = []
        self._held_back = self._held_back - topics  # a new partition comes without its topic's pause
        if not self._joined and assigned != self._outlast(self._partitions):
            # A static member that comes back gets its old partitions without a rebalance, also when it wants other
            # topics now or they have more, and librdkafka does not notice. Subscribing anew makes it ask.
            self._consumer.unsubscribe()
            self._subscribe()
        self._joined = True

    def _outlast(self, ask: Callable[[], T]) -> T:
        """Ask until Kafka answers. Raises confluent_kafka.KafkaException when this consumer is to close before that."""
        away = retry.OnceAMinute()
        while True:
            try:
                return ask()
            except confluent_kafka.KafkaException as error:
                if away.is_due():
                    log.warning("server.away", server="kafka", error=error.args[0].str())
                if self._closing.wait(retry.FIRST_WAIT_SECONDS):
                    raise

    def _partitions(self) -> set[tuple[str, int]]:
        known = self._consumer.list_topics(timeout=TIMEOUT_SECONDS).topics
        return {(topic, number) for topic in self._topics if topic in known for number in known[topic].partitions}
