"""Commits that are waited for, each with a text beside its offset."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import confluent_kafka
import structlog

from slowjobs.kafka.common import raise_if_fenced

if TYPE_CHECKING:
    from collections.abc import Iterable

log = structlog.get_logger()


class CommitError(confluent_kafka.KafkaException):
    """A commit that Kafka perhaps does not have: it is away, or a rebalance goes on. It may be tried again."""


@dataclass(frozen=True)
class Committed:
    """What a group commits of a partition: the next ``offset``, and a text of at most 4096 bytes.

    ``offset`` is None where nothing was ever committed.
    """

    topic: str
    partition: int
    offset: int | None
    metadata: str

    @classmethod
    def of(cls, partition: confluent_kafka.TopicPartition) -> Committed:
        """Return what Kafka answered. Raises confluent_kafka.KafkaException for a partition that it refused."""
        if partition.error is not None:
            raise confluent_kafka.KafkaException(partition.error)
        offset = partition.offset if partition.offset >= 0 else None
        return cls(partition.topic, partition.partition, offset, partition.metadata or "")


class Committer:
    """Commits one after another, in a thread of its own: a later commit never comes to Kafka before an earlier one.

    The end of the process does not wait for the thread: librdkafka takes long to give up while Kafka is away.
    ``turn``: held while ``consumer`` is called.
    """

    def __init__(self, consumer: confluent_kafka.Consumer, turn: threading.Lock) -> None:
        self._consumer = consumer
        self._turn = turn
        self._waiting: queue.SimpleQueue[tuple[list[confluent_kafka.TopicPartition], _Answer] | None]
        self._waiting = queue.SimpleQueue()
        #: when the commit that goes on began; infinity while none does.
        self._begun = math.inf
        self._thread = threading.Thread(target=self._work, name="kafka-commit", daemon=True)
        self._thread.start()

    async def commit(self, commits: Iterable[Committed]) -> None:
        """Return when Kafka has all of them. Raises FencedError or CommitError, which the log has, too.

        One that has begun goes on when its caller is cancelled.
        """
        partitions = [
            confluent_kafka.TopicPartition(each.topic, each.partition, each.offset, each.metadata)
            for each in commits
            if each.offset is not None
        ]
        if partitions:
            answer: _Answer = concurrent.futures.Future()
            self._waiting.put((partitions, answer))
            await asyncio.wrap_future(answer)

    @property
    def seconds(self) -> float:
        """How long the commit that goes on has lasted."""
        return max(0.0, time.monotonic() - self._begun)

    def close(self, timeout_seconds: float) -> bool:
        """Wait for what has begun, and tell whether it came to its end."""
        self._waiting.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            partitions, answer = waiting
            if answer.set_running_or_notify_cancel():
                try:
                    self._commit(partitions)
                except Exception as error:  # noqa: BLE001 - whatever it is its caller hears of it, who holds up a lane
                    log.warning("kafka.commit_failed", error=str(error))
                    answer.set_exception(error)
                else:
                    answer.set_result(None)

    def _commit(self, partitions: list[confluent_kafka.TopicPartition]) -> None:
        self._begun = time.monotonic()
        try:
            with self._turn:
                answers = self._consumer.commit(offsets=partitions, asynchronous=False)
            for answer in answers:
                Committed.of(answer)
        except confluent_kafka.KafkaException as error:
            raise_if_fenced(error.args[0])
            raise CommitError(*error.args) from error
        finally:
            self._begun = math.inf


_Answer = concurrent.futures.Future[None]
