"""The facts of the whole site: which worker host runs which pool, and what is wrong with an inventory."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: A pool's state port unless it names another.
STATE_PORT = 9310
#: seconds; the worker's own defaults.
TASK_TIMEOUT_SECONDS = 300
PARK_LIMIT_SECONDS = 1800
DELIVERY_MARGIN_SECONDS = 60
#: seconds; nsqd's --max-req-timeout is 15 min.
MAX_DELAY_SECONDS = 890
#: requests; the ledger's commit holds no more positions of one lane.
MAX_OUTSTANDING_LIMIT = 1250
#: The folder in a pool's own that holds its virtual environments.
ENVIRONMENTS = "environments"
DEAD_LETTERS_TOPIC = "slowjobs-dead-letters"

_NSQ_NAME = re.compile(r"[.a-zA-Z0-9_-]{1,64}")
_KAFKA_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_SECRET_PROPERTY = re.compile(r"password|secret|jaas|\.pem$", re.IGNORECASE)
_DSN_PASSWORD = re.compile(r"password\s*=|://[^/@\s]*:[^/@\s]*@")
_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
#: By name: neither one of pip's options nor a path or an address, which a host could not follow.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][^@/\n]*")
_PLACEHOLDER = re.compile(r"change.?me|replace.?me|placeholder|^(example|password|secret|x+|<.*>)$", re.IGNORECASE)

_KIND_MEMBERS = {"type", "key"}
_LANE_MEMBERS = {"kind", "pool", "kafka_topic", "weight", "max_outstanding", "safe_to_empty"}
_POOL_MEMBERS = {
    "handler", "packages", "files", "slots", "hosts", "max_concurrent", "state_port", "task_timeout_seconds",
    "drain_timeout_seconds", "park_limit_seconds", "max_attempts", "retry", "retry_statuses", "recycle", "result_topic",
    "persist_results",
}  # fmt: skip
_POLICY_MEMBERS = {
    "lane", "on_calendar", "window_days", "result_older_than_days", "statuses", "exclude_statuses", "limit",
    "cool_down_hours",
}  # fmt: skip
_PERSIST_RESULTS = ("full", "status", "none")
_HANDLER_MEMBERS = {"command", "python", "options", "preload"}
_RETRY_MEMBERS = {"base_seconds", "cap_seconds"}
_RECYCLE_MEMBERS = {"tasks", "megabytes"}
_FILE_MEMBERS = {"src", "dest"}
#: What else listens on a host, by group.
_PORTS = {
    "kafka": {9092: "Kafka", 9093: "Kafka's controller"},
    "postgresql": {5432: "PostgreSQL"},
    "nsqd": {4150: "nsqd", 4151: "nsqd's HTTP API"},
    "bridge": {8301: "the intake", 9301: "the bridge", 9304: "the intake's state"},
    "persister": {9302: "persister requests", 9303: "persister results"},
}
_OUR_GROUPS = ("kafka", "postgresql", "nsqd", "bridge", "persister", "worker")

Site = Mapping[str, Any]


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of(good: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(good, value))


Shape = tuple[Callable[[object], bool], str]
_MAPPING: Shape = (_is_mapping, "a mapping whose names are text")
_TEXT: Shape = (_is_text, "text")
_MAPPINGS: Shape = (_is_list_of(_is_mapping), "a list of mappings")
_NAMES: Shape = (_is_list_of(_is_text), "a list of names")
#: What the rules take apart, so it has to have that shape before they look at it.
_SHAPES: dict[str, dict[str, Shape]] = {
    "kinds": {},
    "pools": {
        "handler": _MAPPING,
        "packages": _NAMES,
        "files": _MAPPINGS,
        "hosts": _NAMES,
        "retry": _MAPPING,
        "retry_statuses": _NAMES,
        "recycle": _MAPPING,
    },
    "lanes": {"kind": _TEXT, "pool": _TEXT, "kafka_topic": _TEXT},
    "reenqueue_policies": {"lane": _TEXT, "statuses": _NAMES, "exclude_statuses": _NAMES},
}


def pool_instances(pools: Mapping[str, Any], hosts: Sequence[str]) -> list[dict[str, object]]:
    """Return one item for each pool and host that runs it."""
    return [
        {"pool": name, "host": host, "slots": pool.get("slots", 1), "state_port": pool.get("state_port", STATE_PORT)}
        for name, pool in sorted(pools.items())
        for host in pool.get("hosts", hosts)
    ]


def _task_seconds(pool: Mapping[str, Any]) -> float:
    return float(pool.get("task_timeout_seconds", TASK_TIMEOUT_SECONDS))


def longest_task_seconds(pools: Mapping[str, Any]) -> int:
    """Return the longest time that a request of any pool may run, in whole seconds."""
    return math.ceil(max(map(_task_seconds, pools.values()), default=0))


def pool_limits(pools: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Return what the bridge is told of each pool: how long a try lasts at most."""
    return {
        name: {"task_timeout_seconds": pool.get("task_timeout_seconds", TASK_TIMEOUT_SECONDS)}
        for name, pool in pools.items()
    }


