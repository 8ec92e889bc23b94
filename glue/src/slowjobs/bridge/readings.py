"""Readings of nsqd for one lane's ledger: every two seconds what all hosts hold, then the events to their end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import confluent_kafka
import prometheus_client
import structlog

from slowjobs import documents, nsq
from slowjobs.bridge import ledger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slowjobs import kafka
    from slowjobs.bridge import events as events_
    from slowjobs.bridge import lane as lane_

log = structlog.get_logger()

READING_SECONDS = 2.0
#: seconds after a publication in which nsqd still copies what it brought.
_QUIET_SECONDS = 0.1
#: seconds that the hosts get to answer: nothing is published meanwhile.
_ANSWER_SECONDS = 1.0
#: seconds between two looks at how old the oldest are.
_AGES_SECONDS = 10.0

_MISSING = prometheus_client.Gauge("slowjobs_missing_requests", "Lost by NSQ, and not published again yet", ["lane"])
_UNACCOUNTED = prometheus_client.Gauge("slowjobs_unaccounted_requests", "Perhaps among the missing", ["lane"])
_HOLDING = prometheus_client.Gauge("slowjobs_holding", "1 while nothing new is published for what is missing", ["lane"])
_OLDEST = prometheus_client.Gauge("slowjobs_oldest_unfinished_seconds", "Age of the oldest that is not done", ["lane"])


class Readings:
    """Reads what ``apis``, all serving hosts, hold of a lane, and has its ledger judge."""

    def __init__(
        self,
        lane: lane_.Lane,
        *,
        apis: Mapping[str, nsq.Api],
        fetcher: kafka.Fetcher,
        events: events_.Events,
    ) -> None:
        self._lane = lane
        self._apis = apis
        self._fetcher = fetcher
        self._events = events
        self._next_ages = 0.0

    async def run(self) -> None:
        """Judge for ever."""
        while True:
            await asyncio.sleep(READING_SECONDS)
            figures = await self._read()
            if figures is None:
                self._lane.ledger.miss_reading()
            else:
                await self._events.catch_up()
                self._judge(figures)
            await self._note_ages()

    async def _read(self) -> dict[str, ledger.Figures] | None:
        """Return each host's figures, or None where a host does not answer or a batch is not settled."""
        lane = self._lane
        async with lane.publishing:
            if lane.unsettled:
                return None
            await asyncio.sleep(_QUIET_SECONDS)
            lane.ledger.begin_reading(time.time())
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    stats = await asyncio.gather(*(api.stats(lane.name) for api in self._apis.values()))
            except nsq.ERRORS:
                return None  # the cap's readings say so in the log
        return {host: self._figures(each) for host, each in zip(self._apis, stats, strict=True)}

    def _figures(self, stats: nsq.Stats) -> ledger.Figures:
        topic = stats.topics.get(self._lane.name)
        channel = topic.channel(self._lane.channel) if topic else None
        return ledger.Figures(
            start_time=stats.start_time,
            queued=(topic.depth if topic else 0) + (channel.depth if channel else 0),
            in_flight=channel.in_flight if channel else 0,
            deferred=channel.deferred if channel else 0,
        )

    def _judge(self, figures: Mapping[str, ledger.Figures]) -> None:
        name, ledger = self._lane.name, self._lane.ledger
        held, lost = ledger.holding, len(ledger.lost)
        ledger.end_reading(figures, time.time())
        said = {"lane": name, "missing": ledger.missing, "unaccounted": ledger.unaccounted}
        if ledger.holding and not held:
            log.warning("ledger.holding", **said)
        if len(ledger.lost) > lost:
            log.warning("ledger.lost", **said, lost=len(ledger.lost))
        if held and not ledger.holding:
            log.info("ledger.released", lane=name)
        _MISSING.labels(name).set(ledger.missing)
        _UNACCOUNTED.labels(name).set(ledger.unaccounted)
        _HOLDING.labels(name).set(ledger.holding)
        _OLDEST.labels(name).set(self._lane.oldest_seconds() or 0)
        self._lane.wake.set()

    async def _note_ages(self) -> None:
        """Find out when the lowest position of each partition that is not done was produced."""
        lane = self._lane
        lowest = {each: lane.ledger.lowest(each) for each in lane.partitions if lane.ledger.count(each)}
        lane.lowest = {each: known for each, known in lane.lowest.items() if each in lowest}
        if time.monotonic() < self._next_ages:
            return
        self._next_ages = time.monotonic() + _AGES_SECONDS
        wanted = [
            documents.Position(lane.topic, partition, offset)
            for partition, offset in lowest.items()
            if lane.lowest.get(partition, (None,))[0] != offset
        ]
        found: Mapping[documents.Position, kafka.Record] = {}
        with contextlib.suppress(confluent_kafka.KafkaException):
            found = await self._fetcher.read(wanted) if wanted else {}
        for position, record in found.items():
            lane.lowest[position.partition] = position.offset, record.created.timestamp()
