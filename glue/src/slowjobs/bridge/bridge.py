"""The bridge: from the lanes' Kafka topics to NSQ, never above a lane's cap."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import prometheus_client
import structlog

from slowjobs import documents, kafka, kinds, nsq, retry, service
from slowjobs.bridge import cap

if TYPE_CHECKING:
    from collections.abc import Iterable

    import aiohttp

    from slowjobs import settings

log = structlog.get_logger()

GROUP = "slowjobs-bridge"
#: requests and bytes of a lane that wait here for room; Kafka keeps the rest.
_FETCHED_REQUESTS = 500
_FETCHED_BYTES = 8 * 1024 * 1024
#: seconds between two readings of nsqd's figures: while requests wait for room, and while none does.
_READING_SECONDS = 0.1
_IDLE_READING_SECONDS = 1.0
#: how often nsqd is asked whether an earlier bridge is gone, once a second.
_PREDECESSOR_TRIES = 15
#: seconds in which nsqd has surely stored the rest of a batch: with sync-every=1 a whole one takes 0.3 s.
_STORING_SECONDS = 2.0
#: seconds that a poll of Kafka waits.
_POLL_SECONDS = 0.1

_PUBLISHED = prometheus_client.Counter("slowjobs_published_requests_total", "Requests given to NSQ", ["lane"])
_DEAD = prometheus_client.Counter("slowjobs_bridge_dead_letters_total", "Requests refused", ["lane", "reason"])
_OUTSTANDING = prometheus_client.Gauge("slowjobs_outstanding_requests", "Published and not finished", ["lane"])


class _Lane:
    """What the bridge has fetched of one lane and not published."""

    def __init__(self, name: str, lane: settings.Lane, kind: settings.Kind) -> None:
        self.name = name
        self.kind = kind
        self.channel = lane.pool
        self.cap = cap.Cap(lane.max_outstanding)
        self.fetched: deque[kafka.Record] = deque()
        self.fetched_bytes = 0
        self.arrived = asyncio.Event()
        #: held from the moment that a batch is sent until its answer, so that a stop does not cut between.
        self.publishing = asyncio.Lock()
        #: whether Kafka is told to send no more of this lane for now.
        self.held_back = False

    def add(self, record: kafka.Record) -> None:
        self.fetched.append(record)
        self.fetched_bytes += len(record.value)
        self.arrived.set()

    def take(self, count: int) -> list[kafka.Record]:
        """Return at least one and at most ``count`` of what was fetched, as one MPUB can carry them."""
        taken: list[kafka.Record] = []
        size = 0
        while self.fetched and len(taken) < count:
            if taken and size + len(self.fetched[0].value) > nsq.MAX_BATCH_BYTES:
                break
            taken.append(self.fetched.popleft())
            size += len(taken[-1].value)
        self.fetched_bytes -= size
        if not self.fetched:
            self.arrived.clear()
        return taken

    def drop(self, partitions: set[tuple[str, int]]) -> None:
        """Forget what is no longer ours: Kafka gives it again from the committed offset."""
        self.fetched = deque(record for record in self.fetched if record.position.partition_of not in partitions)
        self.fetched_bytes = sum(len(record.value) for record in self.fetched)

    @property
    def full(self) -> bool:
        return len(self.fetched) >= _FETCHED_REQUESTS or self.fetched_bytes >= _FETCHED_BYTES

    @property
    def low(self) -> bool:
        return len(self.fetched) <= _FETCHED_REQUESTS // 4 and self.fetched_bytes <= _FETCHED_BYTES // 4


class Bridge(service.Service):
    """Move requests from the lanes' Kafka topics to nsqd, at most ``max_outstanding`` of a lane at a time.

    An offset is committed after nsqd said OK (or Kafka has the dead letter), so a request is published at least once.
    A batch without an answer is published again once nsqd's figures were read anew: it may be there twice.
    Kafka or nsqd away: waits and goes on; nothing is committed meanwhile. A full lane never holds back another.
    Rule: docs/architecture.md, "The cap".
    """

    def __init__(self, config: settings.BridgeSettings, secrets: settings.Credentials) -> None:
        self._config = config
        self._secrets = secrets
        self._stopping = False
        self._lanes = {
            config.kafka_topic(name): _Lane(name, lane, config.kind_of(name)) for name, lane in config.lanes.items()
        }
        self._read = asyncio.Event()
        #: (topic, partition) -> the next offset; published since the last commit.
        self._done: dict[tuple[str, int], int] = {}

    def stop(self) -> None:
        """End: 1 stop polling, 2 wait for the answers of what was sent, 3 commit, 4 close."""
        self._stopping = True

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says: the host that gets new requests, and each lane's figures."""
        return {
            "publishes_to": self._config.nsqd.active,
            "lanes": {
                lane.name: {
                    "fetched": len(lane.fetched),
                    "outstanding": lane.cap.outstanding,
                    "max_outstanding": lane.cap.max_outstanding,
                    "room": lane.cap.room,
                }
                for lane in self._lanes.values()
            },
        }

    async def run(self) -> None:
        """Work until ``stop``. Raises kafka.FencedError (in a group) when another bridge has taken over."""
        consumer = kafka.Consumer(self._config.kafka, self._secrets, group=GROUP, topics=list(self._lanes))
        producer = kafka.Producer(self._config.kafka, self._secrets, client_id=GROUP)
        try:
            async with nsq.session() as session, asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(self._read_figures(session)), tasks.create_task(producer.watch())]
                beside += [tasks.create_task(self._publish_lane(lane, producer)) for lane in self._lanes.values()]
                await self._consume(consumer)
                for lane in self._lanes.values():
                    await lane.publishing.acquire()
                for task in beside:
                    task.cancel()
            self._commit(consumer)
        finally:
            await producer.close()
            await consumer.close()

    # Kafka

    async def _consume(self, consumer: kafka.Consumer) -> None:
        while not self._stopping:
            fetched = await consumer.fetch(_FETCHED_REQUESTS, wait_seconds=_POLL_SECONDS)
            self._drop(consumer.lost())
            for record in fetched:
                self._lanes[record.position.topic].add(record)
            for lane in self._lanes.values():
                lane.held_back = lane.full or (lane.held_back and not lane.low)
            consumer.hold_back({topic for topic, lane in self._lanes.items() if lane.held_back})
            self._commit(consumer)

    def _drop(self, partitions: set[tuple[str, int]]) -> None:
        if partitions:
            for lane in self._lanes.values():
                lane.drop(partitions)
            self._done = {where: offset for where, offset in self._done.items() if where not in partitions}

    def _commit(self, consumer: kafka.Consumer) -> None:
        consumer.commit(self._done)
        self._done = {}

    # nsqd

    async def _read_figures(self, session: aiohttp.ClientSession) -> None:
        apis = [nsq.Api(session, self._config.nsqd.hosts[host].http_address) for host in self._config.nsqd.serving]
        lanes = self._lanes.values()
        await asyncio.gather(*map(_outlast_predecessor, apis))
        away = retry.OnceAMinute()
        while True:
            marks = [lane.cap.begin_reading() for lane in lanes]
            try:
                readings = await asyncio.gather(*(api.stats() for api in apis))
            except nsq.ERRORS as error:
                if away.is_due():
                    log.warning("server.away", server="nsqd", error=repr(error))
                for lane in lanes:
                    lane.cap.forget()
                    _OUTSTANDING.labels(lane.name).set(math.nan)
            else:
                for lane, mark in zip(lanes, marks, strict=True):
                    topics = [reading.topics[lane.name] for reading in readings if lane.name in reading.topics]
                    held = sum(topic.outstanding(lane.channel) for topic in topics)
                    lane.cap.end_reading(mark, held, copying=any(topic.depth for topic in topics))
                    _OUTSTANDING.labels(lane.name).set(lane.cap.outstanding or 0)
            self._read.set()
            self._read.clear()
            waiting = any(lane.fetched for lane in lanes)
            await asyncio.sleep(_READING_SECONDS if waiting else _IDLE_READING_SECONDS)

    async def _publish_lane(self, lane: _Lane, producer: kafka.Producer) -> None:
        active = self._config.nsqd.active
        publisher = nsq.Publisher(self._config.nsqd.hosts[active].tcp_address, client_id=GROUP)
        while True:
            await lane.arrived.wait()
            if not lane.cap.room:
                await self._read.wait()
                continue
            batch = lane.take(min(lane.cap.room, nsq.MAX_BATCH))
            bodies = await self._bodies(lane, batch, producer)
            if bodies:
                await self._publish(lane, publisher, bodies)
            for record in batch:
                self._done[record.position.partition_of] = record.position.offset + 1

    async def _publish(self, lane: _Lane, publisher: nsq.Publisher, bodies: list[bytes]) -> None:
        """Publish a batch; one without an answer again, once nsqd's figures were read anew and leave room for it."""
        async for attempt in retry.while_away(f"nsqd {self._config.nsqd.active}", *nsq.ERRORS):
            with attempt:
                await publisher.connect()
                while lane.cap.room < len(bodies):
                    await self._read.wait()
                lane.cap.send(len(bodies))
                try:
                    async with lane.publishing:
                        await publisher.publish(lane.name, bodies)
                except nsq.ERRORS as error:
                    log.warning("bridge.answer_missing", lane=lane.name, requests=len(bodies), error=repr(error))
                    await self._outlast(lane)
                    raise
                finally:
                    lane.cap.settle(len(bodies))
        _PUBLISHED.labels(lane.name).inc(len(bodies))

    async def _outlast(self, lane: _Lane) -> None:
        """Return when nsqd answers again and had time to store what is left of a batch in its buffers."""
        lane.cap.forget()
        while lane.cap.outstanding is None:
            await self._read.wait()
        await asyncio.sleep(_STORING_SECONDS)
        lane.cap.forget()

    async def _bodies(self, lane: _Lane, batch: Iterable[kafka.Record], producer: kafka.Producer) -> list[bytes]:
        """Return what goes to NSQ; what cannot go there is a dead letter, safe on Kafka before this returns."""
        bodies = []
        for record in batch:
            position = record.position
            try:
                limit = self._config.nsqd.max_message_bytes
                _, body = documents.write_assignment(record.value, position, lane.kind, limit)
                bodies.append(body)
            except kinds.RejectedError as error:
                letter = documents.DeadLetter(lane.name, error.reason, error.error, "bridge", record.value, position)
                await producer.send_dead_letter(letter)
                done = documents.Event(
                    "done", f"{self._config.host}/bridge", lane.name, position, outcome="dead", reason=error.reason
                )
                await producer.send_for_sure(kafka.EVENTS, done.write())
                _DEAD.labels(lane.name, error.reason).inc()
                log.warning("bridge.dead_letter", lane=lane.name, position=str(position), reason=error.reason)
        return bodies


async def _outlast_predecessor(api: nsq.Api) -> None:
    """Return when nsqd has stored all that an earlier bridge sent: what it still has to store is in no figures.

    A host that has lost its power keeps its connection for minutes, and sends nothing more: it is not waited for.
    """
    for _ in range(_PREDECESSOR_TRIES):
        async for attempt in retry.while_away("nsqd", *nsq.ERRORS):
            with attempt:
                publishers = await api.publishers()
        if GROUP not in publishers:
            return
        await asyncio.sleep(_IDLE_READING_SECONDS)
    log.warning("bridge.predecessor", connected_after_seconds=_PREDECESSOR_TRIES * _IDLE_READING_SECONDS)
