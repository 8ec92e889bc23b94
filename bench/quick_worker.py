"""A worker that does nothing, quickly: what it tells Kafka and nsqd, and in which order, is what a worker does."""

from __future__ import annotations

import random
import re
import threading
from typing import TYPE_CHECKING

import confluent_kafka
from connection import Connection
from nsq import protocol
from slowjobs import documents, kafka

if TYPE_CHECKING:
    from support.nsqd import Nsqd

#: messages in flight.
AT_ONCE = 500
#: seconds until what was put back comes again.
PUT_BACK_SECONDS = 1
WORKER = "worker1/bench/1"
_POSITION = re.compile(rb'"position": \["([^"]+)", (\d+), (\d+)\]')


class QuickWorker(threading.Thread):
    """Finishes all requests, in any order, but for the first, which it puts back again and again.

    It tells Kafka ``started`` and ``done``, and nsqd when Kafka has both.
    """

    def __init__(self, kafka_address: str, nsqd: Nsqd, *, host: str, topic: str, channel: str) -> None:
        super().__init__(daemon=True)
        self.finished = 0
        self.put_back = 0
        self.error: Exception | None = None
        self._host = host
        self._lane = topic
        self._straggler: documents.Position | None = None
        self._held: list[tuple[bytes, bytes]] = []
        self._ended = threading.Event()
        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": kafka_address, "enable.idempotence": True, "log_level": 0}
        )
        self._connection = Connection(nsqd.tcp_address)
        self._connection.subscribe(topic, channel, AT_ONCE)

    def run(self) -> None:
        """Work until ``stop``."""
        try:
            while not self._ended.is_set():
                self._held += self._connection.messages()
                random.shuffle(self._held)
                half = len(self._held) // 2
                self._work(self._held[half:])
                del self._held[half:]
        except (OSError, confluent_kafka.KafkaException) as error:
            self.error = error

    def stop(self) -> None:
        """End, and give back what is in flight."""
        self._ended.set()
        self.join()
        self._connection.close()

    def trouble(self) -> str | None:
        """Say why it works no more."""
        return None if self.error is None else f"the worker ended: {self.error!r}"

    def _work(self, messages: list[tuple[bytes, bytes]]) -> None:
        answers = [self._answer(id_, _position(body)) for id_, body in messages]
        if self._producer.flush(60):
            raise ConnectionError("Kafka takes no events")
        self._connection.send(answers)
        self.finished += len(answers)

    def _answer(self, id_: bytes, position: documents.Position) -> bytes:
        self._tell(documents.Event("started", WORKER, self._lane, position, 1, self._host))
        if self._straggler in {None, position}:
            self._straggler = position
            self.put_back += 1
            until = documents.now(PUT_BACK_SECONDS)
            self._tell(documents.Event("requeued", WORKER, self._lane, position, 1, self._host, until))
            return bytes(protocol.requeue(id_, PUT_BACK_SECONDS * 1000))
        self._tell(documents.Event("done", WORKER, self._lane, position, 1, self._host, outcome="result"))
        return bytes(protocol.finish(id_))

    def _tell(self, event: documents.Event) -> None:
        self._producer.produce(kafka.EVENTS, event.write())
        self._producer.poll(0)


def _position(body: bytes) -> documents.Position:
    found = _POSITION.search(body)
    if found is None:
        raise ConnectionError(f"no message of the bridge: {body[-200:]!r}")
    topic, partition, offset = found.groups()
    return documents.Position(topic.decode(), int(partition), int(offset))
