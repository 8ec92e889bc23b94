"""What every client of Kafka needs: names and sizes, librdkafka's properties, what it raises, a message as it came."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import confluent_kafka
import confluent_kafka.admin
import structlog

from slowjobs import documents, retry, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = structlog.get_logger()

DEAD_LETTERS = "slowjobs-dead-letters"
#: what workers do, in the order in which they do it: one partition.
EVENTS = "slowjobs-events"
#: the header of a request that was sent again by a person or a policy; its value says by which.
REENQUEUED_HEADER = "slowjobs-reenqueued"
#: bytes; of results and dead letters.
MAX_MESSAGE_BYTES = 21 * 1024 * 1024
#: bytes of a result's or a dead letter's body; the rest of a message is left for key and headers.
MAX_BODY_BYTES = 20 * 1024 * 1024
#: seconds; for one question to a broker.
TIMEOUT_SECONDS = 10.0
#: seconds after which Kafka gives a consumer's place in its group to another, and a consumer gives it up that has not
#: heard from Kafka. Long, for nobody waits for the place: another instance takes it at once. It is what the oldest
#: brokers allow.
SESSION_SECONDS = 300
#: seconds in which a client that hears has its answer.
_HEARING_SECONDS = 3.0
#: KiB that a consumer fetches ahead; librdkafka's default of 64 MiB is the larger part of a process of ours.
FETCH_AHEAD_KIBIBYTES = 16 * 1024
#: seconds that a stopping service gives its last commit, and then librdkafka to close.
CLOSE_SECONDS = 5.0
_FENCED = (confluent_kafka.KafkaError._FATAL, confluent_kafka.KafkaError.FENCED_INSTANCE_ID)
#: bytes of messages that a batch ends with; the last of them can go far beyond.
_BATCH_BYTES = 16 * 1024 * 1024
#: seconds between two looks at what librdkafka has fetched.
_LOOK_SECONDS = 0.005


def properties(kafka: settings.Kafka, secrets: settings.Credentials, **ours: object) -> dict[str, Any]:
    """Return librdkafka's properties: ``ours``, over those of the inventory, over the secret ones, over defaults."""
    defaults = {
        # librdkafka reconnects by itself. Its own log would say so at every try; what ends a call comes as an error.
        "log_level": 2,
        "error_cb": _ErrorLog(),
        # Up to half as much more is drawn; with librdkafka's 10 s all would work again long after Kafka does.
        "reconnect.backoff.ms": 250,
        "reconnect.backoff.max.ms": 1500,
        # A broker that has just come back can name a topic without its partitions, and is believed until then.
        "topic.metadata.refresh.interval.ms": 5000,
    }
    return {**defaults, **secrets.kafka, **kafka.properties, **ours}


def producer_properties(
    kafka: settings.Kafka, secrets: settings.Credentials, *, client_id: str, timeout_seconds: float, **ours: object
) -> dict[str, Any]:
    """Return the properties of a producer whose messages are safe in all in-sync replicas once they are answered for.

    ``timeout_seconds``: how long Kafka may be away before a message is given up, 0 for ever.
    """
    return properties(
        kafka,
        secrets,
        **{
            "client.id": client_id,
            "enable.idempotence": True,
            "acks": "all",
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "message.timeout.ms": int(timeout_seconds * 1000),
            **ours,
        },
    )


def check_properties(kafka: settings.Kafka, secrets: settings.Credentials) -> None:
    """Raise settings.ConfigurationError for a property that librdkafka does not know or take; asks no server."""
    try:
        confluent_kafka.admin.AdminClient(properties(kafka, secrets))
    except confluent_kafka.KafkaException as error:
        raise settings.ConfigurationError(f"kafka.properties: {error.args[0].str()}") from error


class _ErrorLog:
    """Logs what librdkafka reports beside its calls: each kind of error once a minute."""

    def __init__(self) -> None:
        self._kinds: defaultdict[str, retry.OnceAMinute] = defaultdict(retry.OnceAMinute)

    def __call__(self, error: confluent_kafka.KafkaError) -> None:
        if self._kinds[error.name()].is_due():
            log.warning("kafka.error", code=error.name(), error=error.str())


class DeliveryError(Exception):
    """A message that Kafka refuses for good: waiting does not help. ``too_large``: for its size."""

    def __init__(self, error: confluent_kafka.KafkaError, topic: str) -> None:
        super().__init__(f"{topic}: {error.str()}")
        self.too_large = error.code() == confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE


class ProducerFailedError(Exception):
    """librdkafka has given the producer up, to keep order and uniqueness: only a new process helps."""


class FencedError(Exception):
    """Another instance of the same service has taken over this one's place in its consumer group."""


class PlaceLostError(Exception):
    """Kafka was away for longer than ``SESSION_SECONDS``, and librdkafka has given up: only a new process helps."""


class DeafError(Exception):
    """Kafka answers others and not this consumer: only a new one helps."""


