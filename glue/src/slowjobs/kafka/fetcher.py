"""Messages by their positions, wherever these are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections import defaultdict, deque
from typing import TYPE_CHECKING

import confluent_kafka

from slowjobs.kafka.common import TIMEOUT_SECONDS, Record, close, hears_in, is_end, reader_properties

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slowjobs import documents, settings

#: offsets up to the next wanted one that are rather read than leapt over.
_NEAR = 100


class Fetcher:
    """Reads single messages, without a group. Calls wait for one another; any task may make them."""

    def __init__(self, kafka: settings.Kafka, secrets: settings.Credentials) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "kafka-fetcher")
        self._consumer = confluent_kafka.Consumer(
            reader_properties(
                kafka,
                secrets,
                group="slowjobs-fetcher",
                **{
                    # Beginning elsewhere would not end: what asked is to ask anew.
                    "auto.offset.reset": "error",
                    # One message is wanted, not all that come after it; a larger one comes nevertheless.
                    "fetch.message.max.bytes": 64 * 1024,
                    "queued.max.messages.kbytes": 1024,
                    # A leap waits for the answer about what is no longer wanted, and for room to fetch ahead.
                    "fetch.wait.max.ms": 10,
                    "fetch.queue.backoff.ms": 10,
                },
            )
        )

    async def read(self, positions: Iterable[documents.Position]) -> dict[documents.Position, Record]:
        """Return the messages at ``positions``, some hundred at most: all of them are in memory together.

        One that is not there any more, or not yet, is absent. Of a topic that was made anew, what is there now is
        taken for what was. Raises confluent_kafka.KafkaException, after 10 s when no broker answers: ask again.
        """
        wanted: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for position in positions:
            wanted[position.partition_of].append(position.offset)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, wanted)

    async def reach(self, topic: str) -> dict[int, range]:
        """Return ``partition -> the offsets from its oldest message to its end``. Raises as ``read``."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._reach, topic)

    def hears(self) -> bool:
        """Tell whether Kafka answers this client; for ``until_deaf``."""
        return hears_in(self._thread, self._consumer)

    def close(self) -> None:
        """Wait for what is being read, and close the connections."""
        close(functools.partial(self._thread.shutdown, cancel_futures=True), self._consumer.close)

    def _read(self, wanted: Mapping[tuple[str, int], Iterable[int]]) -> dict[documents.Position, Record]:
        found: dict[documents.Position, Record] = {}
        left = self._there(wanted)
        self._consumer.assign([confluent_kafka.TopicPartition(*where, offsets[0]) for where, offsets in left.items()])
        try:
            while left:
                message = self._next()
                where, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
                if where not in left:
                    continue
                offsets = left[where]
                while offsets and (offsets[0] < offset or is_end(message)):
                    offsets.popleft()  # nothing is there any more
                if offsets and offsets[0] == offset:
                    record = Record.of(message)
                    found[record.position] = record
                    offsets.popleft()
                if not offsets:
                    del left[where]
                    self._consumer.incremental_unassign([confluent_kafka.TopicPartition(*where)])
                elif offsets[0] > offset + _NEAR:
                    self._consumer.seek(confluent_kafka.TopicPartition(*where, offsets[0]))
        finally:
            self._consumer.unassign()
        return found

    def _reach(self, topic: str) -> dict[int, range]:
        return {partition: range(*self._ends(topic, partition)) for partition in self._partitions(topic)}

    def _partitions(self, topic: str) -> list[int]:
        # Asked anew: librdkafka remembers what is missing for long.
        known = self._consumer.list_topics(topic, TIMEOUT_SECONDS).topics[topic]
        if known.error is not None or not known.partitions:
            raise confluent_kafka.KafkaException(known.error or _unknown(topic))
        return list(known.partitions)

    def _ends(self, topic: str, partition: int) -> tuple[int, int]:
        return self._consumer.get_watermark_offsets(
            confluent_kafka.TopicPartition(topic, partition), timeout=TIMEOUT_SECONDS
        )

    def _there(self, wanted: Mapping[tuple[str, int], Iterable[int]]) -> dict[tuple[str, int], deque[int]]:
        """Return those of ``wanted`` that are between a partition's ends, in order."""
        known = {topic: self._partitions(topic) for topic, _ in wanted}
        there = {}
        for (topic, partition), offsets in wanted.items():
            if partition not in known[topic]:
                raise confluent_kafka.KafkaException(_unknown(topic))
            low, high = self._ends(topic, partition)
            there[topic, partition] = deque(sorted({offset for offset in offsets if low <= offset < high}))
        return {where: offsets for where, offsets in there.items() if offsets}

    def _next(self) -> confluent_kafka.Message:
        """Return what comes next: a message or an end."""
        message = self._consumer.poll(TIMEOUT_SECONDS)
        if message is None:
            raise confluent_kafka.KafkaException(
                confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT, "no message came in time")
            )
        error = message.error()
        if error is not None and not is_end(message):
            raise confluent_kafka.KafkaException(error)
        return message


def _unknown(topic: str) -> confluent_kafka.KafkaError:
    """Return what a broker says, too, that has just come back and knows little yet: no proof that nothing is there."""
    return confluent_kafka.KafkaError(confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART, topic)
