"""Whether a client still hears of Kafka: it can be deaf for good while others are answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import confluent_kafka
import structlog

from slowjobs import retry
from slowjobs.kafka.common import EVENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slowjobs.kafka.topics import Topics

log = structlog.get_logger()

#: seconds between two looks.
LOOK_SECONDS = 2.0


class Client(Protocol):
    """A client, or what has one."""

    def hears(self) -> bool:
        """Tell whether Kafka answers; called in a thread."""


async def until_deaf(topics: Topics, clients: Sequence[Client]) -> None:
    """Return when one of ``clients``, which has to be replaced, hears nothing in two looks although ``topics`` does.

    A consumer that asks a broker which has just come back and knows of none, not even itself, forgets all of them
    (librdkafka's issue 5301). And a commit can hang.
    """
    heard = True
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        await retry.outlast("kafka", confluent_kafka.KafkaException, asyncio.to_thread, topics.ids, [EVENTS])
        answers = await asyncio.gather(*(asyncio.to_thread(client.hears) for client in clients))
        heard_before, heard = heard, all(answers)
        if not (heard or heard_before):
            log.warning("kafka.client_deaf")
            return
