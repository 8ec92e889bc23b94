"""What of a kind is still on its way, read in the one order in which nothing on its way is missed.

A request moves on while it is looked for: from Kafka to NSQ, from there to a result on Kafka, and that to PostgreSQL.
So each place is read after the one before it:

1. The ends of the lanes' topics; then wait until persister@requests has come there. From now on PostgreSQL knows the
   newest position of all that was sent before.
2. The bridge's commits. They name what is on its way: all from the mark on, and what is listed below it. The rest is
   done, for a position leaves the list after its `done` alone; its result was on Kafka before that, if it has any.
3. The ends of the result topics; then wait until persister@results has come there. The results of all that was done
   before (2) are in PostgreSQL from now on.
4. PostgreSQL, by our caller. A request whose newest position is not on its way has a result here now or comes to none.

NSQ itself is not asked: what it holds, what it has lost and what comes back are all in the list. Read the other way
round, a request could be past each place when that is looked at. One that somebody sends after (1) may not be seen and
run twice, as any request may; so may one that was sent once more while it is on its way, when the later one is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slowjobs import kafka
from slowjobs.operations import progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import confluent_kafka

    from slowjobs import settings

#: seconds between two looks at a persister's offsets.
_LOOK_SECONDS = 0.25

#: Hears which persister is waited for, and for how many messages.
Waiting = Callable[[str, int], None]


class DeadlineError(Exception):
    """A persister did not catch up in time; ``str()`` says where to look."""


@dataclass(frozen=True)
class UnderWay:
    """How far the bridge was with the lanes of a kind: ``Kafka topic -> of each partition``."""

    partitions: Mapping[str, Sequence[progress.Progress]]

    def unpublished(self, topic: str) -> int:
        """Return how many requests were not handed to NSQ."""
        return sum(partition.unpublished for partition in self.partitions[topic])

    def outstanding(self, topic: str) -> int:
        """Return how many requests were handed to NSQ and not done."""
        return sum(partition.outstanding for partition in self.partitions[topic])


def read(
    config: settings.CliSettings,
    secrets: settings.Credentials,
    kind: str,
    *,
    timeout_seconds: float,
    waiting: Waiting,
) -> UnderWay:
    """Return what of ``kind`` is on its way; PostgreSQL knows by then all that this module's rule says.

    Raises DeadlineError, errors.SERVER_ERRORS for a server that is away, and documents.UnknownVersionError for what
    another version of the bridge has committed.
    """
    lanes = {name: lane for name, lane in config.lanes.items() if lane.kind == kind}
    topics = [config.kafka_topic(name) for name in lanes]
    results = {config.pools[lane.pool].result_topic for lane in lanes.values()}
    deadline = time.monotonic() + timeout_seconds

    def _catch_up(instance: str, topics: Iterable[str]) -> None:
        group = f"slowjobs-persister-{instance}"
        with contextlib.closing(kafka.reader(config.kafka, secrets, group=group)) as client:
            _wait(client, f"slowjobs-persister@{instance}", list(topics), deadline, waiting)

    _catch_up("requests", topics)
    committed = _complete(progress.reach(config, secrets, topics))
    _catch_up("results", results)
    return UnderWay({topic: list(map(progress.Progress.of, partitions)) for topic, partitions in committed.items()})


def _wait(
    client: confluent_kafka.Consumer, persister: str, topics: list[str], deadline: float, waiting: Waiting
) -> None:
    """Return once the persister has committed all that was on ``topics`` at the first look."""
    first = _complete(kafka.reach(client, topics))
    now = first
    while left := _left(first, now):
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{persister} has {left} messages to go on {', '.join(topics)}, and what it has not written cannot be"
                f" judged. Does it run? `slowjobs status` says so, `journalctl -u {persister}` what it waits for"
            )
        waiting(persister, left)
        time.sleep(_LOOK_SECONDS)
        now = _complete(kafka.reach(client, topics))


def _left(first: dict[str, list[kafka.Reach]], now: dict[str, list[kafka.Reach]]) -> int:
    """Return how many of the messages that were there at first are not committed now."""
    return sum(
        max(0, before.end - after.next)
        for topic, partitions in first.items()
        # A partition that was added since holds nothing from before.
        for before, after in zip(partitions, now[topic], strict=False)
    )


def _complete(reaches: Mapping[str, list[kafka.Reach] | None]) -> dict[str, list[kafka.Reach]]:
    complete = {}
    for topic, partitions in reaches.items():
        if partitions is None:
            raise ConnectionError(f"kafka: topic {topic} is missing: run `slowjobs setup`")
        complete[topic] = partitions
    return complete