def raise_if_fenced(error: confluent_kafka.KafkaError) -> None:
    """Raise FencedError for an error that says so."""
    if error.fatal() or error.code() in _FENCED:
        raise FencedError(error.str())


@dataclass(frozen=True)
class Record:
    """A message as it was consumed.

    ``created``: when it was produced; ``value`` is empty where there is none; ``reenqueued``: sent again on purpose.
    """

    position: documents.Position
    value: bytes
    created: datetime
    reenqueued: bool = False

    @classmethod
    def of(cls, message: confluent_kafka.Message) -> Record:
        """Return what ``message`` holds; it must be no error."""
        position = documents.Position(message.topic() or "", message.partition() or 0, message.offset() or 0)
        reenqueued = REENQUEUED_HEADER in dict(message.headers() or ())
        return cls(position, message.value() or b"", _created(message), reenqueued)


def _created(message: confluent_kafka.Message) -> datetime:
    """Return when a message was produced; a time that no calendar has, as some producers write, counts as now."""
    _, milliseconds = message.timestamp()
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OSError, OverflowError, ValueError):
        return datetime.now(UTC)


def gather(
    consume: Callable[[int], list[confluent_kafka.Message]],
    batch: list[confluent_kafka.Message],
    count: int,
    *,
    wait_seconds: float,
    gather_seconds: float = 0,
) -> None:
    """Add what ``consume`` gives to ``batch``, at most ``count`` and fewer when they are large: errors are among them.

    Waits at most ``wait_seconds`` for the first, then ``gather_seconds`` for more. It waits here, not in a call: a
    consumer takes one call at a time, and others want their turn.
    """
    deadline = time.monotonic() + wait_seconds
    while len(batch) < count and sum(map(len, batch)) < _BATCH_BYTES:
        # What is here already, and no more of it than librdkafka fetches ahead.
        more = consume(count - len(batch))
        if more and not batch:
            deadline = time.monotonic() + gather_seconds
        batch += more
        if not more:
            if time.monotonic() >= deadline:
                break
            time.sleep(_LOOK_SECONDS)


def records(batch: Iterable[confluent_kafka.Message]) -> Iterator[Record]:
    """Yield the messages among what was consumed; log errors. Raises FencedError for a fatal one."""
    for message in batch:
        error = message.error()
        if error is None:
            yield Record.of(message)
        elif not is_end(message):
            raise_if_fenced(error)
            log.warning("kafka.consume", topic=message.topic(), code=error.name(), error=error.str())


def reader(kafka: settings.Kafka, secrets: settings.Credentials, *, group: str) -> confluent_kafka.Consumer:
    """Return a consumer that only looks: it joins no group and commits nothing."""
    return confluent_kafka.Consumer(
        reader_properties(kafka, secrets, group=group, **{"fetch.message.max.bytes": MAX_MESSAGE_BYTES})
    )


def reader_properties(
    kafka: settings.Kafka, secrets: settings.Credentials, *, group: str, **ours: object
) -> dict[str, Any]:
    """Return the properties of a consumer that only looks and is told where each partition ends (``is_end``)."""
    return properties(
        kafka,
        secrets,
        **{
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
            **ours,
        },
    )


def is_end(message: confluent_kafka.Message) -> bool:
    """Tell whether this is no message, but says that there are no more for now; its offset is that of the next."""
    error = message.error()
    return error is not None and error.code() == confluent_kafka.KafkaError._PARTITION_EOF


def hears(consumer: confluent_kafka.Consumer) -> bool:
    """Tell whether Kafka answers a consumer."""
    try:
        consumer.list_topics(EVENTS, _HEARING_SECONDS)
    except confluent_kafka.KafkaException:
        return False
    return True


def hears_in(threads: concurrent.futures.Executor, consumer: confluent_kafka.Consumer) -> bool:
    """Tell whether Kafka answers a consumer of which ``threads`` make all calls.

    True when it was closed meanwhile, for which ``threads`` were shut down: nobody has to replace it.
    """
    try:
        return threads.submit(hears, consumer).result()
    except (RuntimeError, concurrent.futures.CancelledError):
        return True


def close(*steps: Callable[[], object]) -> None:
    """Do what closes a consumer, and leave it to the end of the process after ``CLOSE_SECONDS``.

    With Kafka away it lasts librdkafka's time-outs, and with an offset that is just being reset for ever. ``steps``:
    first what waits for the calls that other threads make, as librdkafka does not, and then its own close.
    """

    def _close() -> None:
        for step in steps:
            step()

    # A thread that the end of the process does not wait for.
    closing = threading.Thread(target=_close, name="kafka-close", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)


def admin(kafka: settings.Kafka, secrets: settings.Credentials) -> confluent_kafka.admin.AdminClient:
    """Return a client that makes and describes topics."""
    return confluent_kafka.admin.AdminClient(properties(kafka, secrets))
