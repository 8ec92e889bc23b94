"""Kafka: producers, consumer and admin as slowjobs uses them. librdkafka's traps are handled here and nowhere else."""

from slowjobs.kafka.bulk import BulkProducer, Delivered
from slowjobs.kafka.common import (
    DEAD_LETTERS,
    EVENTS,
    MAX_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    REENQUEUED_HEADER,
    TIMEOUT_SECONDS,
    DeliveryError,
    ProducerFailedError,
    Record,
    admin,
    check_properties,
    properties,
    reader,
)
from slowjobs.kafka.consumer import Consumer, FencedError
from slowjobs.kafka.offsets import Reach, lag, reach
from slowjobs.kafka.producer import Producer

__all__ = [
    "DEAD_LETTERS",
    "EVENTS",
    "MAX_BODY_BYTES",
    "MAX_MESSAGE_BYTES",
    "REENQUEUED_HEADER",
    "TIMEOUT_SECONDS",
    "BulkProducer",
    "Consumer",
    "Delivered",
    "DeliveryError",
    "FencedError",
    "Producer",
    "ProducerFailedError",
    "Reach",
    "Record",
    "admin",
    "check_properties",
    "lag",
    "properties",
    "reach",
    "reader",
]
