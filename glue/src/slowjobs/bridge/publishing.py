"""How one lane's requests come to nsqd: committed first, then sent, then settled."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING

import confluent_kafka
import prometheus_client
import structlog

from slowjobs import documents, kafka, kinds, nsq, retry
from slowjobs.bridge import backlog, commit, discard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slowjobs import settings
    from slowjobs.bridge import events as events_
    from slowjobs.bridge import lane as lane_

log = structlog.get_logger()

GROUP = "slowjobs-bridge"
#: seconds between two commits of what is done.
_COMMIT_SECONDS = 1.0
#: seconds between a commit and its answer after which another bridge may have committed since.
_STOOD_SECONDS = 20.0
#: how often nsqd is asked whether a connection is gone, and how many seconds are between.
_GONE_TRIES = 30
_ASK_SECONDS = 0.5
#: seconds in which nsqd has surely stored the first batch of a connection, which does not show among its producers:
#: with sync-every=1 a whole one takes 0.3 s.
_STORING_SECONDS = 2.0
#: seconds for an answer after which nsqd cannot have been at work.
_STALLED_SECONDS = 1.0

_PUBLISHED = prometheus_client.Counter("slowjobs_published_requests_total", "Requests given to NSQ", ["lane"])
_AGAIN = prometheus_client.Counter("slowjobs_published_again_total", "Requests given again that NSQ had lost", ["lane"])
_DEAD = prometheus_client.Counter("slowjobs_bridge_dead_letters_total", "Requests refused", ["lane", "reason"])


class Publishing:
    """Publishes one lane: what NSQ has lost, then what is new, into the room that there is.

    A request goes to nsqd after the commit says so; what is about to be sent is in it, so that whoever comes after a
    crash knows what to look for. nsqd or Kafka away: waits and goes on.
    """

    def __init__(
        self,
        lane: lane_.Lane,
        config: settings.BridgeSettings,
        *,
        name: str,
        apis: Mapping[str, nsq.Api],
        consumer: kafka.Consumer,
        producer: kafka.Producer,
        fetcher: kafka.Fetcher,
        events: events_.Events,
    ) -> None:
        self._lane = lane
        self._config = config
        self._apis = apis
        self._consumer = consumer
        self._producer = producer
        self._fetcher = fetcher
        self._events = events
        self._active = config.nsqd.active
        self._name = name
        self._teller = f"{config.host}/bridge"
        self._discarding = discard.Discarding(
            lane,
            teller=self._teller,
            apis=apis,
            producer=producer,
            fetcher=fetcher,
            events=events,
            commit=self._commit_for_sure,
        )
        self._publisher = nsq.Publisher(config.nsqd.hosts[self._active].tcp_address, client_id=name)
        #: nsqd's start_time and the topic's message_count, as far as we know; zeros while that has to be asked.
        self._count = 0, 0
        self._committing = asyncio.Lock()
        #: bodies of what is likely to be published next.
        self._ahead: dict[documents.Position, bytes] = {}

    async def run(self) -> None:
        """Publish for ever. Raises kafka.FencedError when another bridge has taken over."""
        try:
            while True:
                self._lane.wake.clear()
                if not await self._step():
                    await self._lane.wake.wait()
        finally:
            self._publisher.close()

    async def _step(self) -> bool:
        """Do what is due first; return whether anything was."""
        lane = self._lane
        if lane.unsettled:
            await self._settle()
        elif lane.discards:
            await self._discarding.answer()
        elif lane.ledger.lost and lane.cap.room:
            await self._publish_again()
        elif lane.backlog and self._may_publish_new():
            await self._publish_new()
        else:
            return False
        return True

    # Publishing

    async def _publish_new(self) -> None:
        lane = self._lane
        await self._connect()
        if not self._may_publish_new():
            return
        records = lane.backlog.head(min(lane.room, self._publisher.batch), nsq.MAX_BATCH_BYTES)
        bodies = await self._bodies(records)
        records = _as_one_batch(records, bodies)
        bodies = {record.position: bodies[record.position] for record in records if record.position in bodies}
        async with lane.publishing:
            # A reading or Kafka may have changed all this meanwhile.
            if self._may_publish_new(len(bodies)) and lane.backlog.begins_with(records[0]):
                lane.ledger.publish(list(bodies), self._active)
                for record in records:
                    if record.position not in bodies:
                        lane.ledger.finish(record.position)
                lane.backlog.remove(records[0].position.partition, len(records))
                await self._send(bodies)

    def _may_publish_new(self, count: int = 1) -> bool:
        ledger = self._lane.ledger
        return self._lane.room >= count and not ledger.lost and not ledger.holding

    async def _publish_again(self) -> None:
        lane = self._lane
        await self._connect()
        lost = lane.ledger.lost
        if not lost or not lane.cap.room:
            return
        chosen = sorted(
            (position for position in lost if position.partition == lost[0].partition),
            key=lambda position: position.offset,
        )[: min(lane.cap.room, self._publisher.batch)]
        bodies = await self._bodies(await self._fetch(chosen))
        async with lane.publishing:
            # What was told to be done, or alive, meanwhile is not lost.
            still = set(lane.ledger.lost)
            bodies = {position: body for position, body in bodies.items() if position in still}
            if 0 < len(bodies) <= lane.cap.room:
                log.warning("bridge.published_again", lane=lane.name, positions=[str(each) for each in bodies])
                lane.ledger.publish(list(bodies), self._active)
                await self._send(bodies)
                _AGAIN.labels(lane.name).inc(len(bodies))

    async def _fetch(self, positions: list[documents.Position]) -> list[kafka.Record]:
        """Return the requests at ``positions``, as many as one MPUB can carry. Those that are gone are dead letters."""
        found = await retry.outlast("kafka", confluent_kafka.KafkaException, self._fetcher.read, positions)
        fetched = backlog.Backlog()
        for position in positions:
            if position in found:
                fetched.add(found[position])
            else:
                await self._bury(position, None, "expired", "Kafka has lost this request before it was done")
        return fetched.head(len(positions), nsq.MAX_BATCH_BYTES) if fetched else []

    async def _send(self, bodies: Mapping[documents.Position, bytes]) -> None:
        """Commit that ``bodies``, of one partition and in their order, are about to be sent; then send them."""
        if not bodies:
            return
        lane, positions = self._lane, list(bodies)
        partition = positions[0].partition
        start_time, count = self._count
        offsets = tuple(position.offset for position in positions)
        lane.unsettled[partition] = commit.Batch(self._active, start_time, count, offsets)
        await self._commit_for_sure(partition)
        async with lane.sending:
            lane.cap.send(len(bodies))
            try:
                await asyncio.gather(
                    self._publisher.publish(lane.name, list(bodies.values())),
                    self._write_ahead(),
                )
            except nsq.ERRORS as error:
                log.warning("bridge.answer_missing", lane=lane.name, requests=len(bodies), error=repr(error))
            else:
                lane.ledger.settle(positions, len(positions))
                del lane.unsettled[partition]
                self._count = start_time, count + len(positions)
                _PUBLISHED.labels(lane.name).inc(len(positions))
            finally:
                lane.cap.settle(len(bodies))

    async def _connect(self) -> None:
        async for attempt in retry.while_away(f"nsqd {self._active}", *nsq.ERRORS):
            with attempt:
                if await self._publisher.connect():
                    self._count = 0, 0
                if not any(self._count):
                    self._count = await self._read_count(self._active)

    async def _read_count(self, host: str) -> tuple[int, int]:
        stats = await self._apis[host].stats()
        topic = stats.topics.get(self._lane.name)
        return stats.start_time, topic.message_count if topic else 0

    # Settling

    async def _settle(self) -> None:
        """Find out what became of each batch whose answer is missing; nothing is sent on this lane before."""
        lane = self._lane
        hosts = [host for host in {batch.host for batch in lane.unsettled.values()} if host in self._apis]
        gone = dict(zip(hosts, await asyncio.gather(*map(self._outlast, hosts)), strict=True))
        for partition, batch in list(lane.unsettled.items()):
            # Else there is no telling, and the rule finds what is missing.
            stored = await self._stored(batch) if gone.get(batch.host) else len(batch.offsets)
            positions = [documents.Position(lane.topic, partition, offset) for offset in batch.offsets]
            log.warning("bridge.settled", lane=lane.name, partition=partition, requests=len(positions), stored=stored)
            lane.ledger.settle(positions, stored)
            del lane.unsettled[partition]
        lane.cap.forget()  # what was read before may be from before nsqd stored them

    async def _stored(self, batch: commit.Batch) -> int:
        """Return how many of the first requests of a batch nsqd may have; all when there is no telling."""
        start_time, count = await retry.outlast(f"nsqd {batch.host}", nsq.ERRORS, self._read_count, batch.host)
        if start_time != batch.start_time or count < batch.count:
            return len(batch.offsets)  # nsqd was started anew, or somebody has deleted the topic
        # nsqd stores an MPUB from its beginning, and what others publish only raises the count.
        return min(len(batch.offsets), count - batch.count)

    async def _outlast(self, host: str) -> bool:
        """Tell, as soon as it is so, that nsqd has stored all that the connection brought, ours or an earlier bridge's.

        A host that has lost its power keeps its connection for minutes, and one whose disk hangs what it has to store:
        false, after 15 s in which it answers.
        """
        gone_since = math.inf
        for _ in range(_GONE_TRIES):
            asked = time.monotonic()
            publishers = await retry.outlast(f"nsqd {host}", nsq.ERRORS, self._apis[host].publishers)
            answered = time.monotonic()
            if any(map(self._may_bring, publishers)) or answered - asked > _STALLED_SECONDS:
                gone_since = math.inf
            elif answered - min(gone_since, answered) > _STORING_SECONDS:
                return True
            else:
                gone_since = min(gone_since, answered)
            await asyncio.sleep(_ASK_SECONDS)
        log.warning("bridge.connection_stays", lane=self._lane.name, seconds=_GONE_TRIES * _ASK_SECONDS)
        return False

    def _may_bring(self, publisher: str) -> bool:
        others = publisher.startswith(GROUP) and not publisher.startswith(self._name)
        return others or publisher == self._publisher.client_id

    # Committing

    async def commit_progress(self) -> None:
        """Commit what is done, for ever."""
        while True:
            await asyncio.sleep(_COMMIT_SECONDS)
            self._lane.pass_ends()
            await self.commit(
                [each for each in self._lane.partitions if self._lane.has_changed(each, self._events.next)]
            )

    async def commit(self, partitions: list[int]) -> None:
        """Commit once; Kafka away, or a rebalance: the next one says the same. Raises kafka.FencedError."""
        if not partitions:
            return
        async with self._committing:
            try:
                await self._consumer.commit_now([self._lane.to_commit(each, self._events.next) for each in partitions])
                self._lane.confirm(partitions)
            except kafka.CommitError as error:
                log.warning("kafka.commit_failed", lane=self._lane.name, error=str(error))

    async def _commit_for_sure(self, partition: int) -> None:
        """Return when Kafka has what is about to be sent, and this bridge is the one that sends it."""
        async with self._committing:
            async for attempt in retry.while_away("kafka", kafka.CommitError):
                with attempt:
                    asked = time.monotonic()
                    committed = self._lane.to_commit(partition, self._events.next)
                    await self._consumer.commit_now([committed])
                    self._lane.confirm([partition])
                    if time.monotonic() - asked > _STOOD_SECONDS:
                        # This process stood still: another one may have its place by now.
                        await self._check_place(committed)

    async def _check_place(self, mine: kafka.Committed) -> None:
        (there,) = await retry.outlast(
            "kafka", confluent_kafka.KafkaException, self._consumer.committed, [(mine.topic, mine.partition)]
        )
        if there != mine:
            raise kafka.FencedError(f"{mine.topic}[{mine.partition}] has another commit than this bridge's")

    # What goes to NSQ, and what does not

    async def _bodies(self, records: Iterable[kafka.Record]) -> dict[documents.Position, bytes]:
        """Return what goes to NSQ; of the rest Kafka has a dead letter before this returns, or had one before."""
        bodies = {}
        for record in records:
            if self._lane.ledger.is_done(record.position):
                continue
            try:
                bodies[record.position] = self._ahead.get(record.position) or self._write(record)
            except kinds.RejectedError as error:
                await self._bury(record.position, record.value, error.reason, error.error)
        return bodies

    def _write(self, record: kafka.Record) -> bytes:
        limit = self._config.nsqd.max_message_bytes
        return documents.write_assignment(record.value, record.position, self._lane.kind, limit)[1]

    async def _write_ahead(self) -> None:
        """Write what is next while nsqd stores what came before: the one takes about as long as the other."""
        self._ahead = {}
        count = min(self._lane.room, self._publisher.batch)
        if self._lane.backlog and count > 0:
            for record in self._lane.backlog.head(count, nsq.MAX_BATCH_BYTES):
                with contextlib.suppress(kinds.RejectedError):
                    self._ahead[record.position] = self._write(record)

    async def _bury(self, position: documents.Position, raw: bytes | None, reason: str, error: str) -> None:
        name = self._lane.name
        log.warning("bridge.dead_letter", lane=name, position=str(position), reason=reason)
        await self._producer.send_dead_letter(documents.DeadLetter(name, reason, error, "bridge", raw, position))
        done = documents.Event("done", self._teller, name, position, outcome="dead", reason=reason)
        told = await self._producer.send_for_sure(kafka.EVENTS, done.write())
        self._lane.ledger.note_done(position, told.offset)
        _DEAD.labels(name, reason).inc()


def _as_one_batch(records: list[kafka.Record], bodies: Mapping[documents.Position, bytes]) -> list[kafka.Record]:
    """Return the first of ``records``, as many as one MPUB can carry with what was added to them."""
    size = 0
    for number, record in enumerate(records):
        size += len(bodies.get(record.position, b""))
        if number and size > nsq.MAX_BATCH_BYTES:
            return records[:number]
    return records
