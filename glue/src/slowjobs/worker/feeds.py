"""A lane of one nsqd host: its connection, and a new one after each that is lost."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Protocol

import prometheus_client
import structlog

from slowjobs import nsq, retry
from slowjobs.worker import slots

if TYPE_CHECKING:
    from slowjobs import settings

log = structlog.get_logger()

_RECONNECTS = prometheus_client.Counter("slowjobs_reconnects_total", "Connections to nsqd that were lost", ["nsqd"])


class Consumer(Protocol):
    """Who is fed."""

    def connected(self, source: slots.Source) -> None:
        """Take a new connection; nothing comes before it is asked."""

    def accept(self, source: slots.Source, message: nsq.Message) -> None:
        """Take a message."""

    def miscounted(self, source: slots.Source) -> None:
        """Take another connection in place of this one, on which nsqd counts more in flight than there is."""

    def disconnected(self, source: slots.Source) -> None:
        """Give a connection up: what came on it cannot be answered any more."""


class Feed:
    """Keeps ``lane`` of ``host`` connected while ``run`` runs; ``leave`` ends that in good order."""

    def __init__(
        self, lane: str, host: str, address: settings.Address, *, channel: str, client_id: str, consumer: Consumer
    ) -> None:
        self.lane = lane
        self.host = host
        self.address = address
        #: the connection, while there is one.
        self.source: slots.Source | None = None
        self._channel = channel
        self._client_id = client_id
        self._consumer = consumer
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        """Feed until ``leave`` was called, what is in flight is answered, and nsqd has dealt with that."""
        feeding = asyncio.create_task(self._feed())
        goodbye = asyncio.create_task(self._say_goodbye())
        try:
            await asyncio.wait([feeding, goodbye], return_when=asyncio.FIRST_COMPLETED)
            if feeding.done() or goodbye.result():
                await feeding
        finally:
            for task in (feeding, goodbye):
                task.cancel()
            await asyncio.wait([feeding, goodbye])

    def leave(self) -> None:
        """End once all is answered."""
        if self.source:
            self.source.leave()
        self._leaving.set()

    async def _say_goodbye(self) -> bool:
        """Return whether nsqd was told, and will say when it has dealt with all that was sent before."""
        await self._leaving.wait()
        if self.source is None:
            return False
        await self.source.idle.wait()
        if self.source:
            self.source.subscription.leave()
        return True

    async def _feed(self) -> None:
        while not self._leaving.is_set():
            subscription = await self._open()
            if self._leaving.is_set():
                subscription.close()
                return
            self.source = source = slots.Source(self.lane, subscription)
            # It may never have noted the delivery; what it counts for the connection stays.
            subscription.refused = functools.partial(self._consumer.miscounted, source)
            try:
                self._consumer.connected(source)
                while message := await source.subscription.receive():
                    self._consumer.accept(source, message)
            except nsq.ERRORS as error:
                log.warning("worker.disconnected", nsqd=self.host, lane=self.lane, error=repr(error))
                _RECONNECTS.labels(self.host).inc()
            finally:
                self.source = None
                source.subscription.close()
                self._consumer.disconnected(source)
            if not self._leaving.is_set():
                await asyncio.sleep(retry.FIRST_WAIT_SECONDS)  # one that is refused at once is not tried without end

    async def _open(self) -> nsq.Subscription:
        async for attempt in retry.while_away(f"nsqd {self.host}", *nsq.ERRORS):
            with attempt:
                subscription = await nsq.Subscription.open(
                    self.address, host=self.host, topic=self.lane, channel=self._channel, client_id=self._client_id
                )
        log.info("worker.connected", nsqd=self.host, lane=self.lane)
        return subscription
