"""The one member of a consumer group."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

import confluent_kafka
import structlog

from slowjobs.kafka.common import Record, properties

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from slowjobs import settings

log = structlog.get_logger()

#: KiB that a consumer fetches ahead; librdkafka's default of 64 MiB is the larger part of a process of ours.
_FETCH_AHEAD_KIBIBYTES = 16 * 1024
#: bytes of messages that a batch ends with; the last of them can go far beyond.
_BATCH_BYTES = 16 * 1024 * 1024
#: what a commit was answered with when there was no error.
_TAKEN = object()
#: seconds that a stopping service gives its last commit, and then librdkafka to close.
_CLOSE_SECONDS = 5.0
_FENCED = (confluent_kafka.KafkaError._FATAL, confluent_kafka.KafkaError.FENCED_INSTANCE_ID)


class FencedError(Exception):
    """Another instance of the same service has taken over this one's place in its consumer group."""


class Consumer:
    """The one member of a consumer group: classic protocol, static membership, commits by hand.

    A second instance fences the first. A new group begins at the earliest message: nothing that waits is skipped.
    Calls are made one after another, from one task.
    """

    def __init__(
        self, kafka: settings.Kafka, secrets: settings.Credentials, *, group: str, topics: Sequence[str]
    ) -> None:
        self._topics = list(topics)
        self._held_back: set[str] = set()
        #: what the last ``fetch``, in its own thread, was told of partitions that came or went.
        self._assigned: list[confluent_kafka.TopicPartition] = []
        self._revoked: list[confluent_kafka.TopicPartition] = []
        self._joined = False
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
                    "session.timeout.ms": 45000,
                    # PostgreSQL can be away for long; that this process works is systemd's watchdog to say.
                    "max.poll.interval.ms": 24 * 3600 * 1000,
                    "auto.offset.reset": "earliest",
                    "enable.auto.commit": False,
                    "on_commit": self._committed,
                    "queued.max.messages.kbytes": _FETCH_AHEAD_KIBIBYTES,
                    "fetch.message.max.bytes": 4 * 1024 * 1024,
                    "fetch.wait.max.ms": 100,
                    "topic.metadata.refresh.interval.ms": 30000,
                    "allow.auto.create.topics": False,
                },
            )
        )
        self._subscribe()

    async def fetch(self, count: int, *, wait_seconds: float, gather_seconds: float = 0) -> list[Record]:
        """Return at most ``count`` messages, and fewer when they are large: those on the way are not all in memory.

        Waits at most ``wait_seconds`` for the first, then ``gather_seconds`` for more. Raises FencedError.
        """
        fetched = await asyncio.to_thread(self._fetch, count, wait_seconds, gather_seconds)
        self._follow_commit()
        self._follow_rebalance()
        # What an earlier configuration subscribed to can come first: Kafka remembers this member by its name.
        return [record for record in _records(fetched) if record.position.topic in self._topics]

    def lost(self) -> set[tuple[str, int]]:
        """Return the partitions that went since the last call: what of them is not committed will come again."""
        lost = {(partition.topic, partition.partition) for partition in self._revoked}
        self._revoked = []
        self._uncommitted = {where: offset for where, offset in self._uncommitted.items() if where not in lost}
        return lost

    def hold_back(self, topics: set[str]) -> None:
        """Fetch nothing of just these topics until told otherwise; the group membership goes on."""
        for change, call in (
            (topics - self._held_back, self._consumer.pause),
            (self._held_back - topics, self._resume),
        ):
            if change:
                call([partition for partition in self._consumer.assignment() if partition.topic in change])
        self._held_back = set(topics)

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
        await asyncio.to_thread(self._finish_commits)
        # A thread that the end of the process does not wait for.
        closing = threading.Thread(target=self._consumer.close, name="kafka-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _CLOSE_SECONDS)

    def _finish_commits(self) -> None:
        deadline = time.monotonic() + _CLOSE_SECONDS
        while (self._committing or self._uncommitted) and time.monotonic() < deadline:
            self.commit({})
            self._consumer.poll(0.1)  # what it brings is not committed, so it comes again
            self._follow_commit()

    def _committed(self, error: confluent_kafka.KafkaError | None, _: Sequence[confluent_kafka.TopicPartition]) -> None:
        self._answer = error or _TAKEN

    def _follow_commit(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(answer, confluent_kafka.KafkaError):
            if answer.fatal() or answer.code() in _FENCED:
                raise FencedError(answer.str())
            log.warning("kafka.commit_failed", error=answer.str())
            self._uncommitted = {**self._committing, **self._uncommitted}
        self._committing = {}

    def _subscribe(self) -> None:
        def _revoke(_: object, partitions: list[confluent_kafka.TopicPartition]) -> None:
            self._revoked.extend(partitions)

        def _assign(_: object, partitions: list[confluent_kafka.TopicPartition]) -> None:
            self._assigned.extend(partitions)

        self._consumer.subscribe(self._topics, on_assign=_assign, on_revoke=_revoke, on_lost=_revoke)

    def _fetch(self, count: int, wait_seconds: float, gather_seconds: float) -> list[confluent_kafka.Message]:
        fetched = _message(self._consumer.poll(wait_seconds))
        deadline = time.monotonic() + gather_seconds
        size = sum(map(len, fetched))
        while fetched and len(fetched) < count and size < _BATCH_BYTES:
            # What is here already, and no more of it than librdkafka fetches ahead; only then is it waited for more.
            more = self._consumer.consume(count - len(fetched), 0)
            if not more and (left := deadline - time.monotonic()) > 0:
                more = _message(self._consumer.poll(left))
            if not more:
                break
            size += sum(map(len, more))
            fetched += more
        return fetched

    def _follow_rebalance(self) -> None:
        if not self._assigned:
            return
        topics = {partition.topic for partition in self._assigned}
        log.info("kafka.assigned", partitions=len(self._assigned), topics=" ".join(sorted(topics)))
        self._assigned = []
        self._held_back -= topics  # a new partition comes without its topic's pause
        if not self._joined and topics != set(self._topics):
            # A static member that comes back gets its old partitions without a rebalance, also when it wants other
            # topics now, and librdkafka does not notice. Subscribing anew makes it ask.
            self._consumer.unsubscribe()
            self._subscribe()
        self._joined = True


def _message(polled: confluent_kafka.Message | None) -> list[confluent_kafka.Message]:
    return [] if polled is None else [polled]


def _records(batch: Iterable[confluent_kafka.Message]) -> Iterator[Record]:
    """Yield the messages among what ``consume`` returned; log errors. Raises FencedError for a fatal one."""
    for message in batch:
        error = message.error()
        if error is None:
            yield Record.of(message)
        elif error.fatal() or error.code() in _FENCED:
            raise FencedError(error.str())
        else:
            log.warning("kafka.consume", topic=message.topic(), code=error.name(), error=error.str())
