"""The lanes on one nsqd host: of each its topic and its pool's channel, which both have to be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slowjobs import nsq

if TYPE_CHECKING:
    from collections.abc import Iterable

    import aiohttp

    from slowjobs import settings


#: seconds; an nsqd that does not answer by then is not waited for by commands that have more to do.
ANSWER_SECONDS = 3.0


class MissingError(ConnectionError):
    """nsqd does not have a lane. Nobody knows what became of its requests: it counts neither as empty nor as idle."""


@dataclass(frozen=True)
class Lane:
    """One lane's figures on one host; other channels of its topic do not count."""

    name: str
    host: str
    #: of nsqd, in seconds since 1970.
    start_time: int
    topic: nsq.Topic
    channel: nsq.Channel
    #: the configuration has it no more.
    left: bool = False

    @property
    def waiting(self) -> int:
        """Requests that no worker has and that are not deferred."""
        return self.topic.depth + self.channel.depth

    @property
    def outstanding(self) -> int:
        """Requests that nsqd still owes: waiting, in flight and deferred."""
        return self.topic.outstanding(self.channel.name)


async def read(
    session: aiohttp.ClientSession, config: settings.CliSettings, host: str, names: Iterable[str]
) -> list[Lane]:
    """Return the lanes ``names`` on ``host``, from one reading. Raises MissingError, or another one of nsq.ERRORS."""
    stats = await nsq.Api(session, config.nsqd.hosts[host].http_address).stats()
    found, missing = [], []
    for name in names:
        pool, topic = config.lanes[name].pool, stats.topics.get(name)
        channel = topic.channel(pool) if topic else None
        if topic and channel:
            found.append(Lane(name, host, stats.start_time, topic, channel))
        else:
            missing.append(f"{name}/{pool}")
    if missing:
        raise MissingError(f"channels that are missing: {', '.join(missing)}; run `slowjobs setup`")
    return found


async def read_left(session: aiohttp.ClientSession, config: settings.CliSettings, host: str) -> list[Lane]:
    """Return what ``host`` has in flight of lanes that are configured no more, or of another pool. Raises nsq.ERRORS.

    An ephemeral channel is somebody's who looks on.
    """
    stats = await nsq.Api(session, config.nsqd.hosts[host].http_address).stats()
    return [
        Lane(topic.name, host, stats.start_time, topic, channel, left=True)
        for topic in stats.topics.values()
        for channel in topic.channels
        if channel.in_flight
        and not channel.name.endswith("#ephemeral")
        and not (topic.name in config.lanes and config.lanes[topic.name].pool == channel.name)
    ]
