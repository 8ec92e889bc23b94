"""``slowjobs status``: one picture of lanes, nsqd hosts, workers and services, however much of it answers."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import aiohttp
import confluent_kafka
from rich import table

from slowjobs import documents, errors, kafka, nsq
from slowjobs.bridge import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slowjobs import settings

#: seconds; a service that does not answer by then is reported as unreachable.
_STATE_TIMEOUT_SECONDS = 3.0

Document = dict[str, Any]


async def read(config: settings.CliSettings, secrets: settings.Credentials) -> Document:
    """Return the status document (design, "Interfaces"); what does not answer is named in its ``errors``."""
    failures: list[str] = []
    async with nsq.session() as session:
        unpublished, hosts, services = await asyncio.gather(
            _unpublished(config, secrets, failures),
            asyncio.gather(*(_nsqd(session, config, host, failures) for host in config.nsqd.hosts)),
            asyncio.gather(*(_state(session, service, failures) for service in config.services)),
        )
    serving = [host for host in hosts if host["state"] != "spare"]
    return {
        "v": documents.VERSION,
        "lanes": [_lane(config, name, unpublished, serving) for name in config.lanes],
        "nsqd": list(hosts),
        "workers": [_worker(service, said) for service, said in services if service.pool],
        "services": [_service(service, said) for service, said in services if not service.pool],
        "errors": sorted(failures),
    }


async def _unpublished(
    config: settings.CliSettings, secrets: settings.Credentials, failures: list[str]
) -> dict[str, int | None]:
    topics = list(config.lane_of_topic)
    try:
        lags = await asyncio.to_thread(kafka.lag, config.kafka, secrets, group=bridge.GROUP, topics=topics)
    except confluent_kafka.KafkaException as error:
        failures.append(f"kafka: {errors.text(error)}")
        return {}
    failures.extend(
        f"kafka: topic {topic} is missing: run `slowjobs setup`" for topic, lag in lags.items() if lag is None
    )
    return lags


async def _nsqd(
    session: aiohttp.ClientSession, config: settings.CliSettings, host: str, failures: list[str]
) -> Document:
    state = "active" if host == config.nsqd.active else "draining" if host in config.nsqd.draining else "spare"
    about: Document = {"host": host, "state": state}
    try:
        stats = await nsq.Api(session, config.nsqd.hosts[host].http_address).stats()
    except nsq.ERRORS as error:
        if state != "spare":  # a spare is stopped until it is needed
            failures.append(f"nsqd {host}: {errors.text(error)}")
        nothing: Document = {"reachable": False, "healthy": None, "version": None, "start_time": None, "topics": []}
        return {**about, **nothing}
    if state != "spare":
        failures.extend(f"nsqd {host}: {trouble}" for trouble in _troubles(config, stats))
    return {
        **about,
        "reachable": True,
        "healthy": stats.healthy,
        "version": stats.version,
        "start_time": stats.start_time,
        "topics": [
            {
                "name": topic.name,
                "paused": topic.paused,
                "depth": topic.depth,
                "channels": [asdict(channel) for channel in topic.channels],
            }
            for topic in stats.topics.values()
        ],
    }


def _troubles(config: settings.CliSettings, stats: nsq.Stats) -> Iterator[str]:
    """Yield what is not as the lanes want it: without its channel a lane would look empty, another's gets copies."""
    for name, lane in config.lanes.items():
        channels = {channel.name for channel in stats.topics[name].channels} if name in stats.topics else set()
        if lane.pool not in channels:
            yield f"channel {name}/{lane.pool} is missing: run `slowjobs setup`"
        for channel in sorted(channels - {lane.pool}):
            yield f"channel {name}/{channel} is not ours: it gets a copy of every request"


async def _state(
    session: aiohttp.ClientSession, service: settings.Service, failures: list[str]
) -> tuple[settings.Service, Document | None]:
    timeout = aiohttp.ClientTimeout(total=_STATE_TIMEOUT_SECONDS)
    try:
        async with session.get(f"http://{service.state_address}/state", timeout=timeout) as response:
            response.raise_for_status()
            said = await response.json()
    except (*nsq.ERRORS, ValueError) as error:
        failures.append(f"{service.name} on {service.host}: {errors.text(error)}")
        return service, None
    if not isinstance(said, dict) or said.get("v") != documents.VERSION or said.get("service") != service.name:
        failures.append(f"{service.name} on {service.host}: something else, or another version, answers on its port")
        return service, None
    return service, said


