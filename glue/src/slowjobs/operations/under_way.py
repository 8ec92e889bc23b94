"""What of a kind is still on its way, read in the one order in which nothing on its way is missed.

A request moves on while it is looked for: from Kafka to NSQ, from there to a result on Kafka, and that to PostgreSQL.
So each place is read after the one before it:

1. The ends of the lanes' topics; then wait until persister@requests has come there. From now on PostgreSQL knows the
   newest position of all that was sent before.
2. How far the bridge has come. What is at that offset or above is on its way.
3. NSQ. What is below the bridge's offset was published before (2): NSQ still holds it, or it was finished before (3).
4. The ends of the result topics; then wait until persister@results has come there. A worker finishes a request when
   Kafka has its result: the results of all that was finished before (3) are in PostgreSQL from now on.
5. PostgreSQL, by our caller. A request below the bridge's offset, on a lane of which NSQ held nothing, has a result
   here now or comes to none.

Read the other way round, a request could be past each place when that is looked at. One that somebody sends after (1)
may not be seen and run twice, as any request may.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slowjobs import kafka, nsq
from slowjobs.bridge import bridge

if TYPE_CHECKING:
    from collections.abc import Iterable

    import confluent_kafka

    from slowjobs import settings

#: seconds between two looks at a persister's offsets, and between two readings of NSQ.
_LOOK_SECONDS = 0.25
#: a message that moves between two counts of nsqd's can be missed once, not twice in a row.
_READINGS = 2

#: Hears which persister is waited for, and for how many messages.
Waiting = Callable[[str, int], None]


class DeadlineError(Exception):
    """A persister did not catch up in time; ``str()`` says where to look."""


@dataclass(frozen=True)
class UnderWay:
    """Where the requests of a kind were when they were looked for.

    ``next``: Kafka topic of a lane -> the offset that the bridge takes next, of each partition; ``end``: that of the
    next message to come.
    ``backlog``: lane -> requests on Kafka that the bridge has not taken; ``outstanding``: lane -> requests in NSQ.
    """

    next: dict[str, list[int]]
    end: dict[str, list[int]]
    backlog: dict[str, int]
    outstanding: dict[str, int]


def read(
    config: settings.CliSettings,
    secrets: settings.Credentials,
    kind: str,
    *,
    timeout_seconds: float,
    waiting: Waiting,
) -> UnderWay:
    """Return where the requests of ``kind`` are; PostgreSQL knows by then all that this module's rule says.

    Raises DeadlineError, and errors.SERVER_ERRORS for a server that is away: an nsqd that does not answer may hold
    anything.
    """
    lanes = {name: lane for name, lane in config.lanes.items() if lane.kind == kind}
    topics = {name: config.kafka_topic(name) for name in lanes}
    results = {config.pools[lane.pool].result_topic for lane in lanes.values()}
    deadline = time.monotonic() + timeout_seconds

    def _catch_up(instance: str, topics: Iterable[str]) -> None:
        group = f"slowjobs-persister-{instance}"
        with contextlib.closing(kafka.reader(config.kafka, secrets, group=group)) as client:
            _wait(client, f"slowjobs-persister@{instance}", list(topics), deadline, waiting)

    _catch_up("requests", topics.values())
    with contextlib.closing(kafka.reader(config.kafka, secrets, group=bridge.GROUP)) as client:
        taken = _reach(client, topics.values())
    outstanding = asyncio.run(_outstanding(config, lanes))
    _catch_up("results", results)
    return UnderWay(
        next={topic: [partition.next for partition in partitions] for topic, partitions in taken.items()},
        end={topic: [partition.end for partition in partitions] for topic, partitions in taken.items()},
        backlog={name: sum(partition.end - partition.next for partition in taken[topics[name]]) for name in lanes},
        outstanding=outstanding,
    )


def _wait(
    client: confluent_kafka.Consumer, persister: str, topics: list[str], deadline: float, waiting: Waiting
) -> None:
    """Return once the persister has committed all that was on ``topics`` at the first look."""
    first = _reach(client, topics)
    now = first
    while left := _left(first, now):
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{persister} has {left} messages to go on {', '.join(topics)}, and what it has not written cannot be"
                f" judged. Does it run? `slowjobs status` says so, `journalctl -u {persister}` what it waits for"
            )
        waiting(persister, left)
        time.sleep(_LOOK_SECONDS)
        now = _reach(client, topics)


def _left(first: dict[str, list[kafka.Reach]], now: dict[str, list[kafka.Reach]]) -> int:
    """Return how many of the messages that were there at first are not committed now."""
    return sum(
        max(0, before.end - after.next)
        for topic, partitions in first.items()
        # A partition that was added since holds nothing from before.
        for before, after in zip(partitions, now[topic], strict=False)
    )


def _reach(client: confluent_kafka.Consumer, topics: Iterable[str]) -> dict[str, list[kafka.Reach]]:
    reaches = {}
    for topic, partitions in kafka.reach(client, topics).items():
        if partitions is None:
            raise ConnectionError(f"kafka: topic {topic} is missing: run `slowjobs setup`")
        reaches[topic] = partitions
    return reaches


async def _outstanding(config: settings.CliSettings, lanes: dict[str, settings.Lane]) -> dict[str, int]:
    """Return ``lane -> requests`` that the serving nsqds hold: the larger of the readings."""
    largest = dict.fromkeys(lanes, 0)
    async with nsq.session() as session:
        apis = [nsq.Api(session, config.nsqd.hosts[host].http_address) for host in config.nsqd.serving]
        for reading in range(_READINGS):
            if reading:
                await asyncio.sleep(_LOOK_SECONDS)
            stats = await asyncio.gather(*(api.stats() for api in apis))
            for name, lane in lanes.items():
                held = sum(each.topics[name].outstanding(lane.pool) for each in stats if name in each.topics)
                largest[name] = max(largest[name], held)
    return largest
