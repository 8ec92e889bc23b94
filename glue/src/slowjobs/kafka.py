"""Kafka: producer, consumer and admin as slowjobs uses them. librdkafka's traps are handled here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import confluent_kafka
import confluent_kafka.admin
import structlog

from slowjobs import documents, retry, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
#: KiB that a consumer fetches ahead; librdkafka's default of 64 MiB is the larger part of a process of ours.
_FETCH_AHEAD_KIBIBYTES = 16 * 1024
#: bytes of messages that a batch ends with; the last of them can go far beyond.
_BATCH_BYTES = 16 * 1024 * 1024
#: messages that a BulkProducer has under way.
_BULK_MESSAGES = 10_000
#: KiB of them.
_BULK_KIBIBYTES = 64 * 1024
#: seconds between two looks at whether it has sent what it holds.
_POLL_SECONDS = 0.1
#: librdkafka's own words for a broker that does not answer.
_NO_ANSWER = (confluent_kafka.KafkaError._TRANSPORT, confluent_kafka.KafkaError._TIMED_OUT)


def properties(kafka: settings.Kafka, secrets: settings.Credentials, **ours: object) -> dict[str, Any]:
    """Return librdkafka's properties: ``ours``, over those of the inventory, over the secret ones, over defaults."""
    defaults = {
        # librdkafka reconnects by itself. Its own log would say so at every try; what ends a call comes as an error.
        "log_level": 2,
        "error_cb": _ErrorLog(),
        "reconnect.backoff.ms": 500,
        "reconnect.backoff.max.ms": 5000,
    }
    return {**defaults, **secrets.kafka, **kafka.properties, **ours}


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


#: where a message is now, or why it is nowhere.
_Answer = documents.Position | confluent_kafka.KafkaError


