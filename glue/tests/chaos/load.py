"""The requests of a round: drawn from its seed, sent to Kafka, and known by the position that Kafka gave them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from confluent_kafka import Producer

if TYPE_CHECKING:
    from random import Random

    from confluent_kafka import KafkaError, Message

    from chaos.arena import Arena

Position = tuple[str, int, int]

#: what requests ask of the handler, and how often: retries, failures and waiting belong to every round.
DO = {"work": 800, "retry": 60, "fail": 60, "wait": 30, "skip": 30, "reject": 3, "crash": 3, "garbage": 4}
#: those of them that end as dead letters.
POISON = ("reject", "crash", "garbage")
#: seconds; a usual request, and one that lasts longer than msg-timeout.
_SECONDS, _LONG_SECONDS = (0.01, 0.1), 2.5


class Load:
    """Sends requests and remembers which of them Kafka acknowledged. ``long``: of a thousand, so many are long."""

    def __init__(self, arena: Arena, name: str, random: Random, *, long: int) -> None:
        self._lanes = list(arena.lanes.values())
        self._do = {**DO, "long": long}
        self._sent_of = arena.sent
        self._name = name
        self._random = random
        self._sent = 0
        self._refused: list[str] = []
        #: what Kafka has: position -> what it asks of the handler.
        self.acknowledged: dict[Position, str] = {}
        #: position -> number of its request.
        self.numbers: dict[Position, int] = {}
        self._producer = Producer(
            {
                "bootstrap.servers": arena.kafka.address,
                "enable.idempotence": True,
                # Each request to a partition of its own choice, so that the bridge makes many batches of them.
                "sticky.partitioning.linger.ms": 0,
                "log_level": 0,
            }
        )

    def send(self, count: int) -> None:
        """Send ``count`` more, whether Kafka is there or not; bulk has three times what the fast lane has."""
        for _ in range(count):
            do = self._random.choices(list(self._do), self._do.values())[0]
            [lane] = self._random.choices(self._lanes, (1, 3))
            self._producer.produce(lane, self._request(do), on_delivery=self._note(do, self._sent))
            self._sent += 1
        self._producer.poll(0)

    def _request(self, do: str) -> bytes:
        if do == "garbage":
            return b'{"number": '
        seconds = _LONG_SECONDS if do == "long" else self._random.uniform(*_SECONDS)
        file_id = f"{self._name}-{self._sent}"
        does = "work" if do == "long" else do
        return json.dumps({"file_id": file_id, "number": self._sent, "seconds": seconds, "do": does}).encode()

    def _note(self, do: str, number: int) -> object:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                position = (message.topic(), message.partition(), message.offset())
                self.acknowledged[position], self.numbers[position] = do, number
                self._sent_of[message.topic()] += 1
            else:
                self._refused.append(error.str())

        return delivered

    def finish(self) -> None:
        """Wait until Kafka has all."""
        assert self._producer.flush(60) == 0, "Kafka did not take all requests within 60 s"
        assert not self._refused, f"Kafka refused {len(self._refused)}: {self._refused[0]}"
