"""``slowjobs setup``: makes what is missing in Kafka, NSQ and PostgreSQL, and says what it made."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import confluent_kafka
from confluent_kafka.cimpl import NewTopic

from slowjobs import errors, kafka, nsq, postgres, schema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slowjobs import settings

#: of request and result topics; dead letters have one, so that an offset is an id, and events, for their order.
_PARTITIONS = 6
_DAY_MILLISECONDS = 24 * 3600 * 1000
_RETENTION_MILLISECONDS = 91 * _DAY_MILLISECONDS
_EVENTS_RETENTION_MILLISECONDS = 7 * _DAY_MILLISECONDS

State = Literal["present", "missing", "made"]


@dataclass(frozen=True)
class Item:
    """One thing that has to be there. ``where``: the server that holds it."""

    what: Literal["topic", "channel", "table", "index"]
    name: str
    where: str
    state: State

    def as_json(self) -> dict[str, str]:
        """Return its members."""
        return asdict(self)


async def setup(
    config: settings.CliSettings, secrets: settings.Credentials, *, only_check: bool
) -> tuple[list[Item], list[str]]:
    """Make what is missing, or only say so. What is there stays as it is.

    Returns the things, and an error for each server that does not answer or refuses: the others are set up all the
    same.
    """
    items: list[Item] = []
    failures: list[str] = []
    parts: dict[str, Awaitable[list[Item]]] = {
        "Kafka": asyncio.to_thread(_kafka_topics, config, secrets, only_check),
        **{f"nsqd {host}": _nsq_channels(config, host, only_check) for host in config.nsqd.serving},
        "PostgreSQL": asyncio.to_thread(_database, config, secrets, only_check, failures),
    }
    for server, part in parts.items():
        try:
            items += await part
        except errors.SERVER_ERRORS as error:
            failures.append(f"{server}: {errors.text(error)}")
    return items, failures


def _kafka_topics(config: settings.CliSettings, secrets: settings.Credentials, only_check: bool) -> list[Item]:
    wanted = _wanted_topics(config)
    client = kafka.admin(config.kafka, secrets)
    there = set(client.list_topics(timeout=kafka.TIMEOUT_SECONDS).topics)
    missing = [topic for name, topic in wanted.items() if name not in there]
    if missing and not only_check:
        for name, made in client.create_topics(missing, operation_timeout=kafka.TIMEOUT_SECONDS).items():
            try:
                made.result(timeout=kafka.TIMEOUT_SECONDS)
            except confluent_kafka.KafkaException as error:
                if error.args[0].code() != confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                there.add(name)  # somebody else made it just now
    return [Item("topic", name, "kafka", _state(name in there, only_check)) for name in wanted]


def _wanted_topics(config: settings.CliSettings) -> dict[str, NewTopic]:
    large = {"max.message.bytes": kafka.MAX_MESSAGE_BYTES}
    topics = [_topic(config, name, _PARTITIONS, {}) for name in config.lane_of_topic]
    topics += [_topic(config, pool.result_topic, _PARTITIONS, large) for pool in config.pools.values()]
    topics.append(_topic(config, kafka.DEAD_LETTERS, 1, large))
    topics.append(_topic(config, kafka.EVENTS, 1, {"retention.ms": _EVENTS_RETENTION_MILLISECONDS}))
    return {topic.topic: topic for topic in topics}


def _topic(config: settings.CliSettings, name: str, partitions: int, ours: dict[str, int]) -> NewTopic:
    merged = {"retention.ms": _RETENTION_MILLISECONDS, **ours, **config.kafka.topic_config}
    # No replication factor: the cluster's own default.
    return NewTopic(name, partitions, config={key: str(value) for key, value in merged.items()})


async def _nsq_channels(config: settings.CliSettings, host: str, only_check: bool) -> list[Item]:
    items = []
    async with nsq.session() as session:
        api = nsq.Api(session, config.nsqd.hosts[host].http_address)
        topics = (await api.stats()).topics
        for name, lane in config.lanes.items():
            there = name in topics and any(channel.name == lane.pool for channel in topics[name].channels)
            if not there and not only_check:
                await api.create_topic(name)
                await api.create_channel(name, lane.pool)
            items.append(Item("channel", f"{name}/{lane.pool}", f"nsqd {host}", _state(there, only_check)))
    return items


def _database(
    config: settings.CliSettings, secrets: settings.Credentials, only_check: bool, failures: list[str]
) -> list[Item]:
    """Return tables and indexes. What our role may not make joins ``failures``; all else is made all the same."""
    items = []
    names = schema.tables(kind.type for kind in config.kinds.values())
    with contextlib.closing(postgres.connect(config.postgresql, secrets, service="setup")) as connection:
        connection.autocommit = True
        missing = schema.missing_tables(connection, names)
        for table in names:
            state = _state(table not in missing, only_check)
            if state == "made":
                state = _make(partial(schema.make_table, connection, table), failures)
            items.append(Item("table", table, "postgresql", state))
            mistakes = schema.table_mistakes(connection, table) if state != "missing" else []
            failures += [f"PostgreSQL: {mistake}" for mistake in mistakes]
            if state == "missing" or mistakes:
                continue
            for index, there in schema.indexes(connection, table).items():
                state = _state(there, only_check)
                if state == "made":
                    state = _make(partial(schema.make_index, connection, table, index), failures)
                items.append(Item("index", index, "postgresql", state))
    return items


def _make(make: Callable[[], None], failures: list[str]) -> State:
    try:
        make()
    except schema.NotAllowedError as error:
        failures.append(f"PostgreSQL: {error}")
        return "missing"
    return "made"


def _state(there: bool, only_check: bool) -> State:
    return "present" if there else "missing" if only_check else "made"
