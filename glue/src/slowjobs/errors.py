"""What a server that is away or refuses raises, and how a person is told."""

from __future__ import annotations

import confluent_kafka
import psycopg2

from slowjobs import nsq

#: errors of Kafka, PostgreSQL and nsqd.
SERVER_ERRORS = (confluent_kafka.KafkaException, psycopg2.Error, *nsq.ERRORS)


def text(error: BaseException) -> str:
    """Return the error in one line, without any library's own notation."""
    said = error.args[0].str() if isinstance(error, confluent_kafka.KafkaException) else str(error)
    return " ".join(said.split()) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))
