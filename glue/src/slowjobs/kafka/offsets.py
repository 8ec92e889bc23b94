"""How far a group has come, and how much is left to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import confluent_kafka

from slowjobs.kafka.common import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Reach:
    """How far a group has come in a partition: the offset that it takes next, and that of the next message to come.

    ``next`` is never below the oldest message that is there: what retention took, nobody gets any more.
    ``metadata``: what the group committed beside its offset, empty where it committed nothing.
    """

    next: int
    end: int
    metadata: str


def reach(client: confluent_kafka.Consumer, topics: Iterable[str]) -> dict[str, list[Reach] | None]:
    """Return how far the group of ``client``, a ``reader``, has come: ``topic -> one for each partition``, in order.

    None for a topic that is not there. Raises confluent_kafka.KafkaException when no broker answers.
    """
    known = client.list_topics(timeout=TIMEOUT_SECONDS).topics
    return {topic: _reach(client, topic, known[topic].partitions) if topic in known else None for topic in topics}


def _reach(client: confluent_kafka.Consumer, topic: str, partitions: Iterable[int]) -> list[Reach]:
    wanted = [confluent_kafka.TopicPartition(topic, number) for number in sorted(partitions)]
    reaches = []
    for committed in client.committed(wanted, timeout=TIMEOUT_SECONDS):
        low, high = client.get_watermark_offsets(committed, timeout=TIMEOUT_SECONDS)
        reaches.append(Reach(max(low, committed.offset), high, committed.metadata or ""))
    return reaches
