"""``slowjobs gate``: one figure of the running system at a time, for plays that wait until it is as it should be.

Errors are those of errors.SERVER_ERRORS; what cannot be read is never a figure.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slowjobs import errors, nsq, postgres
from slowjobs.operations import lanes, progress, state_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

    from slowjobs import settings

#: readings that have to find a host empty, and the seconds between two: a message on its way can be in none of them.
READINGS = 3
READING_SECONDS = 2.0


@dataclass(frozen=True)
class Figure:
    """The figure, and the members of its JSON document that say where it comes from."""

    value: int | str
    details: dict[str, Any]


class RestartedError(ConnectionError):
    """nsqd began anew between two readings: its counters cannot be compared."""


async def empty(config: settings.CliSettings, host: str) -> Figure:
    """Count what ``host`` still owes of all lanes: waiting, in flight and deferred.

    0 only if READINGS readings in a row found nothing, and nothing was published between them.
    """
    async with nsq.session() as session:
        first = last = await lanes.read(session, config, host, config.lanes)
        for _ in range(READINGS - 1):
            if any(lane.outstanding for lane in last):
                break
            await asyncio.sleep(READING_SECONDS)
            last = await lanes.read(session, config, host, config.lanes)
    published = _published(first, last)
    details = {
        lane.name: {
            "waiting": lane.waiting,
            "in_flight": lane.channel.in_flight,
            "deferred": lane.channel.deferred,
            "published": published[lane.name],
            "paused": lane.channel.paused,
        }
        for lane in last
    }
    figure = sum(max(lane.outstanding, published[lane.name]) for lane in last)
    return Figure(figure, {"host": host, "lanes": details})


def unfinished(config: settings.CliSettings, secrets: settings.Credentials, host: str) -> Figure:
    """Count the requests that the bridge gave to ``host`` and that are not done, by its commits.

    What nsqd says after an unclean start is a guess; and it says nothing when it is gone.
    """
    figures = {}
    for topic, partitions in progress.reach(config, secrets, config.lane_of_topic).items():
        known = [progress.Progress.of(partition) for partition in partitions or ()]
        # Where the list had become too long nobody knows the host.
        figures[config.lane_of_topic[topic]] = sum(
            list(each.undone.values()).count(host) + each.mark - each.listed for each in known
        )
    return _sum(host, figures)


async def clients(config: settings.CliSettings, host: str) -> Figure:
    """Count the connections of workers to the channels of all lanes on ``host``."""
    async with nsq.session() as session:
        found = await lanes.read(session, config, host, config.lanes)
    return _sum(host, {lane.name: lane.channel.clients for lane in found})


async def arriving(config: settings.CliSettings, host: str, seconds: float) -> Figure:
    """Count what is published to all lanes on ``host`` in so many seconds.

    ``publishers``: the client ids of those who may have published it, but for those that do it over HTTP.
    """
    async with nsq.session() as session:
        before = await lanes.read(session, config, host, config.lanes)
        await asyncio.sleep(seconds)
        after = await lanes.read(session, config, host, config.lanes)
        publishers = await nsq.Api(session, config.nsqd.hosts[host].http_address).publishers()
    figure = _sum(host, _published(before, after))
    return Figure(figure.value, {**figure.details, "publishers": sorted(publishers)})


async def publishing(bridge: settings.Service) -> Figure:
    """Return the nsqd host that the bridge gives new requests to."""
    return await _said(bridge, "publishes_to")


async def config(service: settings.Service) -> Figure:
    """Return the SHA-256 of the configuration file that is in force at a service."""
    return await _said(service, "config")


async def writers(config: settings.CliSettings, secrets: settings.Credentials) -> Figure:
    """Count who of ours may write to PostgreSQL: persisters that run, and sessions but for the one that asks.

    Neither knows alone: a persister that has nothing to write need not be connected, and a program that is no service
    has no state port. A persister counts twice while it is connected.
    """
    sessions, persisters = await asyncio.gather(asyncio.to_thread(_sessions, config, secrets), _persisters(config))
    return Figure(len(sessions) + len(persisters), {"sessions": sessions, "persisters": persisters})


def _sessions(config: settings.CliSettings, secrets: settings.Credentials) -> list[dict[str, Any]]:
    with (
        contextlib.closing(postgres.connect(config.postgresql, secrets, service="gate")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(postgres.statement("sessions"))
        members = [column.name for column in cursor.description or ()]
        return [dict(zip(members, row, strict=True)) for row in cursor]


async def _persisters(config: settings.CliSettings) -> list[str]:
    """Return those that do not say, by a closed port, that they are stopped."""
    failures: list[str] = []
    async with nsq.session() as session:
        asking = {
            f"{service.name} on {service.host}": _runs(session, service)
            for service in config.services
            if service.name.startswith("slowjobs-persister@")
        }
        running = await errors.try_all(asking, failures)
    if failures:
        raise ConnectionError("; ".join(failures))
    return [persister for persister, runs in zip(asking, running, strict=True) if runs]


async def _runs(session: aiohttp.ClientSession, service: settings.Service) -> bool:
    try:
        await state_port.read(session, service)
    except state_port.StoppedError:
        return False
    return True


async def _said(service: settings.Service, member: str) -> Figure:
    async with nsq.session() as session:
        said = await state_port.read(session, service)
    return Figure(said[member], {"service": service.name, "host": service.host})


def _published(before: Sequence[lanes.Lane], after: Sequence[lanes.Lane]) -> dict[str, int]:
    """Return ``lane -> messages`` that were published between two readings of a host. Raises RestartedError."""
    pairs = list(zip(before, after, strict=True))
    if any(earlier.start_time != later.start_time for earlier, later in pairs):
        raise RestartedError("nsqd was restarted between two readings")
    return {later.name: later.topic.message_count - earlier.topic.message_count for earlier, later in pairs}


def _sum(host: str, figures: dict[str, int]) -> Figure:
    return Figure(sum(figures.values()), {"host": host, "lanes": figures})
