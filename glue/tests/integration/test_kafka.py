"""Our Kafka client against a real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import confluent_kafka
import pytest

from slowjobs import documents, kafka, retry, settings
from slowjobs.kafka import common
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.services import Services

pytestmark = pytest.mark.integration

NO_SECRETS = settings.Credentials({}, None)


@pytest.fixture
def topic(services: Services) -> str:
    name = f"topic-{uuid.uuid4().hex[:8]}"
    services.kafka.create_topic(name, partitions=2)
    return name


def _settings(services: Services) -> settings.Kafka:
    return settings.Kafka(properties={"bootstrap.servers": services.kafka.address})


def test_what_was_sent_is_there_when_send_returns(services: Services, topic: str) -> None:
    async def _send() -> None:
        producer = kafka.Producer(_settings(services), NO_SECRETS, client_id="tests")
        await asyncio.gather(*(producer.send(topic, b"%d" % number, key=b"key") for number in range(500)))
        # Before close(), which flushes.
        assert len(services.kafka.tail(topic).values()) == 500
        await producer.close()

    asyncio.run(_send())


def test_sending_waits_for_kafka(services: Services, topic: str) -> None:
    async def _send() -> None:
        producer = kafka.Producer(_settings(services), NO_SECRETS, client_id="tests")
        await producer.send(topic, b"before")
        services.kafka.stop()
        sending = asyncio.create_task(producer.send(topic, b"meanwhile"))
        done, _ = await asyncio.wait([sending], timeout=3)
        assert not done
        services.kafka.start()
        await asyncio.wait_for(sending, 30)
        await producer.close()

    asyncio.run(_send())
    assert sorted(services.kafka.tail(topic).values()) == [b"before", b"meanwhile"]


def test_what_kafka_refuses_for_good_is_an_error(services: Services, topic: str) -> None:
    async def _send() -> None:
        producer = kafka.Producer(_settings(services), NO_SECRETS, client_id="tests")
        with pytest.raises(kafka.DeliveryError):
            await producer.send(topic, b"x" * 2 * 1024 * 1024)
        with pytest.raises(kafka.DeliveryError):
            await producer.send(topic, b"x" * (kafka.MAX_MESSAGE_BYTES + 1))
        await producer.send(topic, b"goes on")
        await producer.close()

    asyncio.run(_send())


def test_what_a_group_has_not_committed_is_known(services: Services, topic: str) -> None:
    services.kafka.produce(topic, [b"{}"] * 30)

    def _left() -> int:
        with closing(kafka.reader(_settings(services), NO_SECRETS, group=f"group-{topic}")) as client:
            reaches = kafka.reach(client, [topic, "no-such-topic"])
        assert reaches["no-such-topic"] is None
        return sum(partition.end - partition.next for partition in reaches[topic] or [])

    assert _left() == 30

    async def _consume() -> None:
        consumer = kafka.Consumer(_settings(services), NO_SECRETS, group=f"group-{topic}", topics=[topic])
        records: list[kafka.Record] = []
        async with asyncio.timeout(30):
            while len(records) < 30:
                records += await consumer.fetch(100, wait_seconds=0.1)
        places = [record.position for record in records]
        next_offsets = {(place.topic, place.partition): place.offset + 1 for place in places}
        consumer.commit(next_offsets)
        await consumer.close()

    asyncio.run(_consume())
    wait_until(_left, 10, "nothing left", accept=lambda left: left == 0)


def test_a_topic_that_is_held_back_sends_nothing_and_goes_on_where_it_was(services: Services, topic: str) -> None:
    other = f"{topic}-other"
    services.kafka.create_topic(other)

    async def _consume() -> None:
        consumer = kafka.Consumer(_settings(services), NO_SECRETS, group=f"group-{topic}", topics=[topic, other])

        async def _fetch(wanted: int) -> list[bytes]:
            values: list[bytes] = []
            async with asyncio.timeout(30):
                while len(values) < wanted:
                    values += [record.value for record in await consumer.fetch(1000, wait_seconds=0.1)]
            return values

        services.kafka.produce(topic, [b"first"])
        assert await _fetch(1) == [b"first"]
        consumer.hold_back({topic})
        services.kafka.produce(topic, [b"held"] * 20)
        services.kafka.produce(other, [b"other"] * 20)
        assert await _fetch(20) == [b"other"] * 20
        consumer.hold_back(set())
        assert await _fetch(20) == [b"held"] * 20
        await consumer.close()

    asyncio.run(_consume())


def test_a_batch_of_large_messages_ends_before_they_fill_the_memory(services: Services) -> None:
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    size = 20 * 1024 * 1024
    services.kafka.create_topic(topic, config={"max.message.bytes": str(kafka.MAX_MESSAGE_BYTES)})
    services.kafka.produce(topic, (b"x" * size for _ in range(4)))

    async def _sizes() -> list[int]:
        consumer = kafka.Consumer(_settings(services), NO_SECRETS, group=f"group-{topic}", topics=[topic])
        try:
            sizes: list[int] = []
            while sum(sizes) < 4 * size:
                batch = await consumer.fetch(1000, wait_seconds=10, gather_seconds=2)
                sizes.append(sum(len(record.value) for record in batch))
            return sizes
        finally:
            await consumer.close()

    assert max(asyncio.run(_sizes())) <= 2 * size


def test_a_time_that_no_calendar_has_counts_as_now(services: Services, topic: str) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": services.kafka.address})
    producer.produce(topic, b"in microseconds, and before the calendar", timestamp=-(10**15))
    producer.flush()
    with contextlib.closing(kafka.reader(_settings(services), NO_SECRETS, group="tests")) as client:
        start = confluent_kafka.OFFSET_BEGINNING
        client.assign([confluent_kafka.TopicPartition(topic, partition, start) for partition in range(2)])
        [message] = wait_until(
            lambda: [each for each in client.consume(10, 0.5) if each.error() is None], 20, "the message"
        )
    assert abs(datetime.now(UTC) - kafka.Record.of(message).created) < timedelta(minutes=1)


def _one(services: Services, count: int) -> str:
    """Return a topic of one partition that holds ``count`` messages, each with its offset as its value."""
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    services.kafka.create_topic(topic)
    services.kafka.produce(topic, [b"%d" % number for number in range(count)])
    return topic


def _consumer(services: Services, *topics: str) -> kafka.Consumer:
    """Return a consumer that begins where the metadata of its commit says."""
    return kafka.Consumer(
        _settings(services),
        NO_SECRETS,
        group=f"group-{topics[0]}",
        topics=topics,
        begin=lambda at: int(at.metadata or 0),
    )


async def _fetched(consumer: kafka.Consumer) -> list[kafka.Record]:
    async with asyncio.timeout(30):
        while not (records := await consumer.fetch(1000, wait_seconds=0.1)):
            pass
    return records


def _abort(services: Services, topic: str, count: int) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": services.kafka.address, "transactional.id": topic})
    producer.init_transactions(20)
    producer.begin_transaction()
    for _ in range(count):
        producer.produce(topic, b"never was")
    producer.flush()
    producer.abort_transaction(20)


def _delete_records(services: Services, topic: str, before: int) -> None:
    admin = services.kafka.admin()
    partition = confluent_kafka.TopicPartition(topic, 0, before)
    for deleted in admin.delete_records([partition]).values():
        deleted.result(20)


def test_a_restart_begins_at_the_mark_and_knows_what_was_committed_beside_the_offset(services: Services) -> None:
    topic = _one(services, 10)
    committed = kafka.Committed(topic, 0, 3, "7")

    async def _restart() -> None:
        consumer = _consumer(services, topic)
        assert len(await _fetched(consumer)) == 10
        assert consumer.joined() == [kafka.Committed(topic, 0, None, "")]
        assert consumer.joined() == []
        await consumer.commit_now([committed])
        await consumer.close()
        consumer = _consumer(services, topic)
        assert [record.position.offset for record in await _fetched(consumer)] == [7, 8, 9]
        assert consumer.joined() == [committed]
        assert await consumer.committed([(topic, 0)]) == [committed]
        await consumer.close()

    asyncio.run(_restart())
    with contextlib.closing(kafka.reader(_settings(services), NO_SECRETS, group=f"group-{topic}")) as client:
        assert kafka.reach(client, [topic]) == {topic: [kafka.Reach(3, 10, "7")]}


def test_a_commit_waits_neither_for_a_fetch_nor_keeps_one_waiting_and_is_made_when_kafka_is_back(
    services: Services,
) -> None:
    topic = _one(services, 1)

    async def _commit() -> None:
        consumer = _consumer(services, topic)
        await _fetched(consumer)
        fetching = asyncio.create_task(consumer.fetch(1, wait_seconds=20))
        for number in range(20):
            await consumer.commit_now([kafka.Committed(topic, 0, 1, str(number))])
        assert not fetching.done()
        services.kafka.stop()
        committing = asyncio.create_task(consumer.commit_now([kafka.Committed(topic, 0, 1, "last")]))
        await fetching
        async with asyncio.timeout(10):
            await consumer.fetch(1, wait_seconds=0.1)
            consumer.hold_back({topic})
        assert not committing.done()
        services.kafka.start()
        async with asyncio.timeout(30):
            with contextlib.suppress(kafka.CommitError):
                await committing
            there = None
            while there is None or there.metadata != "last":
                with contextlib.suppress(confluent_kafka.KafkaException):  # it has just come back
                    await consumer.commit_now([kafka.Committed(topic, 0, 1, "last")])
                    [there] = await consumer.committed([(topic, 0)])
        await consumer.close()

    asyncio.run(_commit())


def test_a_second_instance_fences_the_commits_of_the_first(services: Services) -> None:
    topic = _one(services, 1)

    async def _commit_on_and_on(consumer: kafka.Consumer) -> None:
        while True:
            with contextlib.suppress(kafka.CommitError):
                await consumer.commit_now([kafka.Committed(topic, 0, 1, "0")])

    async def _fence() -> None:
        first = _consumer(services, topic)
        await _fetched(first)
        second = _consumer(services, topic)
        joining = asyncio.create_task(_fetched(second))
        with pytest.raises(kafka.FencedError):
            await asyncio.wait_for(_commit_on_and_on(first), 30)
        await joining
        await second.commit_now([kafka.Committed(topic, 0, 1, "0")])
        await asyncio.gather(first.close(), second.close())

    asyncio.run(_fence())


def test_single_messages_are_read_wherever_they_are_and_what_is_gone_is_absent(services: Services, topic: str) -> None:
    one = _one(services, 5000)
    _abort(services, one, 300)
    services.kafka.produce(one, [b"after"])
    services.kafka.produce(topic, [b"x" * 900_000] * 40)
    _delete_records(services, one, 100)

    async def _read() -> dict[documents.Position, kafka.Record]:
        fetcher = kafka.Fetcher(_settings(services), NO_SECRETS)
        missing = [documents.Position("no-such-topic", 0, 0), documents.Position(one, 7, 0)]
        wanted = [
            documents.Position(one, 0, offset) for offset in (4999, 5, 99, 100, 101, 3000, 5100, 5300, 5301, 9999)
        ]
        wanted += [documents.Position(topic, partition, offset) for partition in range(2) for offset in range(30)]
        async with asyncio.timeout(30):
            for position in missing:
                # A broker that has just come back says the same of a topic that is there.
                with pytest.raises(confluent_kafka.KafkaException):
                    await fetcher.read([position])
            both = await asyncio.gather(fetcher.read(wanted), fetcher.read(wanted[:1]))
        services.kafka.stop()
        with pytest.raises(confluent_kafka.KafkaException):
            await fetcher.read(wanted)
        services.kafka.start()
        async for attempt in retry.while_away("kafka", confluent_kafka.KafkaException):
            with attempt:
                again = await fetcher.read(wanted)
        assert again.keys() == both[0].keys()
        assert both[1].keys() == set(wanted[:1])
        fetcher.close()
        return again

    found = asyncio.run(_read())
    # Kafka's mark of the aborted transaction is at 5300 or behind what came after it.
    assert {record.value for position, record in found.items() if position.topic == one} == {
        b"100",
        b"101",
        b"3000",
        b"4999",
        b"after",
    }
    assert sum(position.topic == topic for position in found) >= 30


def test_a_follower_begins_at_the_oldest_message_and_knows_when_it_has_all(services: Services) -> None:
    topic = _one(services, 100)
    _delete_records(services, topic, 40)
    _abort(services, topic, 10)

    async def _follow() -> list[int]:
        follower = kafka.Follower(_settings(services), NO_SECRETS, topic, 5)
        offsets: list[int] = []
        async with asyncio.timeout(30):
            end = await follower.end()
            while follower.next < end:
                offsets += [record.position.offset for record in await follower.fetch(7, wait_seconds=0.5)]
        follower.close()
        return offsets

    assert asyncio.run(_follow()) == list(range(40, 100))


def test_clients_know_whether_kafka_answers_them(
    services: Services, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "_HEARING_SECONDS", 1.0)

    async def _ask() -> None:
        where = _settings(services), NO_SECRETS
        clients = (
            kafka.Consumer(*where, group=f"group-{topic}", topics=[topic]),
            kafka.Follower(*where, topic, 0),
            kafka.Fetcher(*where),
        )

        def _hear() -> list[bool]:
            return [client.hears() for client in clients]

        wait_until(_hear, 20, "all to hear", accept=all)
        services.kafka.stop()
        assert not any(_hear())
        services.kafka.start()
        wait_until(_hear, 20, "all to hear again", accept=all)
        await clients[0].close()
        for client in clients[1:]:
            client.close()
            assert client.hears(), "nobody has to replace what is closed"

    asyncio.run(_ask())
