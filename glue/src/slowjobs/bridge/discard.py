"""Discards all of a lane that is on Kafka and on NSQ up to now, because a person asked for it.

NSQ is emptied first, then each position is told to be discarded. Whatever ends the bridge between the two: what was
told is not on NSQ any more; what was not told has been lost there, so that it comes back and can be discarded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

import prometheus_client
import structlog
from aiohttp import web

from slowjobs import documents, errors, kafka, nsq, retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

    from slowjobs.bridge import events as events_
    from slowjobs.bridge import lane as lane_

log = structlog.get_logger()

#: positions that are told of at once; a bridge that is killed has told of so many more, at most, than it has committed.
_BATCH = 1000
#: seconds in which nsqd has put what it had in hand into the channel.
_COPYING_SECONDS = 0.2

_DISCARDED = prometheus_client.Counter("slowjobs_discarded_requests_total", "Requests discarded on request", ["lane"])


class RefusedError(Exception):
    """Some of the lane runs, or could begin at any moment: of this nobody can say that it was discarded."""


class Discarding:
    """Discards one lane, called where it is published: nothing of it goes to NSQ or is judged meanwhile.

    ``teller``: who the events say has done it.
    """

    def __init__(
        self,
        lane: lane_.Lane,
        *,
        teller: str,
        apis: Mapping[str, nsq.Api],
        producer: kafka.Producer,
        fetcher: kafka.Fetcher,
        events: events_.Events,
        commit: Callable[[int], Awaitable[None]],
    ) -> None:
        self._lane = lane
        self._teller = teller
        self._apis = apis
        self._producer = producer
        self._fetcher = fetcher
        self._events = events
        self._commit = commit

    async def answer(self) -> None:
        """Do what was asked first; say how many requests that were, or why it was not done."""
        asked = self._lane.discards[0]
        try:
            discarded = await self._discard()
        except (RefusedError, *errors.SERVER_ERRORS) as error:
            asked.set_exception(error)
        else:
            asked.set_result(discarded)
        self._lane.discards.popleft()

    async def _discard(self) -> int:
        lane = self._lane
        async with lane.publishing:
            there = await self._fetcher.reach(lane.topic)
            if set(there) != set(lane.partitions):
                raise ConnectionError("the bridge has not been given all of the lane's partitions yet: try again")
            await self._check_that_nothing_runs()
            # Workers have told what is done before nsqd forgot it.
            await self._events.catch_up()
            await self._empty_nsqd()
            discarded = sum([await self._tell(partition, offsets) for partition, offsets in there.items()])
        log.warning("bridge.discarded", lane=lane.name, requests=discarded)
        _DISCARDED.labels(lane.name).inc(discarded)
        return discarded

    async def _check_that_nothing_runs(self) -> None:
        lane = self._lane
        for host, api in self._apis.items():
            topic = (await api.stats(lane.name)).topics.get(lane.name)
            channel = topic.channel(lane.channel) if topic else None
            if channel is None:
                raise ConnectionError(f"nsqd {host} has no channel {lane.name}/{lane.channel}; run `slowjobs setup`")
            if not channel.paused:
                raise RefusedError(f"not paused on {host}")
            if channel.in_flight:
                raise RefusedError(f"in flight {channel.in_flight} on {host}")

    async def _empty_nsqd(self) -> None:
        # Twice, for the message that nsqd has in hand between topic and channel.
        for seconds in (_COPYING_SECONDS, 0):
            await asyncio.gather(*(api.empty(self._lane.name, self._lane.channel) for api in self._apis.values()))
            await asyncio.sleep(seconds)

    async def _tell(self, partition: int, there: range) -> int:
        """Tell of all that is not done in a partition, whose messages are at the offsets ``there``."""
        lane, count = self._lane, 0
        # The next bridge reads the events from what is committed here; of a partition without a commit it reads none.
        await self._commit(partition)
        undone = lane.ledger.not_done(partition, there)
        while offsets := list(itertools.islice(undone, _BATCH)):
            # Tried again as a whole: what is told twice is done all the same, and a try for each costs more than it.
            async for attempt in retry.while_away(f"kafka topic {kafka.EVENTS}", kafka.DeliveryError):
                with attempt:
                    telling = [self._producer.send(kafka.EVENTS, self._done(partition, offset)) for offset in offsets]
                    await asyncio.gather(*telling)
            lane.finish_all(partition, offsets[-1] + 1)
            count += len(offsets)
        lane.finish_all(partition, there.stop)
        await self._commit(partition)
        return count

    def _done(self, partition: int, offset: int) -> bytes:
        position = documents.Position(self._lane.topic, partition, offset)
        return documents.Event("done", self._teller, self._lane.name, position, outcome="discarded").write()


@contextlib.asynccontextmanager
async def serving(path: Path, lanes: Iterable[lane_.Lane]) -> AsyncIterator[None]:
    """Have ``lanes`` discarded for whoever may write to the unix socket ``path``: root and this service's user."""
    known = {lane.name: lane for lane in lanes}

    async def _discard(request: web.Request) -> web.Response:
        lane = known.get(request.match_info["lane"])
        if lane is None:
            raise web.HTTPNotFound(text="the bridge has no such lane")
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lane.discards.append(asked)
        lane.wake.set()
        try:
            return web.json_response({"v": documents.VERSION, "discarded": await asked})
        except RefusedError as error:
            raise web.HTTPConflict(text=str(error)) from None
        except errors.SERVER_ERRORS as error:
            raise web.HTTPServiceUnavailable(text=errors.text(error)) from None

    application = web.Application()
    application.add_routes([web.post("/lanes/{lane}/discard", _discard)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.UnixSite(runner, path).start()
        yield
    finally:
        for lane in known.values():
            for asked in lane.discards:
                asked.cancel()
        await runner.cleanup()
