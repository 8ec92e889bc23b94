"""``slowjobs dead``: the dead letters on Kafka."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import confluent_kafka

from slowjobs import documents, kafka, kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slowjobs import settings


def read(config: settings.CliSettings, secrets: settings.Credentials) -> Iterator[dict[str, Any]]:
    """Yield all dead letters from the oldest, each with its offset as ``id``, up to those that are there now.

    One that cannot be read has the member ``unreadable`` with the reason. Raises confluent_kafka.KafkaException.
    """
    with contextlib.closing(kafka.reader(config.kafka, secrets, group="slowjobs-dead")) as client:
        start = confluent_kafka.TopicPartition(kafka.DEAD_LETTERS, 0, confluent_kafka.OFFSET_BEGINNING)
        client.assign([start])
        while (message := client.poll(kafka.TIMEOUT_SECONDS)) is not None:
            error = message.error()
            if error is not None and error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                return
            if error is not None:
                raise confluent_kafka.KafkaException(error)
            yield _letter(kafka.Record.of(message))
        raise confluent_kafka.KafkaException(
            confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT, "no dead letter came in time")
        )


def _letter(record: kafka.Record) -> dict[str, Any]:
    try:
        return {"id": record.position.offset, **documents.read_dead_letter(record.value)}
    except (kinds.RejectedError, documents.UnknownVersionError) as error:
        return {"id": record.position.offset, "unreadable": str(error)}
