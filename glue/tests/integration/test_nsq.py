"""Our nsqd client against a real nsqd."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from slowjobs import nsq, settings
from support.nsqd import MSG_TIMEOUT_SECONDS
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from support.nsqd import Nsqd
    from support.services import Services

pytestmark = pytest.mark.integration

CHANNEL = "pool"


def _address(text: str) -> settings.Address:
    host, port = text.split(":")
    return settings.Address(host, int(port))


@pytest.fixture
def nsqd(services: Services) -> Nsqd:
    return services.nsqd


@pytest.fixture
def topic(nsqd: Nsqd) -> str:
    name = f"topic-{uuid.uuid4().hex[:8]}"
    nsqd.create(name, CHANNEL)
    return name


async def _subscribe(nsqd: Nsqd, topic: str, ready: int) -> nsq.Subscription:
    subscription = await nsq.Subscription.open(
        _address(nsqd.tcp_address), host="svc506", topic=topic, channel=CHANNEL, client_id="tests"
    )
    subscription.ready(ready)
    return subscription


async def _within(seconds: float, what: Coroutine[object, object, nsq.Message | None]) -> nsq.Message:
    async with asyncio.timeout(seconds):
        message = await what
    assert message is not None
    return message


def test_a_published_batch_arrives_byte_for_byte(nsqd: Nsqd, topic: str) -> None:
    bodies = [b'{"n": %d, "newline": "\n"}' % number for number in range(nsq.FIRST_BATCH)]

    async def _round_trip() -> None:
        publisher = nsq.Publisher(_address(nsqd.tcp_address), client_id="tests")
        await publisher.connect()
        await publisher.publish(topic, bodies)
        publisher.close()
        subscription = await _subscribe(nsqd, topic, ready=nsq.FIRST_BATCH)
        received = []
        for _ in bodies:
            message = await _within(10, subscription.receive())
            assert message.attempts == 1
            received.append(message.body)
            subscription.finish(message)
        assert sorted(received) == sorted(bodies)
        await asyncio.sleep(0.2)
        subscription.close()

    asyncio.run(_round_trip())
    assert nsqd.outstanding(topic) == 0


def test_a_touched_message_stays_and_an_untouched_one_comes_again(nsqd: Nsqd, topic: str) -> None:
    nsqd.publish(topic, b"{}")

    async def _hold() -> None:
        subscription = await _subscribe(nsqd, topic, ready=1)
        assert subscription.msg_timeout_seconds == MSG_TIMEOUT_SECONDS
        first = await _within(5, subscription.receive())
        waiting = asyncio.create_task(_within(60, subscription.receive()))
        # nsqd begins to look at a new channel's time-outs up to 5 s late.
        for _ in range(8):
            await asyncio.sleep(1)
            subscription.touch(first)
        assert not waiting.done()
        second = await waiting
        assert (second.id, second.attempts) == (first.id, 2)
        # Too late for the first delivery, and no harm to the connection.
        subscription.finish(second)
        subscription.finish(second)
        nsqd.publish(topic, b'{"another": 1}')
        third = await _within(5, subscription.receive())
        subscription.finish(third)
        await asyncio.sleep(0.2)
        subscription.close()

    asyncio.run(_hold())
    assert nsqd.outstanding(topic) == 0


def test_a_requeued_message_comes_again_after_its_delay(nsqd: Nsqd, topic: str) -> None:
    nsqd.publish(topic, b"{}")

    async def _requeue() -> float:
        subscription = await _subscribe(nsqd, topic, ready=1)
        first = await _within(5, subscription.receive())
        subscription.requeue(first, 1500)
        started = time.monotonic()
        second = await _within(15, subscription.receive())
        waited = time.monotonic() - started
        assert (second.id, second.attempts) == (first.id, 2)
        subscription.finish(second)
        await asyncio.sleep(0.2)
        subscription.close()
        return waited

    assert asyncio.run(_requeue()) >= 1.5


def test_a_lost_connection_is_an_error_and_its_message_comes_again(nsqd: Nsqd, topic: str) -> None:
    nsqd.publish(topic, b"{}")

    async def _lose() -> None:
        subscription = await _subscribe(nsqd, topic, ready=1)
        await _within(5, subscription.receive())
        # In good order: what was in flight is on disk.
        nsqd.stop()
        with pytest.raises(nsq.ERRORS):
            await _within(10, subscription.receive())
        subscription.close()
        with pytest.raises(nsq.ERRORS):
            await _subscribe(nsqd, topic, ready=1)
        nsqd.start()
        again = await _subscribe(nsqd, topic, ready=1)
        message = await _within(10, again.receive())
        again.finish(message)
        await asyncio.sleep(0.2)
        again.close()

    asyncio.run(_lose())
    assert nsqd.outstanding(topic) == 0


def test_a_batch_that_nsqd_refuses_is_an_error_and_nothing_of_it_is_there(nsqd: Nsqd, topic: str) -> None:
    async def _publish() -> None:
        publisher = nsq.Publisher(_address(nsqd.tcp_address), client_id="tests")
        await publisher.connect()
        with pytest.raises(nsq.ERRORS, match="E_BAD_MESSAGE"):
            await publisher.publish(topic, [b"good", b"x" * (1024 * 1024 + 1)])
        # A new connection works.
        await publisher.connect()
        await publisher.publish(topic, [b"good"])
        publisher.close()

    asyncio.run(_publish())
    # Not what is outstanding: that misses a message on its way from topic to channel.
    figures = nsqd.topic(topic)
    assert figures is not None
    assert figures["message_count"] == 1


def test_the_figures_say_what_waits_is_in_flight_and_is_deferred(nsqd: Nsqd, topic: str) -> None:
    async def _figures() -> nsq.Topic:
        subscription = await _subscribe(nsqd, topic, ready=3)
        for _ in range(10):
            nsqd.publish(topic, b"{}")
        for _ in range(3):
            message = await _within(5, subscription.receive())
        subscription.ready(0)
        subscription.requeue(message, 60_000)
        await asyncio.sleep(0.3)
        async with nsq.session() as session:
            stats = await nsq.Api(session, _address(nsqd.http_address)).stats()
        subscription.close()
        assert (stats.version, stats.healthy) == ("1.3.0", True)
        return stats.topics[topic]

    figures = asyncio.run(_figures())
    [channel] = figures.channels
    assert (channel.depth, channel.in_flight, channel.deferred, channel.clients) == (7, 2, 1, 1)
    assert figures.outstanding(CHANNEL) == 10
    assert figures.outstanding("another channel") == 0


def test_what_is_not_nsqd_is_named(services: Services) -> None:
    kafka = _address(services.kafka.address)

    async def _ask() -> None:
        with pytest.raises(nsq.ERRORS, match=str(kafka)):
            await nsq.Publisher(kafka, client_id="tests").connect()
        async with nsq.session() as session:
            with pytest.raises(nsq.ERRORS, match=str(kafka)):
                await nsq.Api(session, kafka).stats()

    asyncio.run(_ask())


def test_nsqd_keeps_what_waits_over_a_kill(nsqd: Nsqd, topic: str) -> None:
    """The flags that the role gives it: without them all of it would be gone."""
    for number in range(50):
        nsqd.publish(topic, b'{"n": %d}' % number)
    nsqd.kill()
    nsqd.start()
    # One may have been on its way from topic to channel at the kill; and a reading misses one that is now.
    kept = wait_until(lambda: nsqd.outstanding(topic), 5, "what was kept", accept=lambda count: count >= 49)
    assert kept <= 51
