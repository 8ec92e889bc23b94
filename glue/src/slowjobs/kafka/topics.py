"""Which topics there are: one that is deleted and made anew has the same name and another id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import confluent_kafka

from slowjobs.kafka.common import TIMEOUT_SECONDS, admin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slowjobs import settings


class Topics:
    """Asks Kafka for the ids of topics; any thread may."""

    def __init__(self, kafka: settings.Kafka, secrets: settings.Credentials) -> None:
        self._client = admin(kafka, secrets)

    def ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Return ``topic -> id`` of those that are there. Raises confluent_kafka.KafkaException."""
        described = self._client.describe_topics(
            confluent_kafka.TopicCollection(list(topics)), request_timeout=TIMEOUT_SECONDS
        )
        ids = {}
        for topic, answer in described.items():
            try:
                ids[topic] = str(answer.result().topic_id)
            except confluent_kafka.KafkaException as error:
                if error.args[0].code() != confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
        return ids

    def id(self, topic: str) -> str:
        """Return the id of a topic that is there. Raises confluent_kafka.KafkaException, also when it is not."""
        ids = self.ids([topic])
        if topic not in ids:
            raise confluent_kafka.KafkaException(
                confluent_kafka.KafkaError(confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART, f"{topic} is not there")
            )
        return ids[topic]
