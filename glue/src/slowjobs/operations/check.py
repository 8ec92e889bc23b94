"""``slowjobs check``: proves every connection of the site, one line each."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from slowjobs import errors, kafka, nsq, postgres
from slowjobs.operations import setup

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from slowjobs import settings


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
    if not all(finding.ok for finding in connections):
        return connections
    return [*connections, await _ask("setup", _complete(config, secrets))]


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


async def _complete(config: settings.CliSettings, secrets: settings.Credentials) -> str:
    items, failures = await setup.setup(config, secrets, only_check=True)
    if failures:
        raise ConnectionError("; ".join(failures))
    missing = [f"{item.what} {item.name}" for item in items if item.state == "missing"]
    if missing:
        raise ConnectionError(f"missing: {', '.join(missing)}; run `slowjobs setup`")
    return f"{len(items)} topics, channels, tables and indexes are there"
