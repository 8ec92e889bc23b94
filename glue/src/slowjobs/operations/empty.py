"""``slowjobs empty``: how much there is of some lanes, and the bridge asked to discard it all."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from slowjobs import errors, nsq
from slowjobs.operations import idle, lanes, progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from slowjobs import settings


@dataclass(frozen=True)
class Count:
    """What there is of a lane, in requests: ``on_kafka`` those that NSQ was not given, then what NSQ has."""

    lane: str
    on_kafka: int
    waiting: int
    deferred: int
    in_flight: int


@dataclass(frozen=True)
class Report:
    """``lane -> how many requests were discarded``, and failures: all lanes are tried, and unpaused afterwards."""

    discarded: dict[str, int]
    failures: list[str]


async def count(config: settings.CliSettings, secrets: settings.Credentials, names: Sequence[str]) -> list[Count]:
    """Count the lanes ``names``. Raises an error of errors.SERVER_ERRORS, or documents.UnknownVersionError."""
    topics = [config.kafka_topic(name) for name in names]
    reaches = await asyncio.to_thread(progress.reach, config, secrets, topics)
    async with nsq.session() as session:
        hosts = [await lanes.read(session, config, host, names) for host in config.nsqd.serving]
    return [
        Count(
            name,
            on_kafka=sum(progress.Progress.of(each).unpublished for each in reaches[topic] or ()),
            waiting=sum(lane.waiting for lane in on_hosts),
            deferred=sum(lane.channel.deferred for lane in on_hosts),
            in_flight=sum(lane.channel.in_flight for lane in on_hosts),
        )
        for name, topic, on_hosts in zip(names, topics, zip(*hosts, strict=True), strict=True)
    ]


async def empty(config: settings.CliSettings, names: Sequence[str]) -> Report:
    """Have the bridge discard all of the lanes ``names`` that is on Kafka and on NSQ up to now."""
    failures: list[str] = []
    discarded = await errors.try_all({name: _empty(config, name, failures) for name in names}, failures)
    return Report(dict(discarded), failures)


async def _empty(config: settings.CliSettings, name: str, failures: list[str]) -> tuple[str, int]:
    async with _standing_still(config, name, failures):
        reading = await idle.read(config, [name])
        if not reading.idle:
            raise ConnectionError(f"it is not idle: {reading}")
        return name, await _ask_bridge(config.bridge_socket, name)


@contextlib.asynccontextmanager
async def _standing_still(config: settings.CliSettings, name: str, failures: list[str]) -> AsyncIterator[None]:
    """Pause a lane for a while on the hosts where it is not: nothing of it begins meanwhile.

    Where it may stay paused because nsqd does not answer any more is in ``failures``. Who is interrupted leaves it
    paused: the bridge goes on, and what began now would be discarded while it runs.
    """
    async with nsq.session() as session:
        found = [lane for host in config.nsqd.serving for lane in await lanes.read(session, config, host, [name])]
        paused = []
        interrupted = False
        try:
            for lane in found:
                if not lane.channel.paused:
                    paused.append(lane)
                    await _set_paused(session, config, lane, paused=True)
            yield
        except asyncio.CancelledError:
            interrupted = True
            raise
        finally:
            if not interrupted:
                unpausing = {
                    f"{name} on {lane.host} may still be paused, until `slowjobs unpause {name}`": _set_paused(
                        session, config, lane, paused=False
                    )
                    for lane in paused
                }
                await errors.try_all(unpausing, failures)


async def _set_paused(
    session: aiohttp.ClientSession, config: settings.CliSettings, lane: lanes.Lane, *, paused: bool
) -> None:
    api = nsq.Api(session, config.nsqd.hosts[lane.host].http_address)
    await api.set_paused(lane.name, lane.channel.name, paused=paused)


async def _ask_bridge(path: Path, name: str) -> int:
    """Return how many requests the bridge has discarded; waits for as long as it takes."""
    connector, without_limit = aiohttp.UnixConnector(str(path)), aiohttp.ClientTimeout(total=None)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=without_limit) as session,
            session.post(f"http://bridge/lanes/{name}/discard") as response,
        ):
            if not response.ok:
                raise ConnectionError(f"the bridge answers {response.status}: {await response.text()}")
            return int((await response.json())["discarded"])
    except aiohttp.ClientConnectorError as error:
        raise ConnectionError(f"the bridge cannot be asked on {path}: {error.os_error.strerror}") from None
    except aiohttp.ClientError:
        raise ConnectionError("the bridge ended meanwhile: what it has told stays discarded, run this again") from None
