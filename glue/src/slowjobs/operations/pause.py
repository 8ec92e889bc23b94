"""``slowjobs pause`` and ``unpause``: lanes on every serving nsqd host, and what waits of them in workers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slowjobs import errors, nsq
from slowjobs.operations import lanes, state_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

    from slowjobs import settings


@dataclass(frozen=True)
class Setting:
    """A lane on one nsqd host that is as was asked for. ``changed``: it was not so before."""

    lane: str
    host: str
    changed: bool


@dataclass(frozen=True)
class Release:
    """What a worker gave back: so many requests, or None if it is stopped."""

    worker: settings.Service
    requests: int | None


@dataclass(frozen=True)
class Report:
    """What was done, and a failure for each lane on a host, and each worker, where it was not: all are tried."""

    settings: list[Setting]
    releases: list[Release]
    failures: list[str]


async def pause(config: settings.CliSettings, names: Sequence[str]) -> Report:
    """Have no request of the lanes ``names`` begin any more; what runs goes on.

    First nsqd delivers nothing more, then every worker gives back what it has and has not begun.
    """
    failures: list[str] = []
    async with nsq.session() as session:
        done = await _set_everywhere(session, config, names, failures, paused=True)
        telling = {}
        for worker in config.services:
            if its := [name for name in names if config.lanes[name].pool == worker.pool]:
                telling[f"{worker.name} on {worker.host}"] = _release(session, worker, its)
        releases = await errors.try_all(telling, failures)
    return Report(done, releases, failures)


async def unpause(config: settings.CliSettings, names: Sequence[str]) -> Report:
    """Let requests of the lanes ``names`` begin again, whoever paused them."""
    failures: list[str] = []
    async with nsq.session() as session:
        done = await _set_everywhere(session, config, names, failures, paused=False)
    return Report(done, [], failures)


async def _set_everywhere(
    session: aiohttp.ClientSession,
    config: settings.CliSettings,
    names: Sequence[str],
    failures: list[str],
    *,
    paused: bool,
) -> list[Setting]:
    setting = {
        f"{name} on {host}": _set(session, config, name, host, paused=paused)
        for name in names
        for host in config.nsqd.serving
    }
    return await errors.try_all(setting, failures)


async def _set(
    session: aiohttp.ClientSession, config: settings.CliSettings, name: str, host: str, *, paused: bool
) -> Setting:
    # Workers are told after all hosts: one that is gone must not hold up what the others have stopped.
    async with asyncio.timeout(lanes.ANSWER_SECONDS):
        [lane] = await lanes.read(session, config, host, [name])
    api = nsq.Api(session, config.nsqd.hosts[host].http_address)
    # The channel first: it is what stops workers.
    if lane.channel.paused != paused:
        await api.set_paused(name, lane.channel.name, paused=paused)
    if lane.topic.paused != paused:
        await api.set_paused(name, paused=paused)
    return Setting(name, host, changed=not (lane.channel.paused == lane.topic.paused == paused))


async def _release(session: aiohttp.ClientSession, worker: settings.Service, names: Sequence[str]) -> Release:
    try:
        return Release(worker, await state_port.release(session, worker, names))
    except state_port.StoppedError:
        return Release(worker, None)
