"""``slowjobs check``: proves every connection of the site, and that its clocks agree, one line each."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import aiohttp

from slowjobs import errors, kafka, nsq, postgres
from slowjobs.operations import setup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from slowjobs import settings

#: seconds; the ledger compares times of nsqd's, workers' and its own, and assumes that they are no further apart.
_CLOCK_SECONDS = 5.0
#: seconds; the later an answer comes, the less it says of a clock.
_ANSWER = aiohttp.ClientTimeout(total=2)


@dataclass(frozen=True)
class Finding:
    """What was asked of a server, and its answer."""

    subject: str
    ok: bool
    answer: str

    def as_json(self) -> dict[str, object]:
        """Return its members."""
        return asdict(self)


async def check(config: settings.CliSettings, secrets: settings.Credentials) -> list[Finding]:
    """Ask each server, and whether everything that ``setup`` makes is there."""
    connections = [
        await _ask("Kafka", asyncio.to_thread(_kafka, config, secrets)),
        *[await _ask(f"nsqd {host}", _nsqd(config, host)) for host in config.nsqd.serving],
        await _ask("PostgreSQL", asyncio.to_thread(_postgresql, config, secrets)),
    ]
    clocks = await _ask("clocks", _clocks(config))
    if not all(finding.ok for finding in connections):
        return [*connections, clocks]
    return [*connections, clocks, await _ask("setup", _complete(config, secrets))]


async def _ask(subject: str, question: Awaitable[str]) -> Finding:
    try:
        return Finding(subject, True, await question)
    except errors.SERVER_ERRORS as error:
        return Finding(subject, False, errors.text(error))


def _kafka(config: settings.CliSettings, secrets: settings.Credentials) -> str:
    metadata = kafka.admin(config.kafka, secrets).list_topics(timeout=kafka.TIMEOUT_SECONDS)
    return f"{len(metadata.brokers)} broker(s), {len(metadata.topics)} topics"


async def _nsqd(config: settings.CliSettings, host: str) -> str:
    addresses = config.nsqd.hosts[host]
    async with nsq.session() as session:
        stats = await nsq.Api(session, addresses.http_address).stats()
    publisher = nsq.Publisher(addresses.tcp_address, client_id="slowjobs-check")
    await publisher.connect()
    publisher.close()
    return f"nsqd {stats.version}, {'healthy' if stats.healthy else 'its last write failed'}"


def _postgresql(config: settings.CliSettings, secrets: settings.Credentials) -> str:
    with (
        contextlib.closing(postgres.connect(config.postgresql, secrets, service="check")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SHOW server_version")
        (version,) = cursor.fetchone() or ("?",)
        return f"version {version}"


async def _clocks(config: settings.CliSettings) -> str:
    """Compare the clocks of all hosts that answer with the one here. Raises ConnectionError if one is too far off."""
    ports = {(host, f"{config.nsqd.hosts[host].http_address}/ping") for host in config.nsqd.serving}
    ports |= {(service.host, f"{service.state_address}/state") for service in config.services}
    async with nsq.session() as session:
        answers = await asyncio.gather(*(_ahead(session, url) for _, url in ports))
    ahead = {host: seconds for (host, _), seconds in zip(ports, answers, strict=True) if seconds is not None}
    if max([0.0, *ahead.values()]) - min([0.0, *ahead.values()]) > _CLOCK_SECONDS:
        raise ConnectionError(
            f"{_apart(ahead)}; the ledger needs at most {_CLOCK_SECONDS:g} s: see that each host keeps the time"
            " (timedatectl says so)"
        )
    silent = sorted({host for host, _ in ports} - set(ahead))
    return f"those of {len(ahead)} hosts agree" + (f"; no answer from {', '.join(silent)}" if silent else "")


async def _ahead(session: aiohttp.ClientSession, url: str) -> float | None:
    """Return how far a server's clock is ahead of ours, in seconds give or take one; None for one that does not say."""
    asked = time.time()
    try:
        async with session.get(f"http://{url}", timeout=_ANSWER) as response:
            said = email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (*nsq.ERRORS, KeyError, ValueError):
        return None
    # It says whole seconds.
    return said + 0.5 - (asked + time.time()) / 2


def _apart(ahead: Mapping[str, float]) -> str:
    # At least one is half of it away from here.
    apart = {host: seconds for host, seconds in sorted(ahead.items()) if abs(seconds) > _CLOCK_SECONDS / 2}
    return ", ".join(
        f"{host} is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} this host"
        for host, seconds in apart.items()
    )


async def _complete(config: settings.CliSettings, secrets: settings.Credentials) -> str:
    items, failures = await setup.setup(config, secrets, only_check=True)
    if failures:
        raise ConnectionError("; ".join(failures))
    missing = [f"{item.what} {item.name}" for item in items if item.state == "missing"]
    if missing:
        raise ConnectionError(f"missing: {', '.join(missing)}; run `slowjobs setup`")
    return f"{len(items)} topics, channels, tables and indexes are there"
