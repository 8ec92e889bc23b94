"""A producer for commands: many messages, answers through callbacks."""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING

import confluent_kafka
import structlog

from slowjobs.kafka.common import DeliveryError, ProducerFailedError, Record, producer_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from slowjobs import documents, settings

log = structlog.get_logger()

#: messages that a BulkProducer has under way.
_BULK_MESSAGES = 10_000
#: KiB of them.
_BULK_KIBIBYTES = 64 * 1024
#: seconds between two looks at whether it has sent what it holds.
_POLL_SECONDS = 0.1
#: librdkafka's own words for a broker that does not answer.
_NO_ANSWER = (confluent_kafka.KafkaError._TRANSPORT, confluent_kafka.KafkaError._TIMED_OUT)


class Delivered:
    """Where a message that was sent is, and when it was produced: worked out only for who asks."""

    def __init__(self, message: confluent_kafka.Message) -> None:
        self._message = message

    @property
    def position(self) -> documents.Position:
        """Where the message is."""
        return Record.of(self._message).position

    @property
    def created(self) -> datetime:
        """When it was produced."""
        return Record.of(self._message).created


class BulkProducer:
    """A producer for commands that send many messages: called from one thread, answers through callbacks.

    Kafka away: waits for it; ``away`` hears of it once, until Kafka answers again. All callbacks run inside ``send``,
    ``poll``, ``flush`` and ``has_topic``. The latter raise ProducerFailedError when no message can be sent any more.
    """

    def __init__(
        self,
        kafka: settings.Kafka,
        secrets: settings.Credentials,
        *,
        client_id: str,
        away: Callable[[str], None] = lambda error: log.warning("server.away", server="kafka", error=error),
    ) -> None:
        self._tell_away = away
        self._is_away = False
        self._error = ""
        #: what sends a message again, of those that Kafka refused for their size.
        self._crowded: deque[Callable[[], None]] = deque()
        self._producer = confluent_kafka.Producer(
            producer_properties(
                kafka,
                secrets,
                client_id=client_id,
                timeout_seconds=0,
                **{
                    "linger.ms": 20,
                    "queue.buffering.max.messages": _BULK_MESSAGES,
                    "queue.buffering.max.kbytes": _BULK_KIBIBYTES,
                    "error_cb": self._hear,
                },
            )
        )

    def _hear(self, error: confluent_kafka.KafkaError) -> None:
        if error.code() != confluent_kafka.KafkaError._ALL_BROKERS_DOWN:
            self._error = error.str()  # which says more than that all are down
        elif not self._is_away:
            self._is_away = True
            self._tell_away(self._error)

    def has_topic(self, topic: str) -> bool:
        """Tell whether ``topic`` is there, once Kafka answers. Raises confluent_kafka.KafkaException."""
        while True:
            self._producer.poll(0)
            try:
                topics = self._producer.list_topics(timeout=1).topics
            except confluent_kafka.KafkaException as error:
                if error.args[0].code() not in _NO_ANSWER:
                    raise
            else:
                self._is_away = False
                return topic in topics

    def send(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes | None,
        then: Callable[[Delivered | DeliveryError], None],
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        """Queue a message; blocks while the queue is full. ``then`` hears once what became of it."""
        self._send_alone()
        self._produce(topic, value, key, then, headers)

    def _produce(
        self,
        topic: str,
        value: bytes,
        key: bytes | None,
        then: Callable[[Delivered | DeliveryError], None],
        headers: Mapping[str, bytes] | None,
        *,
        alone: bool = False,
    ) -> None:
        def _delivered(error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
            if error is None:
                self._is_away = False
                then(Delivered(message))
            elif error.code() == confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE and not alone:
                self._crowded.append(functools.partial(self._produce, topic, value, key, then, headers, alone=True))
            else:
                then(_refusal(error, topic))

        while True:
            try:
                self._producer.produce(
                    topic, value, key, on_delivery=_delivered, headers=dict(headers) if headers else None
                )
                break
            except BufferError:
                self._producer.poll(0.1)
            except confluent_kafka.KafkaException as error:
                then(_refusal(error.args[0], topic))
                break

    def _send_alone(self) -> None:
        """Send each message again that Kafka refused for its size: that may have been the size of its batch."""
        while self._crowded:
            if not self._producer.flush(_POLL_SECONDS):
                self._crowded.popleft()()

    def poll(self) -> None:
        """Hear what has been answered; waits only for messages that have to be sent alone."""
        self._producer.poll(0)
        self._send_alone()

    def flush(self, timeout_seconds: float) -> int:
        """Wait for all answers; return how many are still missing at the time-out."""
        left = int(self._producer.flush(timeout_seconds))
        if self._crowded:
            self._send_alone()
            left = int(self._producer.flush(timeout_seconds))
        return left


def _refusal(error: confluent_kafka.KafkaError, topic: str) -> DeliveryError:
    """Return why a message was not taken. Raises ProducerFailedError when none is from now on."""
    if error.code() == confluent_kafka.KafkaError._FATAL:
        raise ProducerFailedError(error.str())
    return DeliveryError(error, topic)
