"""The bridge: from the lanes' Kafka topics to NSQ, never above a lane's cap, and again what NSQ has lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import confluent_kafka
import prometheus_client
import structlog

from slowjobs import kafka, nsq, retry, service
from slowjobs.bridge import commit, discard, events, lane, publishing, readings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slowjobs import settings

log = structlog.get_logger()

GROUP = publishing.GROUP
#: requests that one look at Kafka brings at most.
_FETCHED_REQUESTS = 1000
#: seconds between two readings of nsqd's figures: while requests wait for room, and while none does.
_READING_SECONDS = 0.1
_IDLE_READING_SECONDS = 1.0
#: seconds that a poll of Kafka waits.
_POLL_SECONDS = 0.1
#: seconds between two looks at whether the topics are still the same.
_TOPICS_SECONDS = 15.0
#: seconds that a stopping bridge gives an answer of nsqd and the last commit together.
_STOP_SECONDS = 17.0
#: seconds that a stopping bridge gives its last commit: without it the next one reads more events.
_LAST_COMMIT_SECONDS = 5.0

_OUTSTANDING = prometheus_client.Gauge("slowjobs_outstanding_requests", "Published and not finished", ["lane"])


class Bridge(service.Service):
    """Move requests from the lanes' Kafka topics to nsqd, at most ``max_outstanding`` of a lane at a time.

    The committed offset is the lowest that is not done. What NSQ has lost is published again, and only that: how it is
    found is the ledger's. Kafka or nsqd away: waits and goes on. A full lane never holds back another.
    """

    def __init__(self, config: settings.BridgeSettings, secrets: settings.Credentials) -> None:
        self._config = config
        self._secrets = secrets
        self._stopping = asyncio.Event()
        #: Kafka topic -> its lane.
        self._lanes = {config.kafka_topic(name): lane.Lane(name, config) for name in config.lanes}

    def stop(self) -> None:
        """End: 1 stop polling, 2 wait for the answers of what was sent, 3 commit, 4 close."""
        self._stopping.set()

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says: the host that gets new requests, all it works with, and each lane's figures."""
        return {
            "publishes_to": self._config.nsqd.active,
            "nsqd": self._config.nsqd.serving,
            "lanes": {each.name: each.state() for each in self._lanes.values()},
        }

    async def run(self) -> None:
        """Work until ``stop``. Raises, in a group, kafka.FencedError when another bridge has taken over.

        And documents.UnknownVersionError for a commit or an event that only a newer bridge understands.
        """
        topics = kafka.Topics(self._config.kafka, self._secrets)
        producer = kafka.Producer(self._config.kafka, self._secrets, client_id=GROUP)
        try:
            asked = discard.serving(self._config.bridge_socket, self._lanes.values())
            async with asked, nsq.session() as session, asyncio.TaskGroup() as tasks:
                hosts = self._config.nsqd.hosts
                apis = {host: nsq.Api(session, hosts[host].http_address) for host in self._config.nsqd.serving}
                beside = [tasks.create_task(self._read_figures(apis)), tasks.create_task(producer.watch())]
                consuming = tasks.create_task(self._consume(_Servers(apis, topics, producer)))
                await self._stopping.wait()
                await asyncio.wait([consuming], timeout=_STOP_SECONDS)
                for task in (consuming, *beside):
                    task.cancel()
        finally:
            await producer.close()

    # Kafka

    async def _consume(self, servers: _Servers) -> None:
        while not self._stopping.is_set():
            await self._consume_topics(servers)

    async def _consume_topics(self, servers: _Servers) -> None:
        """Work until ``stop``, or until all has to begin anew."""
        topic_ids: dict[str, str] = {}

        def _where_to_begin(committed: kafka.Committed) -> int | None:
            """Return the first offset that Kafka has to give: what was published before is in the commit."""
            topic_id = topic_ids[committed.topic] = servers.topics.id(committed.topic)
            if committed.offset is None:
                return None
            return commit.read(committed.metadata, committed.offset, topic_id).listed

        consumer = kafka.Consumer(
            self._config.kafka, self._secrets, group=GROUP, topics=list(self._lanes), begin=_where_to_begin
        )
        fetcher = kafka.Fetcher(self._config.kafka, self._secrets)
        work = _Work(
            self._config,
            self._secrets,
            self._lanes,
            topic_ids=topic_ids,
            consumer=consumer,
            fetcher=fetcher,
            servers=servers,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(self._feed(consumer, work, tasks))
                stopping = tasks.create_task(self._stopping.wait())
                anew = tasks.create_task(_until_made_anew(servers.topics, topic_ids))
                deaf = tasks.create_task(kafka.until_deaf(servers.topics, [consumer, fetcher, work]))
                await asyncio.wait([stopping, anew, deaf], return_when=asyncio.FIRST_COMPLETED)
                is_deaf = deaf.done()
                # What they wait for may never come while Kafka is away, and what they have read comes again.
                for task in (feeding, stopping, anew, deaf):
                    task.cancel()
                await asyncio.wait([feeding])
                # A deaf one hears of no commit either.
                await work.stop() if is_deaf else await work.end()
        finally:
            for each in self._lanes.values():
                each.forget_all()
            await asyncio.gather(consumer.close(), asyncio.to_thread(fetcher.close))

    async def _feed(self, consumer: kafka.Consumer, work: _Work, tasks: asyncio.TaskGroup) -> None:
        """Bring the lanes what Kafka has, for ever, and have ``work`` follow the partitions that come and go."""
        while True:
            fetched = await consumer.fetch(_FETCHED_REQUESTS, wait_seconds=_POLL_SECONDS)
            # An earlier configuration may have had more topics.
            lost = {each for each in consumer.lost() if each[0] in self._lanes}
            joined = consumer.joined()
            if lost or joined:
                await work.change(tasks, lost, joined)
            for record in fetched:
                self._lanes[record.position.topic].add(record)
            for (topic, partition), end in consumer.ends().items():
                self._lanes[topic].end(partition, end)
            consumer.hold_back({topic for topic, each in self._lanes.items() if each.backlog.held_back})

    # The cap

    async def _read_figures(self, apis: Mapping[str, nsq.Api]) -> None:
        lanes = self._lanes.values()
        latest: dict[str, nsq.Stats] = {}
        away = retry.OnceAMinute()
        while True:
            marks = [each.cap.begin_reading() for each in lanes]
            answers = await asyncio.gather(*(api.stats() for api in apis.values()), return_exceptions=True)
            for host, answer in zip(apis, answers, strict=True):
                if isinstance(answer, nsq.Stats):
                    latest[host] = answer
                elif not isinstance(answer, nsq.ERRORS):
                    raise answer
                else:
                    if host == self._config.nsqd.active:
                        latest.pop(host, None)
                    if away.is_due():
                        log.warning("server.away", server=f"nsqd {host}", error=repr(answer))
            for each, mark in zip(lanes, marks, strict=True):
                self._note_figures(each, mark, latest)
            waiting = any(len(each.backlog) or each.ledger.lost for each in lanes)
            await asyncio.sleep(_READING_SECONDS if waiting else _IDLE_READING_SECONDS)

    def _note_figures(self, of: lane.Lane, mark: int, latest: Mapping[str, nsq.Stats]) -> None:
        """Take in what the hosts hold; of one that only drains the last that it said: it gets nothing any more."""
        if self._config.nsqd.active not in latest:
            of.cap.forget()
            _OUTSTANDING.labels(of.name).set(math.nan)
            return
        topics = [stats.topics[of.name] for stats in latest.values() if of.name in stats.topics]
        held = sum(topic.outstanding(of.channel) for topic in topics)
        of.cap.end_reading(mark, held, copying=any(topic.depth for topic in topics))
        _OUTSTANDING.labels(of.name).set(of.cap.outstanding or 0)
        of.wake.set()


@dataclass(frozen=True)
class _Servers:
    apis: Mapping[str, nsq.Api]
    topics: kafka.Topics
    producer: kafka.Producer


class _Work:
    """What works with the partitions that are ours: the events are followed, each lane is published and judged."""

    def __init__(
        self,
        config: settings.BridgeSettings,
        secrets: settings.Credentials,
        lanes: Mapping[str, lane.Lane],
        *,
        topic_ids: Mapping[str, str],
        consumer: kafka.Consumer,
        fetcher: kafka.Fetcher,
        servers: _Servers,
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._lanes = lanes
        self._topic_ids = topic_ids
        self._consumer = consumer
        self._fetcher = fetcher
        self._servers = servers
        self._events: events.Events | None = None
        self._task: asyncio.Task[None] | None = None

    async def change(
        self, tasks: asyncio.TaskGroup, lost: Iterable[tuple[str, int]], joined: Sequence[kafka.Committed]
    ) -> None:
        """Go on without the partitions ``lost``, and with those that ``joined``, each from its commit."""
        await self.stop()
        for topic, partition in lost:
            self._lanes[topic].forget(partition)
        end = await events.end(self._fetcher)
        begins = [] if self._events is None else [self._events.next]
        for committed in await self._committed(joined):
            topic_id = self._topic_ids[committed.topic]
            begins.append(self._lanes[committed.topic].begin(committed, end, topic_id))
        ledgers = {topic: each.ledger for topic, each in self._lanes.items()}
        self._events = events.Events(self._config.kafka, self._secrets, ledgers, min(begins, default=end))
        self._task = tasks.create_task(self._run(self._events))

    async def _committed(self, joined: Sequence[kafka.Committed]) -> list[kafka.Committed]:
        """Return the commits as they are now: a partition that went and came may have had one more meanwhile."""
        where = [(each.topic, each.partition) for each in joined]
        if not where:
            return []
        return await retry.outlast("kafka", confluent_kafka.KafkaException, self._consumer.committed, where)

    def hears(self) -> bool:
        """Tell whether Kafka answers who follows the events."""
        return self._events is None or self._events.hears()

    async def end(self) -> None:
        """Stop, and commit what is done."""
        await self.stop()
        if self._events is None:
            return
        commits = [each.to_commit(one, self._events.next) for each in self._lanes.values() for one in each.partitions]
        with contextlib.suppress(TimeoutError, kafka.CommitError):
            async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                await self._consumer.commit_now(commits)

    async def stop(self) -> None:
        """Stop when what was sent is answered."""
        if self._task is None:
            return
        async with contextlib.AsyncExitStack() as answered:
            for each in self._lanes.values():
                await answered.enter_async_context(each.sending)
            self._task.cancel()
            await asyncio.wait([self._task])
        self._task = None

    async def _run(self, following: events.Events) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(following.follow())
                await following.catch_up()
                name = f"{GROUP}/{token_hex(4)}"
                for each in self._lanes.values():
                    publisher = publishing.Publishing(
                        each,
                        self._config,
                        name=name,
                        apis=self._servers.apis,
                        consumer=self._consumer,
                        producer=self._servers.producer,
                        fetcher=self._fetcher,
                        events=following,
                    )
                    reader = readings.Readings(each, apis=self._servers.apis, fetcher=self._fetcher, events=following)
                    for work in (publisher.run(), publisher.commit_progress(), reader.run()):
                        tasks.create_task(work)
        finally:
            await following.close()


async def _until_made_anew(topics: kafka.Topics, topic_ids: Mapping[str, str]) -> None:
    """Return when one of the topics was made anew: librdkafka can go on with it as if it were the old one."""
    while True:
        await asyncio.sleep(_TOPICS_SECONDS)
        now = await retry.outlast(
            "kafka", confluent_kafka.KafkaException, asyncio.to_thread, topics.ids, list(topic_ids)
        )
        if anew := [topic for topic in now if now[topic] != topic_ids[topic]]:
            log.warning("bridge.topics_made_anew", topics=" ".join(anew))
            return
