"""The bridge follows what workers tell, and tells the ledgers of it, each event once and in its order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import confluent_kafka
import prometheus_client
import structlog

from slowjobs import documents, kafka, kinds, retry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slowjobs import settings
    from slowjobs.bridge import ledger

log = structlog.get_logger()

_FETCHED_EVENTS = 2000
_POLL_SECONDS = 0.1

_READ = prometheus_client.Counter("slowjobs_events_read_total", "Events of workers that the bridge has read")


class Events:
    """Reads ``slowjobs-events`` from ``offset`` on. ``ledgers``: Kafka topic of a lane -> its ledger."""

    def __init__(
        self,
        config: settings.Kafka,
        secrets: settings.Credentials,
        ledgers: Mapping[str, ledger.Ledger],
        offset: int,
    ) -> None:
        self._ledgers = ledgers
        self._follower = kafka.Follower(config, secrets, kafka.EVENTS, offset)
        self._more = asyncio.Event()
        #: the first event that was not read.
        self.next = offset

    async def follow(self) -> None:
        """Read for ever. Raises documents.UnknownVersionError: what such an event says must not be passed over."""
        while True:
            records = await self._follower.fetch(_FETCHED_EVENTS, wait_seconds=_POLL_SECONDS)
            for record in records:
                self._apply(record)
            self.next = self._follower.next
            _READ.inc(len(records))
            self._more.set()
            self._more.clear()

    def _apply(self, record: kafka.Record) -> None:
        try:
            event = documents.read_event(record.value)
        except kinds.RejectedError as error:
            log.warning("bridge.no_event", position=str(record.position), error=error.error)
            return
        if event.position is None:
            for ledger in self._ledgers.values():
                ledger.apply(event, record.position.offset)
        elif event.position.topic in self._ledgers:
            self._ledgers[event.position.topic].apply(event, record.position.offset)

    async def catch_up(self) -> None:
        """Return when all that was written before is read. Waits for Kafka for as long as it takes."""
        end = await retry.outlast("kafka", confluent_kafka.KafkaException, self._follower.end)
        while self.next < end:
            await self._more.wait()

    def hears(self) -> bool:
        """Tell whether Kafka answers."""
        return self._follower.hears()

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.to_thread(self._follower.close)


async def end(fetcher: kafka.Fetcher) -> int:
    """Return the offset of the next event that will be written. Waits for Kafka for as long as it takes."""
    reach = await retry.outlast("kafka", confluent_kafka.KafkaException, fetcher.reach, kafka.EVENTS)
    return reach[0].stop