def _delivery_seconds(pool: Mapping[str, Any]) -> float:
    park_limit = float(pool.get("park_limit_seconds", PARK_LIMIT_SECONDS))
    return 2 * _task_seconds(pool) + park_limit + DELIVERY_MARGIN_SECONDS


def longest_delivery_seconds(pools: Mapping[str, Any]) -> int:
    """Return how long nsqd may see one delivery of any pool, in whole seconds.

    Held, parked and running share one delivery, and a parked request may still run for its whole time limit.
    """
    return math.ceil(max(map(_delivery_seconds, pools.values()), default=0))


def _is_plain(value: object) -> bool:
    """Tell whether TOML has a form for it."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float)


def _list(names: object) -> str:
    return ", ".join(sorted(map(str, names))) or "none"  # type: ignore[call-overload]


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _whole(value: object, low: int, high: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _unknown_members(place: str, given: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for member in sorted(set(given) - known):
        yield f"{place}.{member}: unknown member; wanted some of {_list(known)}. Correct its spelling or take it out."


def _hosts(site: Site) -> Iterator[str]:
    groups, addresses = site["groups"], site["addresses"]
    if len(groups["bridge"]) != 1:
        yield (
            f"group bridge: got {len(groups['bridge'])} hosts ({_list(groups['bridge'])}), wanted exactly one, the "
            "control host: a second bridge would fence the first. Leave one in the group."
        )
    for group in ("persister", "worker", "nsqd"):
        if not groups[group]:
            yield f"group {group}: got no host, wanted at least one. Put a host into it in hosts.yml."
    seen: dict[str, str] = {}
    for host in sorted({host for group in _OUR_GROUPS for host in groups[group]}):
        address = str(addresses.get(host) or "")
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            yield (
                f"{host}: slowjobs_address: got {address!r}, wanted the IPv4 address that its services bind to and the "
                "other hosts connect to. Give it in hosts.yml or host_vars."
            )
            continue
        other = seen.setdefault(address, host)
        if other != host:
            yield f"{host}: slowjobs_address: got {address}, which is {other}'s, too. Give each host its own."


def _nsqd(site: Site) -> Iterator[str]:
    active = site["nsqd_active_host"]
    if active not in site["groups"]["nsqd"]:
        yield (
            f"nsqd_active_host: got {active!r}, wanted a host of group nsqd ({_list(site['groups']['nsqd'])}). "
            "It stands alone in group_vars/all/nsqd_active_host.yml."
        )
    for host, limit in sorted(site["nsqd_max_msg_timeout_seconds"].items()):
        for name, pool in sorted(site["pools"].items()):
            task = pool.get("task_timeout_seconds", TASK_TIMEOUT_SECONDS)
            park = pool.get("park_limit_seconds", PARK_LIMIT_SECONDS)
            if not _is_above_zero(task) or not _is_above_zero(park):
                continue
            longest = longest_delivery_seconds({name: pool})
            if limit <= longest:
                yield (
                    f"{host}: nsqd_max_msg_timeout_seconds: got {limit}, wanted more than {longest} (of pool {name} "
                    f"twice task_timeout_seconds, {task}, and park_limit_seconds, {park}, and "
                    f"{DELIVERY_MARGIN_SECONDS}): nsqd would give a request that still runs to a second worker. "
                    "Raise it, or lower the pool's limits."
                )


def _servers(site: Site) -> Iterator[str]:
    for group, variable, given in (
        ("kafka", "slowjobs_kafka_properties['bootstrap.servers']", site["kafka_properties"].get("bootstrap.servers")),
        ("postgresql", "slowjobs_postgresql_dsn", site["postgresql_dsn"]),
    ):
        if given and site["groups"][group]:
            # Without its value, which may hold a password in the wrong place.
            yield (
                f"{variable}: given beside hosts in group {group} ({_list(site['groups'][group])}), wanted one of the "
                "two. Empty the group to use what exists, or take the variable out."
            )
        if not given and not site["groups"][group]:
            yield (
                f"{variable}: got nothing, and group {group} is empty; wanted one of the two. Give the variable to use "
                "what exists, or put a host into the group."
            )


def _secrets(site: Site) -> Iterator[str]:
    for name in sorted(site["kafka_properties"]):
        if _SECRET_PROPERTY.search(name):
            yield (
                f"slowjobs_kafka_properties[{name!r}]: a secret in a plain property would stand in files that others "
                "read. Move it to slowjobs_kafka_secret_properties, its value in a vault file."
            )
    if _DSN_PASSWORD.search(site["postgresql_dsn"]):
        yield (
            "slowjobs_postgresql_dsn: it holds a password, which would stand in files that others read. "
            "Move it to slowjobs_postgresql_password, its value in a vault file."
        )


def _kinds(site: Site) -> Iterator[str]:
    for name, kind in sorted(site["kinds"].items()):
        place = f"slowjobs_kinds.{name}"
        yield from _unknown_members(place, kind, _KIND_MEMBERS)
        type_, key = kind.get("type"), kind.get("key")
        if type_ == "ingest":
            if "key" in kind:
                yield f"{place}.key: given, but the key of type ingest is that of its table. Take it out."
            continue
        if type_ != "job":
            yield f"{place}.type: got {type_!r}, wanted job or ingest."
        if not isinstance(key, list) or not key or not all(isinstance(member, str) and member for member in key):
            yield f"{place}.key: got {key!r}, wanted a list of the members that identify a request, such as [file_id]."

    ingest = [name for name, kind in site["kinds"].items() if kind.get("type") == "ingest"]
    if len(ingest) > 1:
        yield (
            f"slowjobs_kinds: got {len(ingest)} of type ingest ({_list(ingest)}), which would share their rows; "
            "wanted one. Lanes may share a kind."
        )


def _lanes(site: Site) -> Iterator[str]:
    topics: dict[str, str] = {}
    for name, lane in sorted(site["lanes"].items()):
        place = f"slowjobs_lanes.{name}"
        if not _NSQ_NAME.fullmatch(name):
            yield f"{place}: a lane's name is its NSQ topic: wanted 1 to 64 of .a-zA-Z0-9_-. Rename it."
        yield from _unknown_members(place, lane, _LANE_MEMBERS)
        for member, known in (("kind", site["kinds"]), ("pool", site["pools"])):
            if lane.get(member) not in known:
                yield (
                    f"{place}.{member}: got {lane.get(member)!r}, wanted one of slowjobs_{member}s ({_list(known)}). "
                    f"Name one of these, or add the {member} there."
                )
        topic = lane.get("kafka_topic", name)
        if not isinstance(topic, str) or not _KAFKA_NAME.fullmatch(topic):
            yield f"{place}.kafka_topic: got {topic!r}, wanted 1 to 249 of the characters a-zA-Z0-9._-."
            continue
        other = topics.setdefault(topic, name)
        if other != name:
            yield f"{place}.kafka_topic: got {topic}, which is lane {other}'s, too; wanted one topic for each lane."
        if not _whole(lane.get("max_outstanding", 1), 1, MAX_OUTSTANDING_LIMIT):
            got = lane["max_outstanding"]
            yield f"{place}.max_outstanding: got {got!r}, wanted 1 to {MAX_OUTSTANDING_LIMIT} requests."
        if not _whole(lane.get("weight", 1), 1):
            yield f"{place}.weight: got {lane['weight']!r}, wanted a whole number from 1."
        if not isinstance(lane.get("safe_to_empty", False), bool):
            yield f"{place}.safe_to_empty: got {lane['safe_to_empty']!r}, wanted true or false."


def _pools(site: Site) -> Iterator[str]:
    topics = {lane.get("kafka_topic", name): name for name, lane in site["lanes"].items()}
    for name, pool in sorted(site["pools"].items()):
        place = f"slowjobs_pools.{name}"
        if not _NSQ_NAME.fullmatch(name):
            yield f"{place}: a pool's name is its NSQ channel: wanted 1 to 64 of .a-zA-Z0-9_-. Rename it."
        yield from _unknown_members(place, pool, _POOL_MEMBERS)
        if not any(lane.get("pool") == name for lane in site["lanes"].values()):
            yield f"{place}: no lane names it: its workers would wait for ever. Add one to slowjobs_lanes, or drop it."
        yield from _pool_handler(place, pool)
        result_topic = pool.get("result_topic")
        if not isinstance(result_topic, str) or not _KAFKA_NAME.fullmatch(result_topic):
            yield f"{place}.result_topic: got {result_topic!r}, wanted the Kafka topic for its results."
        elif result_topic in topics:
            yield f"{place}.result_topic: got {result_topic}, which is lane {topics[result_topic]}'s own Kafka topic."
        elif result_topic == DEAD_LETTERS_TOPIC:
            yield f"{place}.result_topic: got {result_topic}, which is the topic of dead letters. Name another."
        if pool.get("persist_results", "full") not in _PERSIST_RESULTS:
            wanted = ", ".join(_PERSIST_RESULTS)
            yield f"{place}.persist_results: got {pool['persist_results']!r}, wanted one of {wanted}."
        yield from _pool_figures(place, pool)
        yield from _pool_files(place, pool, site["directory"])
        yield from _pool_hosts(place, pool, site["groups"]["worker"])


def _pool_handler(place: str, pool: Mapping[str, Any]) -> Iterator[str]:
    handler = pool.get("handler", {})
    yield from _unknown_members(f"{place}.handler", handler, _HANDLER_MEMBERS)
    if ("command" in handler) == ("python" in handler):
        yield (
            f"{place}.handler: got {'both' if 'command' in handler else 'neither'} of command and python, wanted one: "
            "a program such as command: [/usr/bin/python3, check.py], or a class such as python: package.module:Class."
        )
    elif "command" in handler:
        yield from _pool_command(place, pool, handler["command"])
    else:
        yield from _pool_python(place, pool, handler)


def _pool_command(place: str, pool: Mapping[str, Any], command: object) -> Iterator[str]:
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        yield (
            f"{place}.handler.command: got {command!r}, wanted a list: the program and its arguments, "
            "such as [/usr/bin/python3, check.py]."
        )
    of_python = [f"handler.{member}" for member in ("options", "preload") if member in pool["handler"]]
    of_python += ["packages"] if "packages" in pool else []
    for member in of_python:
        yield f"{place}.{member}: given beside a command, wanted beside handler.python alone. Take it out."


def _pool_python(place: str, pool: Mapping[str, Any], handler: Mapping[str, Any]) -> Iterator[str]:
    name, options = handler["python"], handler.get("options", {})
    if not isinstance(name, str) or not _CLASS.fullmatch(name):
        yield f"{place}.handler.python: got {name!r}, wanted where the class is, such as package.module:Class."
    if not _is_mapping(options) or not _is_plain(options):
        yield (
            f"{place}.handler.options: got {options!r}, wanted a mapping from the class's arguments to text, numbers, "
            "true or false, and lists and mappings of these. Take out what is null; quote dates."
        )
    if not isinstance(handler.get("preload", True), bool):
        yield f"{place}.handler.preload: got {handler['preload']!r}, wanted true or false."
    for number, package in enumerate(pool.get("packages", [])):
        if not _REQUIREMENT.fullmatch(package):
            yield f"{place}.packages[{number}]: got {package!r}, wanted a pip requirement by name, such as lxml==6.1.3."


def _pool_figures(place: str, pool: Mapping[str, Any]) -> Iterator[str]:
    for member in ("slots", "max_concurrent", "max_attempts"):
        if member in pool and not _whole(pool[member], 1):
            yield f"{place}.{member}: got {pool[member]!r}, wanted a whole number from 1."
    retry, recycle = pool.get("retry", {}), pool.get("recycle", {})
    yield from _unknown_members(f"{place}.retry", retry, _RETRY_MEMBERS)
    yield from _unknown_members(f"{place}.recycle", recycle, _RECYCLE_MEMBERS)
    for member, value in recycle.items():
        if not _whole(value, 1):
            yield f"{place}.recycle.{member}: got {value!r}, wanted a whole number from 1."
    figures = {**pool, **{f"retry.{name}": value for name, value in retry.items()}}
    for member, value in figures.items():
        if member.endswith("_seconds") and not _is_above_zero(value):
            yield f"{place}.{member}: got {value!r}, wanted seconds, more than 0."
        elif member.startswith("retry.") and value > MAX_DELAY_SECONDS:
            yield f"{place}.{member}: got {value}, wanted at most {MAX_DELAY_SECONDS}: nsqd shortens longer delays."
    if not _whole(pool.get("state_port", STATE_PORT), 1024, 65535):
        yield f"{place}.state_port: got {pool['state_port']!r}, wanted a port from 1024 to 65535."


def _pool_files(place: str, pool: Mapping[str, Any], directory: str) -> Iterator[str]:
    for number, file in enumerate(pool.get("files", [])):
        yield from _unknown_members(f"{place}.files[{number}]", file, _FILE_MEMBERS)
        source, target = file.get("src"), file.get("dest")
        if not isinstance(source, str) or not (Path(directory) / source).is_file():
            yield f"{place}.files[{number}].src: got {source!r}, wanted a file, seen from {directory}."
        if not isinstance(target, str) or Path(target).is_absolute() or ".." in Path(target).parts:
            yield f"{place}.files[{number}].dest: got {target!r}, wanted a path inside the pool's own folder."
        elif Path(target).parts[:1] == (ENVIRONMENTS,):
            yield f"{place}.files[{number}].dest: got {target!r}, where the pool's environments are. Name another."


def _pool_hosts(place: str, pool: Mapping[str, Any], workers: Sequence[str]) -> Iterator[str]:
    hosts = pool.get("hosts", workers)
    strangers = sorted(set(hosts) - set(workers))
    if strangers:
        yield f"{place}.hosts: got {_list(strangers)}, wanted hosts of group worker ({_list(workers)})."
    if len(set(hosts)) != len(hosts):
        yield f"{place}.hosts: got a host twice ({_list(hosts)}), wanted each once."
    if not hosts:
        yield f"{place}.hosts: got none: nothing would run it. Name hosts, or take the member out for the whole group."
    slots, limit = pool.get("slots", 1), pool.get("max_concurrent")
    if _whole(slots, 1) and _whole(limit, 1) and slots * len(hosts) > limit:
        yield (
            f"{place}: got {slots} slots on each of {len(hosts)} hosts, {slots * len(hosts)} in all, "
            f"wanted at most max_concurrent, {limit}. Lower slots or name fewer hosts."
        )


def _policies(site: Site) -> Iterator[str]:
    for name, policy in sorted(site["reenqueue_policies"].items()):
        place = f"slowjobs_reenqueue_policies.{name}"
        if not _NSQ_NAME.fullmatch(name):
            yield f"{place}: a policy's name is part of its timer's: wanted 1 to 64 of .a-zA-Z0-9_-. Rename it."
        yield from _unknown_members(place, policy, _POLICY_MEMBERS)
        lane = policy.get("lane")
        if lane not in site["lanes"]:
            yield f"{place}.lane: got {lane!r}, wanted one of slowjobs_lanes ({_list(site['lanes'])})."
        elif site["pools"].get(site["lanes"][lane].get("pool"), {}).get("persist_results") == "none":
            yield (
                f"{place}.lane: got {lane}, of whose results no row is kept (persist_results: none): all of its "
                "requests would be sent again for ever. Keep status, or drop the policy."
            )
        calendar = policy.get("on_calendar")
        if not isinstance(calendar, str) or not calendar or not calendar.isprintable():
            yield (
                f"{place}.on_calendar: got {calendar!r}, wanted when it runs, such as daily or '*:0/30' "
                "(systemd-analyze calendar explains it)."
            )
        if policy.get("exclude_statuses") and not policy.get("statuses") and "result_older_than_days" not in policy:
            yield (
                f"{place}.exclude_statuses: it only narrows statuses or result_older_than_days, got neither. "
                "Add one of them, or take it out."
            )
        yield from _policy_figures(place, policy)


def _policy_figures(place: str, policy: Mapping[str, Any]) -> Iterator[str]:
    if not _is_above_zero(policy.get("window_days")):
        yield f"{place}.window_days: got {policy.get('window_days')!r}, wanted days, more than 0."
    for member in ("result_older_than_days", "cool_down_hours"):
        value = policy.get(member, 0)
        if isinstance(value, bool) or not (value == 0 or _is_above_zero(value)):
            unit = member.rpartition("_")[2]
            yield f"{place}.{member}: got {value!r}, wanted {unit}, 0 or more."
    if not _whole(policy.get("limit", 1), 1):
        yield f"{place}.limit: got {policy['limit']!r}, wanted a whole number of requests from 1."


def _intake(site: Site) -> Iterator[str]:
    for lane in sorted(set(site["intake_lanes"]) - set(site["lanes"])):
        yield (
            f"slowjobs_intake_tokens.{lane}: a token for a lane that is not there; wanted some of slowjobs_lanes "
            f"({_list(site['lanes'])}). Name one of these, or take it out."
        )


def _ports(site: Site) -> Iterator[str]:
    groups = site["groups"]
    used: dict[tuple[str, object], str] = {
        (host, port): owner
        for group, ports in _PORTS.items()
        for host in groups[group]
        for port, owner in ports.items()
    }
    for instance in pool_instances(site["pools"], groups["worker"]):
        pool, host, port = f"{instance['pool']}", f"{instance['host']}", instance["state_port"]
        if not _whole(port, 1):
            continue
        other = used.setdefault((host, port), f"pool {pool}")
        if other != f"pool {pool}":
            yield (
                f"slowjobs_pools.{pool}.state_port: got {port}, which {other} uses on {host}, too. "
                "Give it a state_port of its own."
            )


#: In the order in which a person would mend them.
RULES: tuple[Callable[[Site], Iterator[str]], ...] = (
    _hosts, _nsqd, _servers, _secrets, _kinds, _lanes, _pools, _policies, _intake, _ports,
)  # fmt: skip


def _misshapen(site: Site) -> Iterator[str]:
    if not _is_mapping(site["kafka_properties"]):
        yield "slowjobs_kafka_properties: wanted a mapping from librdkafka's properties to their values."
    if not _is_text(site["postgresql_dsn"]):
        yield "slowjobs_postgresql_dsn: wanted text, such as host=db1 dbname=slowjobs user=slowjobs."
    if not _NAMES[0](site["intake_lanes"]):
        yield "slowjobs_intake_tokens: wanted a mapping from lanes to lists of tokens."
    for table, members in _SHAPES.items():
        items = site[table]
        if not _is_mapping(items) or not all(map(_is_mapping, items.values())):
            yield f"slowjobs_{table}: got {items!r}, wanted a mapping from names to mappings of their members."
            continue
        for name, item in sorted(items.items()):
            for member, (good, wanted) in members.items():
                if member in item and not good(item[member]):
                    yield (
                        f"slowjobs_{table}.{name}.{member}: got {item[member]!r}, wanted {wanted}. "
                        "Correct it, or take the member out."
                    )


def inventory_errors(site: Site) -> list[str]:
    """Return every mistake in an inventory: where, what was got, what was wanted, what to do."""
    return list(_misshapen(site)) or [error for rule in RULES for error in rule(site)]


def is_placeholder(value: object) -> bool:
    """Tell whether a secret is empty or still the text of an example."""
    return not isinstance(value, str) or not value or _PLACEHOLDER.search(value) is not None


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, object]:
        """Return the filters by name."""
        return {
            "pool_instances": pool_instances,
            "pool_limits": pool_limits,
            "longest_task_seconds": longest_task_seconds,
            "longest_delivery_seconds": longest_delivery_seconds,
            "inventory_errors": inventory_errors,
            "is_placeholder": is_placeholder,
        }
