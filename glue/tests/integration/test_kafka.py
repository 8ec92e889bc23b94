"""Our Kafka client against a real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import confluent_kafka
import pytest

from slowjobs import kafka, settings
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


def test_lag_counts_what_a_group_has_not_committed(services: Services, topic: str) -> None:
    services.kafka.produce(topic, [b"{}"] * 30)

    def _lag() -> dict[str, int | None]:
        return kafka.lag(_settings(services), NO_SECRETS, group=f"group-{topic}", topics=[topic, "no-such-topic"])

    assert _lag() == {topic: 30, "no-such-topic": None}

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
    wait_until(_lag, 10, "no lag", accept=lambda lag: lag[topic] == 0)


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
