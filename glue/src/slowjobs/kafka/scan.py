"""All that a topic of one partition holds now, read once from the oldest message that is asked for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import confluent_kafka

from slowjobs.kafka.common import TIMEOUT_SECONDS, reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slowjobs import settings

#: messages that are taken over from librdkafka at once, of those that it has fetched.
_BATCH = 10_000


def scan(
    kafka: settings.Kafka, secrets: settings.Credentials, topic: str, *, first: int = 0, since: float | None = None
) -> Iterator[confluent_kafka.Message]:
    """Yield the messages from offset ``first`` to what is the end now. Raises confluent_kafka.KafkaException.

    ``since``: only those that were written from that moment on, in seconds since 1970.
    """
    with contextlib.closing(reader(kafka, secrets, group="slowjobs-scan")) as client:
        partition = confluent_kafka.TopicPartition(topic, 0)
        low, high = client.get_watermark_offsets(partition, timeout=TIMEOUT_SECONDS)
        if since is not None:
            partition.offset = int(since * 1000)
            [found] = client.offsets_for_times([partition], timeout=TIMEOUT_SECONDS)
            # Below 0 where nothing was written since.
            first = found.offset if found.offset >= 0 else high
        partition.offset = max(low, first)
        if partition.offset >= high:
            return
        client.assign([partition])
        while (message := client.poll(TIMEOUT_SECONDS)) is not None:
            for fetched in (message, *client.consume(_BATCH, 0)):
                error = fetched.error()
                if error is not None and error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                    return
                if error is not None:
                    raise confluent_kafka.KafkaException(error)
                yield fetched
                if (fetched.offset() or 0) >= high - 1:
                    return
        raise confluent_kafka.KafkaException(
            confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT, f"{topic}: nothing came in time")
        )
