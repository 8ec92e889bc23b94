"""``slowjobs status``: one picture of lanes, nsqd hosts, workers and services, however much of it answers."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any

import confluent_kafka
from rich import table, text

from slowjobs import documents, errors, nsq
from slowjobs.operations import progress, state_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import aiohttp
    import rich.console

    from slowjobs import settings

#: what is told of a channel.
_SHOWN = ("name", "paused", "depth", "in_flight", "deferred", "clients")
#: what the bridge alone knows of a lane.
_FROM_BRIDGE = ("missing", "missing_since", "unaccounted", "holding", "oldest_seconds")
#: seconds; as a time is typed.
_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}

Document = dict[str, Any]
#: Kafka topic -> how far the bridge is in each partition; without those of which that is not known.
_Progress = dict[str, list[progress.Progress]]


async def read(config: settings.CliSettings, secrets: settings.Credentials) -> Document:
    """Return the status document (design, "Interfaces"); what does not answer is named in its ``errors``."""
    failures: list[str] = []
    async with nsq.session() as session:
        reached, hosts, services = await asyncio.gather(
            _progress(config, secrets, failures),
            asyncio.gather(*(_nsqd(session, config, host, failures) for host in config.nsqd.hosts)),
            asyncio.gather(*(_state(session, service, failures) for service in config.services)),
        )
    serving = [host for host in hosts if host["state"] != "spare"]
    said = [said for service, said in services if service.name == "slowjobs-bridge" and said]
    by_bridge = said[0]["lanes"] if said else {}
    return {
        "v": documents.VERSION,
        "lanes": [_lane(config, name, reached, serving, by_bridge.get(name, {})) for name in config.lanes],
        "nsqd": list(hosts),
        "workers": [_worker(service, said) for service, said in services if service.pool],
        "services": [_service(service, said) for service, said in services if not service.pool],
        "errors": sorted(failures),
    }


async def _progress(config: settings.CliSettings, secrets: settings.Credentials, failures: list[str]) -> _Progress:
    known: _Progress = {}
    try:
        reaches = await asyncio.to_thread(progress.reach, config, secrets, config.lane_of_topic)
    except confluent_kafka.KafkaException as error:
        failures.append(f"kafka: {errors.text(error)}")
        return known
    for topic, partitions in reaches.items():
        if partitions is None:
            failures.append(f"kafka: topic {topic} is missing: run `slowjobs setup`")
            continue
        try:
            known[topic] = [progress.Progress.of(partition) for partition in partitions]
        except documents.UnknownVersionError as error:
            failures.append(f"kafka: topic {topic}: {error}")
    return known


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
                "channels": [{name: getattr(channel, name) for name in _SHOWN} for channel in topic.channels],
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
    try:
        return service, await state_port.read(session, service)
    except nsq.ERRORS as error:
        failures.append(f"{service.name} on {service.host}: {errors.text(error)}")
        return service, None


def _lane(
    config: settings.CliSettings,
    name: str,
    reached: _Progress,
    serving: Sequence[Document],
    said: Mapping[str, Any],
) -> Document:
    """Return what is known of a lane; ``said``: what the bridge says of it."""
    lane, topic = config.lanes[name], config.kafka_topic(name)
    figures = [t for host in serving for t in host["topics"] if t["name"] == name]
    channels = [channel for t in figures for channel in t["channels"] if channel["name"] == lane.pool]
    known = all(host["reachable"] for host in serving)
    waiting = sum(t["depth"] for t in figures) + sum(channel["depth"] for channel in channels) if known else None
    in_flight = sum(channel["in_flight"] for channel in channels) if known else None
    deferred = sum(channel["deferred"] for channel in channels) if known else None
    held = _sum(waiting, in_flight, deferred)
    partitions = reached.get(topic)
    unpublished = None if partitions is None else sum(partition.unpublished for partition in partitions)
    undone = None if partitions is None else sum(partition.outstanding for partition in partitions)
    return {
        "name": name,
        "kafka_topic": topic,
        "nsq_topic": name,
        "unfinished": _sum(unpublished, undone),
        "unpublished": unpublished,
        # What NSQ has lost counts, and so does what a person published there.
        "outstanding": None if held is None or undone is None else max(held, undone),
        "waiting": waiting,
        "in_flight": in_flight,
        "deferred": deferred,
        "max_outstanding": lane.max_outstanding,
        "paused": any(channel["paused"] for channel in channels) if known else None,
        **{member: said.get(member) for member in _FROM_BRIDGE},
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
        "nsqd": said.get("nsqd", []),
    }


def picture(status: Document) -> list[rich.console.RenderableType]:
    """Return the document for a terminal: tables, and in words what lanes miss."""
    return [_lane_table(status), *map(text.Text, _missing(status)), _nsqd_table(status), _process_table(status)]


def _missing(status: Document) -> Iterator[str]:
    for lane in status["lanes"]:
        if lane["missing"] or lane["holding"]:
            since = f" since {_moment(lane['missing_since'])}" if lane["missing_since"] else ""
            holding = ", holding new ones" if lane["holding"] else ""
            yield f"{lane['missing']} missing on {lane['name']}{since}{holding}, {lane['unaccounted']} unaccounted"


def _moment(at: str) -> str:
    """Return a time of ours as clocks here show it, with its date unless that is today's."""
    moment, now = datetime.fromisoformat(at).astimezone(), datetime.now().astimezone()
    return f"{moment:%H:%M}" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M}"


def _age(seconds: float | None) -> str:
    """Return a time in the largest unit of which it has at least two; nothing for None."""
    if seconds is None:
        return ""
    unit = next((unit for unit, length in _UNITS.items() if seconds >= 2 * length), "s")
    return f"{seconds // _UNITS[unit]:.0f}{unit}"


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
        "oldest*",
        "paused",
    )
    names = ("name", "unfinished", "unpublished", "waiting", "in_flight", "deferred")
    for lane in status["lanes"]:
        figures = [_cell(lane[name]) for name in names]
        cap = f"{_cell(lane['outstanding'])}/{lane['max_outstanding']}"
        made.add_row(*figures, cap, _age(lane["oldest_seconds"]), _cell(lane["paused"]))
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
