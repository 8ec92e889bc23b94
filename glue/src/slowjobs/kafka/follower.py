"""A reader of one partition, from an offset on, that belongs to no group."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from typing import TYPE_CHECKING, TypeVar

import confluent_kafka

from slowjobs.kafka.common import (
    FETCH_AHEAD_KIBIBYTES,
    TIMEOUT_SECONDS,
    Record,
    close,
    gather,
    hears_in,
    is_end,
    reader_properties,
    records,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from slowjobs import settings

T = TypeVar("T")


class Follower:
    """Reads one partition from ``offset`` on, without a group.

    An offset that is not there, taken by retention or of a topic that was made anew, begins at the oldest message.
    Kafka away: nothing comes until it is back.
    """

    def __init__(
        self, kafka: settings.Kafka, secrets: settings.Credentials, topic: str, offset: int, partition: int = 0
    ) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(2, "kafka-follower")
        self._partition = confluent_kafka.TopicPartition(topic, partition, offset)
        #: the offset after all that was fetched, and after what is no message, once the end is reached.
        self.next = offset
        self._consumer = confluent_kafka.Consumer(
            reader_properties(
                kafka,
                secrets,
                group="slowjobs-follower",
                **{"queued.max.messages.kbytes": FETCH_AHEAD_KIBIBYTES, "fetch.wait.max.ms": 20},
            )
        )
        self._consumer.assign([self._partition])

    async def fetch(self, count: int, wait_seconds: float) -> list[Record]:
        """Return at most ``count`` messages, in their order; waits at most ``wait_seconds`` for the first."""
        batch: list[confluent_kafka.Message] = []
        await self._in_thread(functools.partial(gather, self._consume, batch, count, wait_seconds=wait_seconds))
        passed = [message for message in batch if message.error() is None or is_end(message)]
        if passed:
            self.next = (passed[-1].offset() or 0) + (passed[-1].error() is None)
        return list(records(batch))

    def _consume(self, count: int) -> list[confluent_kafka.Message]:
        return self._consumer.consume(count, 0)

    async def end(self) -> int:
        """Return the offset of the next message to come. Raises confluent_kafka.KafkaException."""
        _, end = await self._in_thread(
            functools.partial(self._consumer.get_watermark_offsets, self._partition, timeout=TIMEOUT_SECONDS)
        )
        return int(end)

    def hears(self) -> bool:
        """Tell whether Kafka answers this client; for ``until_deaf``."""
        return hears_in(self._threads, self._consumer)

    def close(self) -> None:
        """Wait for what is under way, and close the connections."""
        close(functools.partial(self._threads.shutdown, cancel_futures=True), self._consumer.close)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
