"""Kafka: producers, consumer and admin as slowjobs uses them. librdkafka's traps are handled here and nowhere else."""

from slowjobs.kafka.bulk import BulkProducer, Delivered
from slowjobs.kafka.commits import CommitError, Committed
from slowjobs.kafka.common import (
    DEAD_LETTERS,
    EVENTS,
    MAX_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    REENQUEUED_HEADER,
    TIMEOUT_SECONDS,
    DeafError,
    DeliveryError,
    FencedError,
    PlaceLostError,
    ProducerFailedError,
    Record,
    admin,
    check_properties,
    properties,
    reader,
)
from slowjobs.kafka.consumer import Consumer
from slowjobs.kafka.deafness import until_deaf
from slowjobs.kafka.fetcher import Fetcher
from slowjobs.kafka.follower import Follower
from slowjobs.kafka.offsets import Reach, reach
from slowjobs.kafka.producer import Producer
from slowjobs.kafka.scan import scan
from slowjobs.kafka.topics import Topics

__all__ = [
    "DEAD_LETTERS",
    "EVENTS",
    "MAX_BODY_BYTES",
    "MAX_MESSAGE_BYTES",
    "REENQUEUED_HEADER",
    "TIMEOUT_SECONDS",
    "BulkProducer",
    "CommitError",
    "Committed",
    "Consumer",
    "DeafError",
    "Delivered",
    "DeliveryError",
    "FencedError",
    "Fetcher",
    "Follower",
    "PlaceLostError",
    "Producer",
    "ProducerFailedError",
    "Reach",
    "Record",
    "Topics",
    "admin",
    "check_properties",
    "properties",
    "reach",
    "reader",
    "scan",
    "until_deaf",
]
