"""Which topics there are: one that is deleted and made anew has the same name and another id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import confluent_kafka

from slowjobs.kafka.common import TIMEOUT_SECONDS, admin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slowjobs import settings


def topic_ids(kafka: settings.Kafka, secrets: settings.Credentials, topics: Iterable[str]) -> dict[str, str]:
    """Return ``topic -> id`` of those that are there. Raises confluent_kafka.KafkaException."""
    client = admin(kafka, secrets)  # kept: it gives up what it was asked as soon as nobody holds it
    described = client.describe_topics(confluent_kafka.TopicCollection(list(topics)), request_timeout=TIMEOUT_SECONDS)
    ids = {}
    for topic, answer in described.items():
        try:
            ids[topic] = str(answer.result().topic_id)
        except confluent_kafka.KafkaException as error:
            if error.args[0].code() != confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
    return ids