class Producer:
    """A producer whose ``send`` can be awaited: it returns once all in-sync replicas have the message.

    Kafka away: waits for it, for as long as it takes or ``timeout_seconds``. Used from one event loop.
    """

    def __init__(
        self,
        kafka: settings.Kafka,
        secrets: settings.Credentials,
        *,
        client_id: str,
        timeout_seconds: float = 0,
    ) -> None:
        self._producer = confluent_kafka.Producer(
            properties(
                kafka,
                secrets,
                **{
                    "client.id": client_id,
                    "enable.idempotence": True,
                    "acks": "all",
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "message.timeout.ms": int(timeout_seconds * 1000),  # 0: for ever
                    # A slot waits for each event; batches form by themselves while earlier ones are on their way.
                    "linger.ms": 0,
                    "socket.nagle.disable": True,
                },
            )
        )
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        #: Kafka's answers on their way from the poller's thread, and whether the loop knows that there are any.
        self._answers: deque[tuple[asyncio.Future[documents.Position], _Answer, str]] = deque()
        self._told = False
        self._closing = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="kafka-producer", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(0.2)

    async def watch(self) -> None:
        """Never return; raise ProducerFailedError when no message can be sent any more."""
        await asyncio.shield(self._failed)

    async def send(self, topic: str, value: bytes, *, key: bytes | None = None) -> documents.Position:
        """Return where the message is once it is safe. Raises DeliveryError.

        One that was given up after ``timeout_seconds`` may be on Kafka all the same: only its answer did not come.
        """
        delivered: asyncio.Future[documents.Position] = self._loop.create_future()

        def _delivered(error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
            position = documents.Position(topic, message.partition() or 0, message.offset() or 0)
            self._answers.append((delivered, position if error is None else error, topic))
            if not self._told:
                self._told = True
                self._loop.call_soon_threadsafe(self._settle_all)

        while True:
            try:
                self._producer.produce(topic, value, key=key, on_delivery=_delivered)
                break
            except BufferError:
                await asyncio.sleep(0.05)  # librdkafka's queue is full: its own limit is the back-pressure
            except confluent_kafka.KafkaException as error:
                self._settle(delivered, error.args[0], topic)
                break
        return await delivered

    def _settle_all(self) -> None:
        self._told = False  # first: what is appended from here on calls again
        while self._answers:
            self._settle(*self._answers.popleft())

    def _settle(self, delivered: asyncio.Future[documents.Position], answer: _Answer, topic: str) -> None:
        if isinstance(answer, confluent_kafka.KafkaError) and answer.code() == confluent_kafka.KafkaError._FATAL:
            # Its sender is not told, so it acknowledges nothing; ``watch`` ends the process.
            if not self._failed.done():
                self._failed.set_exception(ProducerFailedError(answer.str()))
        elif delivered.done():
            return  # its waiter was cancelled
        elif isinstance(answer, confluent_kafka.KafkaError):
            delivered.set_exception(DeliveryError(answer, topic))
        else:
            delivered.set_result(answer)

    async def send_for_sure(self, topic: str, value: bytes) -> None:
        """Return once the message is safe, however long Kafka refuses it."""
        try:
            await self.send(topic, value)
        except DeliveryError:
            async for attempt in retry.while_away(f"kafka topic {topic}", DeliveryError):
                with attempt:
                    await self.send(topic, value)

    async def send_dead_letter(self, letter: documents.DeadLetter) -> None:
        """Return once the dead letter is safe: without it the request would be lost."""
        await self.send_for_sure(DEAD_LETTERS, letter.write(MAX_BODY_BYTES))

    async def close(self) -> None:
        """Wait for what is under way, at most 10 s, and stop."""
        await asyncio.to_thread(self._producer.flush, TIMEOUT_SECONDS)
        self._closing.set()
        await asyncio.to_thread(self._poller.join)


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
            properties(
                kafka,
                secrets,
                **{
                    "client.id": client_id,
                    "enable.idempotence": True,
                    "acks": "all",
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "message.timeout.ms": 0,  # for ever
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


class FencedError(Exception):
    """Another instance of the same service has taken over this one's place in its consumer group."""


#: what a commit was answered with when there was no error.
_TAKEN = object()
#: seconds that a stopping service gives its last commit, and then librdkafka to close.
_CLOSE_SECONDS = 5.0
_FENCED = (confluent_kafka.KafkaError._FATAL, confluent_kafka.KafkaError.FENCED_INSTANCE_ID)


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


class Consumer:
    """The one member of a consumer group: classic protocol, static membership, commits by hand.

    A second instance fences the first. A new group begins at the earliest message: nothing that waits is skipped.
    Calls are made one after another, from one task.
    """

    def __init__(
        self, kafka: settings.Kafka, secrets: settings.Credentials, *, group: str, topics: Sequence[str]
    ) -> None:
        self._topics = list(topics)
        self._held_back: set[str] = set()
        #: what the last ``fetch``, in its own thread, was told of partitions that came or went.
        self._assigned: list[confluent_kafka.TopicPartition] = []
        self._revoked: list[confluent_kafka.TopicPartition] = []
        self._joined = False
        #: offsets that are on their way to Kafka, those that go next, and Kafka's answer to the first.
        self._committing: dict[tuple[str, int], int] = {}
        self._uncommitted: dict[tuple[str, int], int] = {}
        self._answer: confluent_kafka.KafkaError | object | None = None
        self._consumer = confluent_kafka.Consumer(
            properties(
                kafka,
                secrets,
                **{
                    "client.id": group,
                    "group.id": group,
                    "group.instance.id": group,
                    "group.protocol": "classic",
                    "partition.assignment.strategy": "cooperative-sticky",
                    "session.timeout.ms": 45000,
                    # PostgreSQL can be away for long; that this process works is systemd's watchdog to say.
                    "max.poll.interval.ms": 24 * 3600 * 1000,
                    "auto.offset.reset": "earliest",
                    "enable.auto.commit": False,
                    "on_commit": self._committed,
                    "queued.max.messages.kbytes": _FETCH_AHEAD_KIBIBYTES,
                    "fetch.message.max.bytes": 4 * 1024 * 1024,
                    "fetch.wait.max.ms": 100,
                    "topic.metadata.refresh.interval.ms": 30000,
                    "allow.auto.create.topics": False,
                },
            )
        )
        self._subscribe()

    async def fetch(self, count: int, *, wait_seconds: float, gather_seconds: float = 0) -> list[Record]:
        """Return at most ``count`` messages, and fewer when they are large: those on the way are not all in memory.

        Waits at most ``wait_seconds`` for the first, then ``gather_seconds`` for more. Raises FencedError.
        """
        fetched = await asyncio.to_thread(self._fetch, count, wait_seconds, gather_seconds)
        self._follow_commit()
        self._follow_rebalance()
        # What an earlier configuration subscribed to can come first: Kafka remembers this member by its name.
        return [record for record in _records(fetched) if record.position.topic in self._topics]

    def lost(self) -> set[tuple[str, int]]:
        """Return the partitions that went since the last call: what of them is not committed will come again."""
        lost = {(partition.topic, partition.partition) for partition in self._revoked}
        self._revoked = []
        self._uncommitted = {where: offset for where, offset in self._uncommitted.items() if where not in lost}
        return lost

    def hold_back(self, topics: set[str]) -> None:
        """Fetch nothing of just these topics until told otherwise; the group membership goes on."""
        for change, call in (
            (topics - self._held_back, self._consumer.pause),
            (self._held_back - topics, self._resume),
        ):
            if change:
                call([partition for partition in self._consumer.assignment() if partition.topic in change])
        self._held_back = set(topics)

    def _resume(self, partitions: list[confluent_kafka.TopicPartition]) -> None:
        self._consumer.resume(partitions)
        # With all partitions paused librdkafka's thread sleeps for up to a second, and resuming does not wake it.
        # Seeking does; pausing had thrown away what was fetched beyond this position anyway.
        with contextlib.suppress(confluent_kafka.KafkaException):  # one that goes just now
            for position in self._consumer.position(partitions):
                if position.offset >= 0:
                    self._consumer.seek(position)

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit ``(topic, partition) -> next offset``, beside the work; what Kafka does not take is tried again.

        ``fetch`` is what hears the answers, so it is called on and on.
        """
        self._uncommitted |= offsets
        if self._uncommitted and not self._committing:
            self._committing, self._uncommitted = self._uncommitted, {}
            partitions = [confluent_kafka.TopicPartition(*where, offset) for where, offset in self._committing.items()]
            try:
                self._consumer.commit(offsets=partitions, asynchronous=True)
            except confluent_kafka.KafkaException as error:
                self._answer = error.args[0]

    async def close(self) -> None:
        """Wait for the last commit and close, each for a short time: with Kafka away both would last its time-outs.

        Kafka keeps this member's place for its session timeout, so that a restart changes nothing.
        """
        await asyncio.to_thread(self._finish_commits)
        # A thread that the end of the process does not wait for.
        closing = threading.Thread(target=self._consumer.close, name="kafka-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _CLOSE_SECONDS)

    def _finish_commits(self) -> None:
        deadline = time.monotonic() + _CLOSE_SECONDS
        while (self._committing or self._uncommitted) and time.monotonic() < deadline:
            self.commit({})
            self._consumer.poll(0.1)  # what it brings is not committed, so it comes again
            self._follow_commit()

    def _committed(self, error: confluent_kafka.KafkaError | None, _: Sequence[confluent_kafka.TopicPartition]) -> None:
        self._answer = error or _TAKEN

    def _follow_commit(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(answer, confluent_kafka.KafkaError):
            if answer.fatal() or answer.code() in _FENCED:
                raise FencedError(answer.str())
            log.warning("kafka.commit_failed", error=answer.str())
            self._uncommitted = {**self._committing, **self._uncommitted}
        self._committing = {}

    def _subscribe(self) -> None:
        def _revoke(_: object, partitions: list[confluent_kafka.TopicPartition]) -> None:
            self._revoked.extend(partitions)

        def _assign(_: object, partitions: list[confluent_kafka.TopicPartition]) -> None:
            self._assigned.extend(partitions)

        self._consumer.subscribe(self._topics, on_assign=_assign, on_revoke=_revoke, on_lost=_revoke)

    def _fetch(self, count: int, wait_seconds: float, gather_seconds: float) -> list[confluent_kafka.Message]:
        fetched = _message(self._consumer.poll(wait_seconds))
        deadline = time.monotonic() + gather_seconds
        size = sum(map(len, fetched))
        while fetched and len(fetched) < count and size < _BATCH_BYTES:
            # What is here already, and no more of it than librdkafka fetches ahead; only then is it waited for more.
            more = self._consumer.consume(count - len(fetched), 0)
            if not more and (left := deadline - time.monotonic()) > 0:
                more = _message(self._consumer.poll(left))
            if not more:
                break
            size += sum(map(len, more))
            fetched += more
        return fetched

    def _follow_rebalance(self) -> None:
        if not self._assigned:
            return
        topics = {partition.topic for partition in self._assigned}
        log.info("kafka.assigned", partitions=len(self._assigned), topics=" ".join(sorted(topics)))
        self._assigned = []
        self._held_back -= topics  # a new partition comes without its topic's pause
        if not self._joined and topics != set(self._topics):
            # A static member that comes back gets its old partitions without a rebalance, also when it wants other
            # topics now, and librdkafka does not notice. Subscribing anew makes it ask.
            self._consumer.unsubscribe()
            self._subscribe()
        self._joined = True


def _message(polled: confluent_kafka.Message | None) -> list[confluent_kafka.Message]:
    return [] if polled is None else [polled]


def _records(batch: Iterable[confluent_kafka.Message]) -> Iterator[Record]:
    """Yield the messages among what ``consume`` returned; log errors. Raises FencedError for a fatal one."""
    for message in batch:
        error = message.error()
        if error is None:
            yield Record.of(message)
        elif error.fatal() or error.code() in _FENCED:
            raise FencedError(error.str())
        else:
            log.warning("kafka.consume", topic=message.topic(), code=error.name(), error=error.str())


@dataclass(frozen=True)
class Reach:
    """How far a group has come in a partition: the offset that it takes next, and that of the next message to come.

    ``next`` is never below the oldest message that is there: what retention took, nobody gets any more.
    """

    next: int
    end: int


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
        reaches.append(Reach(max(low, committed.offset), high))
    return reaches


def lag(
    kafka: settings.Kafka, secrets: settings.Credentials, *, group: str, topics: Sequence[str]
) -> dict[str, int | None]:
    """Return ``topic -> messages`` that ``group`` has not committed; None for a topic that is not there.

    Raises confluent_kafka.KafkaException when no broker answers.
    """
    with contextlib.closing(reader(kafka, secrets, group=group)) as client:
        reaches = reach(client, topics)
    return {
        topic: None if partitions is None else sum(each.end - each.next for each in partitions)
        for topic, partitions in reaches.items()
    }


def reader(kafka: settings.Kafka, secrets: settings.Credentials, *, group: str) -> confluent_kafka.Consumer:
    """Return a consumer that only looks: it joins no group and commits nothing."""
    return confluent_kafka.Consumer(
        properties(
            kafka,
            secrets,
            **{
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
                "allow.auto.create.topics": False,
            },
        )
    )


def admin(kafka: settings.Kafka, secrets: settings.Credentials) -> confluent_kafka.admin.AdminClient:
    """Return a client that makes and describes topics."""
    return confluent_kafka.admin.AdminClient(properties(kafka, secrets))