def _lane(config: settings.CliSettings, name: str, lags: dict[str, int | None], serving: list[Document]) -> Document:
    lane, topic = config.lanes[name], config.kafka_topic(name)
    figures = [t for host in serving for t in host["topics"] if t["name"] == name]
    channels = [channel for t in figures for channel in t["channels"] if channel["name"] == lane.pool]
    known = all(host["reachable"] for host in serving)
    waiting = sum(t["depth"] for t in figures) + sum(channel["depth"] for channel in channels) if known else None
    in_flight = sum(channel["in_flight"] for channel in channels) if known else None
    deferred = sum(channel["deferred"] for channel in channels) if known else None
    outstanding = _sum(waiting, in_flight, deferred)
    unpublished = lags.get(topic)
    return {
        "name": name,
        "kafka_topic": topic,
        "nsq_topic": name,
        "unfinished": _sum(unpublished, outstanding),
        "unpublished": unpublished,
        "outstanding": outstanding,
        "waiting": waiting,
        "in_flight": in_flight,
        "deferred": deferred,
        "max_outstanding": lane.max_outstanding,
        "paused": any(channel["paused"] for channel in channels) if known else None,
        "missing": None,
        "missing_since": None,
        "unaccounted": None,
        "holding": None,
        "oldest_seconds": None,
    }


def _sum(*figures: int | None) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None


def _worker(service: settings.Service, said: Document | None) -> Document:
    about: Document = {"host": service.host, "pool": service.pool, "reachable": said is not None}
    if said is None:
        return {**about, **dict.fromkeys(("slots", "running", "parked", "draining", "config")), "nsqd": []}
    return {
        **about,
        "slots": said["slots"],
        "running": len(said["running"]),
        "parked": len(said["parked"]),
        "draining": said["draining"],
        "config": said["config"],
        "nsqd": said["nsqd"],
    }


def _service(service: settings.Service, said: Document | None) -> Document:
    said = said or {}
    return {
        "name": service.name,
        "host": service.host,
        "reachable": bool(said),
        "config": said.get("config"),
        "publishes_to": said.get("publishes_to"),
    }


def tables(status: Document) -> list[table.Table]:
    """Return the document as tables for a terminal."""
    return [_lane_table(status), _nsqd_table(status), _process_table(status)]


def _table(title: str, *columns: str) -> table.Table:
    """Return an empty table; a column's star says that it holds figures, which are never cut."""
    made = table.Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    made.padding = (0, 1, 0, 0)
    for column in columns:
        name = column.removesuffix("*")
        made.add_column(name, justify="left" if name == column else "right", no_wrap=True, min_width=len(name))
    return made


def _cell(value: object) -> str:
    if value is None:
        return "?"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _lane_table(status: Document) -> table.Table:
    made = _table(
        "Lanes",
        "lane",
        "unfinished*",
        "Kafka*",
        "waiting*",
        "in flight*",
        "deferred*",
        "NSQ/cap*",
        "paused",
    )
    names = ("name", "unfinished", "unpublished", "waiting", "in_flight", "deferred")
    for lane in status["lanes"]:
        figures = [_cell(lane[name]) for name in names]
        made.add_row(*figures, f"{_cell(lane['outstanding'])}/{lane['max_outstanding']}", _cell(lane["paused"]))
    return made


def _nsqd_table(status: Document) -> table.Table:
    made = _table("nsqd", "host", "state", "answers", "healthy", "version", "workers connected*")
    for host in status["nsqd"]:
        clients = sum(channel["clients"] for topic in host["topics"] for channel in topic["channels"])
        stopped_spare = host["state"] == "spare" and not host["reachable"]
        answers = "stopped" if stopped_spare else _cell(host["reachable"])
        figures = ("-", "-", "-") if stopped_spare else (_cell(host["healthy"]), _cell(host["version"]), str(clients))
        made.add_row(host["host"], host["state"], answers, *figures)
    return made


def _process_table(status: Document) -> table.Table:
    made = _table("Services", "service", "host", "answers", "running*", "note")
    for service in status["services"]:
        note = f"publishes to {service['publishes_to']}" if service["publishes_to"] else ""
        made.add_row(service["name"], service["host"], _cell(service["reachable"]), "", note)
    for worker in status["workers"]:
        note = "draining" if worker["draining"] else f"takes from {', '.join(worker['nsqd']) or 'nobody'}"
        note += f", {worker['parked']} parked" if worker["parked"] else ""
        running = f"{_cell(worker['running'])}/{_cell(worker['slots'])}"
        name = f"slowjobs-worker@{worker['pool']}"
        made.add_row(name, worker["host"], _cell(worker["reachable"]), running, note if worker["reachable"] else "")
    return made
