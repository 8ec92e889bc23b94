"""A producer for services: each message is awaited."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

import confluent_kafka

from slowjobs import documents, retry, settings
from slowjobs.kafka.common import (
    DEAD_LETTERS,
    MAX_BODY_BYTES,
    TIMEOUT_SECONDS,
    DeliveryError,
    ProducerFailedError,
    producer_properties,
)

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
            producer_properties(
                kafka,
                secrets,
                client_id=client_id,
                timeout_seconds=timeout_seconds,
                **{
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

    async def send_for_sure(self, topic: str, value: bytes) -> documents.Position:
        """Return where the message is once it is safe, however long Kafka refuses it."""
        return await retry.outlast(f"kafka topic {topic}", DeliveryError, self.send, topic, value)

    async def send_dead_letter(self, letter: documents.DeadLetter) -> None:
        """Return once the dead letter is safe: without it the request would be lost."""
        await self.send_for_sure(DEAD_LETTERS, letter.write(MAX_BODY_BYTES))

    async def close(self) -> None:
        """Wait for what is under way, at most 10 s, and stop."""
        await asyncio.to_thread(self._producer.flush, TIMEOUT_SECONDS)
        self._closing.set()
        await asyncio.to_thread(self._poller.join)
