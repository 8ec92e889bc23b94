"""What `site.yml` refuses before it changes anything: every mistake in an inventory, each with its remedy."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[3] / "plugins" / "filter" / "site.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_facts", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site_facts = load()
Site = dict[str, Any]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "check.py").touch()
    return {
        "directory": str(tmp_path),
        "groups": {
            "kafka": ["data1"],
            "postgresql": ["data1"],
            "nsqd": ["svc506", "svc507"],
            "bridge": ["control1"],
            "persister": ["control1"],
            "worker": ["worker1", "worker2"],
        },
        "addresses": {
            "data1": "10.0.0.1",
            "control1": "10.0.0.2",
            "svc506": "10.0.0.3",
            "svc507": "10.0.0.4",
            "worker1": "10.0.0.5",
            "worker2": "10.0.0.6",
        },
        "nsqd_active_host": "svc506",
        "nsqd_max_msg_timeout_seconds": {"svc506": 21600, "svc507": 21600},
        "kafka_properties": {},
        "postgresql_dsn": "",
        "kinds": {"fixity": {"type": "job", "key": ["file_id"]}},
        "pools": {
            "fixity": {
                "handler": {"command": ["/usr/bin/python3", "check.py"]},
                "files": [{"src": "check.py", "dest": "check.py"}],
                "slots": 4,
                "result_topic": "fixity-results",
            }
        },
        "lanes": {"fixity-check": {"kind": "fixity", "pool": "fixity"}},
        "reenqueue_policies": {
            "fixity": {"lane": "fixity-check", "on_calendar": "*:0/30", "window_days": 36500, "limit": 2500}
        },
        "intake_lanes": ["fixity-check"],
    }


def test_a_sound_inventory_has_no_mistake(site: Site) -> None:
    assert site_facts.inventory_errors(site) == []


def test_existing_servers_are_given_by_address(site: Site) -> None:
    site["groups"] |= {"kafka": [], "postgresql": []}
    site["kafka_properties"] = {"bootstrap.servers": "kafka:9092", "security.protocol": "SASL_SSL"}
    site["postgresql_dsn"] = "host=db dbname=slowjobs user=slowjobs"
    assert site_facts.inventory_errors(site) == []


def spoil(path: str, value: object) -> Callable[[Site], None]:
    """Set one member, named by its path; None takes it out."""

    def change(site: Site) -> None:
        *way, last = path.split("/")
        place = site
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


MISTAKES = {
    "two bridges": (spoil("groups/bridge", ["control1", "worker1"]), "group bridge: got 2 hosts"),
    "no worker": (spoil("groups/worker", []), "group worker: got no host"),
    "no address": (spoil("addresses/worker1", None), "worker1: slowjobs_address: got ''"),
    "a name for an address": (spoil("addresses/worker1", "worker1"), "worker1: slowjobs_address: got 'worker1'"),
    "one address twice": (spoil("addresses/worker1", "10.0.0.6"), "which is worker1's, too"),
    "an active host elsewhere": (spoil("nsqd_active_host", "svc508"), "nsqd_active_host: got 'svc508'"),
    "Kafka twice": (spoil("kafka_properties/bootstrap.servers", "kafka:9092"), "wanted one of the two"),
    "no Kafka": (spoil("groups/kafka", []), "group kafka is empty"),
    "PostgreSQL twice": (
        spoil("postgresql_dsn", "host=db"),
        "slowjobs_postgresql_dsn: given beside hosts in group postgresql",
    ),
    "no PostgreSQL": (spoil("groups/postgresql", []), "group postgresql is empty"),
    "a password in the open": (spoil("kafka_properties/sasl.password", "x"), "slowjobs_kafka_secret_properties"),
    "a key's password in the open": (spoil("kafka_properties/ssl.key.password", "x"), "Move it to"),
    "a password in the DSN": (spoil("postgresql_dsn", "host=db password=x"), "Move it to slowjobs_postgresql_password"),
    "a password in the URL": (
        spoil("postgresql_dsn", "postgresql://u:x@db/s"),
        "Move it to slowjobs_postgresql_password",
    ),
    "an unknown type": (spoil("kinds/fixity/type", "file"), "slowjobs_kinds.fixity.type: got 'file'"),
    "a key of type ingest": (spoil("kinds/fixity/type", "ingest"), "fixity.key: given, but the key of type ingest is"),
    "two kinds for one table": (
        spoil("kinds", {"a": {"type": "ingest"}, "b": {"type": "ingest"}}),
        "slowjobs_kinds: got 2 of type ingest (a, b), which would share their rows",
    ),
    "results kept some other way": (
        spoil("pools/fixity/persist_results", "some"),
        "fixity.persist_results: got 'some', wanted one of full, status, none",
    ),
    "a policy without a lane": (
        spoil("reenqueue_policies/fixity/lane", "nope"),
        "slowjobs_reenqueue_policies.fixity.lane: got 'nope', wanted one of slowjobs_lanes (fixity-check)",
    ),
    "a policy whose results are not kept": (
        spoil("pools/fixity/persist_results", "none"),
        "reenqueue_policies.fixity.lane: got fixity-check, of whose results no row is kept",
    ),
    "a policy without a time": (
        spoil("reenqueue_policies/fixity/on_calendar", None),
        "policies.fixity.on_calendar: got None, wanted when it runs",
    ),
    "a policy without a window": (spoil("reenqueue_policies/fixity/window_days", None), "fixity.window_days: got None"),
    "a policy that looks ahead": (
        spoil("reenqueue_policies/fixity/result_older_than_days", -1),
        "fixity.result_older_than_days: got -1, wanted days, 0 or more",
    ),
    "a policy that excludes from nothing": (
        lambda site: site["reenqueue_policies"].update(
            fixity={"lane": "fixity-check", "on_calendar": "daily", "window_days": 8, "exclude_statuses": ["a"]}
        ),
        "fixity.exclude_statuses: it only narrows",
    ),
    "a policy for nothing": (spoil("reenqueue_policies/fixity/limit", 0), "fixity.limit: got 0, wanted a whole number"),
    "a status that is no list": (
        spoil("reenqueue_policies/fixity/statuses", "spn2-*"),
        "policies.fixity.statuses: got 'spn2-*', wanted a list of names",
    ),
    "a misspelt member of a policy": (spoil("reenqueue_policies/fixity/window", 1), "fixity.window: unknown member"),
    "a policy's name that no timer has": (
        spoil("reenqueue_policies/every day", {"lane": "fixity-check", "on_calendar": "daily", "window_days": 1}),
        "slowjobs_reenqueue_policies.every day: a policy's name is part of its timer's",
    ),
    "tokens for no lane": (spoil("intake_lanes", ["nope"]), "slowjobs_intake_tokens.nope: a token for a lane"),
    "a key that is no list": (spoil("kinds/fixity/key", "file_id"), "slowjobs_kinds.fixity.key: got 'file_id'"),
    "a lane without a kind": (spoil("lanes/fixity-check/kind", "nope"), "fixity-check.kind: got 'nope'"),
    "a lane without a pool": (spoil("lanes/fixity-check/pool", None), "fixity-check.pool: got None, wanted one of"),
    "a name NSQ refuses": (spoil("lanes/fixity check", {"kind": "fixity", "pool": "fixity"}), "lane's name is its NSQ"),
    "a topic for two lanes": (
        spoil("lanes/b", {"kind": "fixity", "pool": "fixity", "kafka_topic": "fixity-check"}),
        "which is lane b's, too",
    ),
    "too much outstanding": (spoil("lanes/fixity-check/max_outstanding", 1251), "wanted 1 to 1250 requests"),
    "a misspelt member of a lane": (spoil("lanes/fixity-check/wait", 1), "fixity-check.wait: unknown member"),
    "a pool without a lane": (spoil("lanes", {}), "no lane names it"),
    "a pool without a handler": (spoil("pools/fixity/handler", None), "handler: got neither of command and python"),
    "two handlers": (spoil("pools/fixity/handler/python", "a:B"), "handler: got both of command and python"),
    "packages of a command": (spoil("pools/fixity/packages", ["requests"]), "fixity.packages: given beside a command"),
    "options of a command": (spoil("pools/fixity/handler/options", {}), "handler.options: given beside a command"),
    "a handler without a class": (spoil("pools/fixity/handler", {"python": "check.py"}), "python: got 'check.py'"),
    "an option that is null": (
        spoil("pools/fixity/handler", {"python": "a:B", "options": {"hops": [None]}}),
        "fixity.handler.options: got {'hops': [None]}, wanted a mapping",
    ),
    "text for preload": (
        spoil("pools/fixity/handler", {"python": "a:B", "preload": "no"}),
        "fixity.handler.preload: got 'no', wanted true or false",
    ),
    "a retry beyond nsqd's limit": (
        spoil("pools/fixity/retry", {"cap_seconds": 3600}),
        "fixity.retry.cap_seconds: got 3600, wanted at most 890",
    ),
    "a limit of children misspelt": (spoil("pools/fixity/recycle", {"jobs": 5}), "fixity.recycle.jobs: unknown member"),
    "children without a task": (spoil("pools/fixity/recycle", {"tasks": 0}), "fixity.recycle.tasks: got 0"),
    "a status for a list": (spoil("pools/fixity/retry_statuses", "error"), "got 'error', wanted a list of names"),
    "a command that is no list": (spoil("pools/fixity/handler/command", "python3 x"), "got 'python3 x', wanted a list"),
    "no result topic": (spoil("pools/fixity/result_topic", None), "fixity.result_topic: got None"),
    "results on a lane's topic": (spoil("pools/fixity/result_topic", "fixity-check"), "lane fixity-check's own"),
    "no slot": (spoil("pools/fixity/slots", 0), "fixity.slots: got 0"),
    "a limit that is no number": (spoil("pools/fixity/task_timeout_seconds", "5m"), "got '5m', wanted seconds"),
    "a file that is not there": (
        spoil("pools/fixity/files", [{"src": "no.py", "dest": "a"}]),
        "got 'no.py', wanted a file",
    ),
    "a file outside": (
        spoil("pools/fixity/files", [{"src": "check.py", "dest": "../a"}]),
        "wanted a path inside the pool's own folder",
    ),
    "a host that is no worker": (spoil("pools/fixity/hosts", ["data1"]), "fixity.hosts: got data1"),
    "more slots than allowed": (spoil("pools/fixity/max_concurrent", 7), "8 in all, wanted at most max_concurrent, 7"),
    "a host named twice": (spoil("pools/fixity/hosts", ["worker1", "worker1"]), "fixity.hosts: got a host twice"),
    "tasks that outlast nsqd's limit": (
        spoil("pools/fixity/task_timeout_seconds", 9870),
        "got 21600, wanted more than 21600",
    ),
    "parking that outlasts nsqd's limit": (
        spoil("pools/fixity/park_limit_seconds", 21000),
        "got 21600, wanted more than 21660 (of pool fixity twice task_timeout_seconds, 300, and park_limit_seconds",
    ),
    "a retry's member misspelt": (spoil("pools/fixity/retry", {"base": 5}), "fixity.retry.base: unknown member"),
    "a command for a handler": (spoil("pools/fixity/handler", "check.py"), "handler: got 'check.py', wanted a mapping"),
    "one host for a list": (spoil("pools/fixity/hosts", "worker1"), "fixity.hosts: got 'worker1', wanted a list"),
    "text for true": (spoil("lanes/fixity-check/safe_to_empty", "yes"), "safe_to_empty: got 'yes', wanted true"),
    "results among dead letters": (
        spoil("pools/fixity/result_topic", "slowjobs-dead-letters"),
        "which is the topic of dead letters",
    ),
    "a port taken on its host": (spoil("groups/persister", ["worker1"]), None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_remedy(site: Site, name: str) -> None:
    change, message = MISTAKES[name]
    change(site)
    if message is None:
        site["pools"]["fixity"]["state_port"] = 9302
        message = "slowjobs_pools.fixity.state_port: got 9302, which persister requests uses on worker1"
    assert any(message in error for error in site_facts.inventory_errors(site)), site_facts.inventory_errors(site)


def test_a_pool_serves_many_lanes(site: Site) -> None:
    site["lanes"]["fixity-priority"] = {"kind": "fixity", "pool": "fixity", "weight": 16}
    assert site_facts.inventory_errors(site) == []


def test_a_python_handler_has_options_and_packages_of_its_own(site: Site) -> None:
    handler = {"python": "package.module:Class", "options": {"hops": 8, "hosts": [{"a": 1.5}]}, "preload": False}
    site["pools"]["fixity"] |= {
        "handler": handler,
        "packages": [
            "requests==2.32.5",
            "trafilatura[all] >= 2 ; python_version < '4'",
        ],
        "recycle": {"tasks": 1000, "megabytes": 512},
        "retry_statuses": ["wayback-error"],
        "park_limit_seconds": 60,
    }
    assert site_facts.inventory_errors(site) == []


@pytest.mark.parametrize(
    "package", ["--index-url=https://example.org", "./package", "/opt/package", "", " a", "a @ https://a.example/a.whl"]
)
def test_packages_are_requirements_alone(site: Site, package: str) -> None:
    site["pools"]["fixity"] |= {"handler": {"python": "a:B"}, "packages": [package]}
    (error,) = site_facts.inventory_errors(site)
    assert error.startswith(f"slowjobs_pools.fixity.packages[0]: got {package!r}, wanted a pip requirement by name")


def test_files_leave_the_environments_of_a_pool_alone(site: Site) -> None:
    site["pools"]["fixity"]["files"][0]["dest"] = "environments/check.py"
    (error,) = site_facts.inventory_errors(site)
    assert "where the pool's environments are" in error


@pytest.mark.parametrize(("hosts", "slots"), [(None, 5), (["worker2"], 10)])
def test_slots_of_all_its_hosts_together_stay_within_a_pools_limit(
    site: Site, hosts: list[str] | None, slots: int
) -> None:
    pool = site["pools"]["fixity"] | {"max_concurrent": 10, "slots": slots}
    site["pools"]["fixity"] = pool if hosts is None else pool | {"hosts": hosts}
    assert site_facts.inventory_errors(site) == []
    site["pools"]["fixity"]["slots"] += 1
    number = 2 if hosts is None else 1
    (error,) = site_facts.inventory_errors(site)
    assert error == (
        f"slowjobs_pools.fixity: got {slots + 1} slots on each of {number} hosts, {(slots + 1) * number} in all, "
        "wanted at most max_concurrent, 10. Lower slots or name fewer hosts."
    )


def test_two_pools_on_one_host_need_two_state_ports(site: Site) -> None:
    site["pools"]["other"] = {**copy.deepcopy(site["pools"]["fixity"]), "hosts": ["worker2"]}
    site["lanes"]["other"] = {"kind": "fixity", "pool": "other"}
    (error,) = site_facts.inventory_errors(site)
    assert error.startswith("slowjobs_pools.other.state_port: got 9310, which pool fixity uses on worker2, too.")
    site["pools"]["other"]["state_port"] = 9311
    assert site_facts.inventory_errors(site) == []


#: members that are not given in the fixture, too
MEMBERS = [
    *("kafka_properties", "postgresql_dsn", "nsqd_active_host", "kinds", "pools", "lanes", "kinds/fixity"),
    *("pools/fixity", "lanes/fixity-check", "kinds/fixity/type", "kinds/fixity/key", "addresses/worker1"),
    *(f"lanes/fixity-check/{member}" for member in sorted(site_facts._LANE_MEMBERS)),
    *(f"pools/fixity/{member}" for member in sorted(site_facts._POOL_MEMBERS)),
    *("pools/fixity/handler/command", "pools/fixity/files/0", "pools/fixity/files/0/src", "pools/fixity/files/0/dest"),
    *("pools/fixity/retry/base_seconds", "pools/fixity/retry/cap_seconds", "pools/fixity/recycle/tasks"),
    *("pools/python/handler/python", "pools/python/handler/options", "pools/python/handler/preload"),
    *("pools/python/packages", "pools/python/packages/0"),
    *("reenqueue_policies", "reenqueue_policies/fixity", "intake_lanes", "intake_lanes/0"),
    *(f"reenqueue_policies/fixity/{member}" for member in sorted(site_facts._POLICY_MEMBERS)),
]


@pytest.mark.parametrize("value", [None, "x", 7, ["x"], [7], {"x": 7}, {7: "x"}], ids=repr)
@pytest.mark.parametrize("path", MEMBERS)
def test_no_value_ends_the_look_with_an_exception(site: Site, path: str, value: object) -> None:
    site["pools"]["fixity"] |= {"retry": {}, "recycle": {}}
    site["pools"]["python"] = {"handler": {"python": "a:B"}, "packages": ["a"]}
    *way, last = path.split("/")
    place: Any = site
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[int(last) if last.isdigit() else last] = value
    assert all(isinstance(error, str) for error in site_facts.inventory_errors(site))


def test_no_password_is_told(site: Site) -> None:
    site["postgresql_dsn"] = "host=db password=hunter2"
    assert "hunter2" not in str(site_facts.inventory_errors(site))


def test_the_slowest_pool_tells_how_long_nsqd_has_to_wait() -> None:
    pools = {"quick": {"task_timeout_seconds": 0.5}, "slow": {"task_timeout_seconds": 900}, "default": {}}
    assert site_facts.longest_task_seconds(pools) == 900
    assert site_facts.longest_delivery_seconds(pools) == 2 * 900 + 1800 + 60
    pools["slow"]["park_limit_seconds"] = 10
    assert site_facts.longest_delivery_seconds(pools) == 2 * 300 + 1800 + 60
    assert site_facts.longest_task_seconds({}) == site_facts.longest_delivery_seconds({}) == 0


def test_all_mistakes_are_told_at_once(site: Site) -> None:
    site["lanes"]["fixity-check"]["pool"] = "nope"
    site["nsqd_active_host"] = "nope"
    assert len(site_facts.inventory_errors(site)) > 2


@pytest.mark.parametrize("value", [None, "", "CHANGE ME", "changeme", "<password>", "xxx"])
def test_the_text_of_an_example_is_no_secret(value: object) -> None:
    assert site_facts.is_placeholder(value)


def test_a_secret_is_a_secret() -> None:
    assert not site_facts.is_placeholder("3xample-0f-one")
