"""`slowjobs empty`: all of a lane is discarded, through the ledger, and nothing of it runs or comes back."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from support import handlers
from support.services import ACTIVE, SECOND
from support.system import SLOWJOBS
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

CAP = 1000
#: fails, and is tried again when this test is over.
FAILING = ("/bin/sh", "-c", "exit 1")
MUCH_LATER = {"base_seconds": 600, "cap_seconds": 600}


def _empty(system: System, *arguments: str, expect: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(system.run("empty", *arguments, "--json", expect=expect).stdout)
    return document


def _fill(system: System, backlog: int) -> None:
    """Have a lane with a full NSQ and a backlog on Kafka behind it, and nobody who works on it."""
    system.setup()
    system.start(system.bridge)
    system.send_requests(range(CAP + backlog))
    counts = {"on_kafka": backlog, "waiting": CAP, "deferred": 0, "in_flight": 0}
    wait_until(
        lambda: _empty(system, system.lane, "--dry-run")["lanes"],
        30,
        "the lane to be full",
        accept=lambda lanes: lanes == [{"lane": system.lane, **counts, "discarded": 0}],
    )


def _ends(system: System, outcome: str) -> Counter[tuple[int, int]]:
    """Return ``(partition, offset) -> how often it was told`` that this came to such an end, of the first lane."""
    ends = (event for event in system.events("done") if event["lane"] == system.lane and event["outcome"] == outcome)
    return Counter((event["position"][1], event["position"][2]) for event in ends)


def test_all_that_is_on_kafka_and_nsq_is_discarded_and_nothing_else(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.NOTING, lanes={"goes": {"safe_to_empty": True}, "stays": {}})
    _fill(system, 50_000)
    system.send_requests(["other"], lane="stays")
    said = _empty(system, system.lane, "--yes")
    assert [lane["discarded"] for lane in said["lanes"]] == [51_000]
    assert (said["v"], said["errors"]) == (1, [])
    assert system.committed("slowjobs-bridge") == 51_000, "all is done"
    assert _ends(system, "discarded") == dict.fromkeys(system.sent(), 1)

    system.send_requests(["later"])
    system.start(system.worker)
    wait_until(
        lambda: system.committed("slowjobs-bridge"),
        30,
        "the lane to end",
        accept=lambda done: done == len(system.sent()),
    )
    assert system.outstanding() == 0
    assert handlers.runs(system) == {"later": 1, "other": 1}


def test_a_lane_is_refused_while_anything_of_it_runs(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, lane={"safe_to_empty": True})
    system.setup()
    system.start(system.bridge, system.worker)
    system.send_requests(["a"])
    wait_until(lambda: handlers.runs(system), 30, "it to run")
    assert "expected --yes" in system.run("empty", system.lane, expect=4).stderr
    said = system.run("empty", system.lane, "--yes", expect=4).stderr
    assert "not idle: in flight 1, 1 in workers, 0 do not answer" in said
    assert f"slowjobs pause {system.lane} && slowjobs wait-idle {system.lane}" in said

    # Its worker stood still for too long: nsqd has nothing in flight any more.
    system.run("pause", "--all")
    system.worker.freeze()
    wait_until(system.channel, 20, "nsqd to give it up", accept=lambda channel: channel["in_flight_count"] == 0)
    assert "0 in workers, 1 do not answer" in system.run("empty", "--all", "--yes", expect=4).stderr
    system.worker.thaw()
    assert "in flight 0, 1 in workers" in system.run("empty", "--all", "--yes", expect=4).stderr

    handlers.open_gate(system)
    wait_until(lambda: _ends(system, "result"), 10, "its result")
    assert _empty(system, "--all", "--yes")["lanes"][0]["waiting"] == 1, "the copy that nsqd has"
    assert system.outstanding() == 0
    assert _ends(system, "discarded") == {}, "it has come to another end"


def test_all_lanes_are_tried_and_left_paused_or_not_as_they_were(make_system: MakeSystem) -> None:
    lanes: dict[str, dict[str, Any]] = {"fails": {"safe_to_empty": True}, "unknown": {}}
    nsqd_hosts = (ACTIVE, SECOND)
    system = make_system(handler=FAILING, lanes=lanes, pool={"retry": MUCH_LATER}, nsqd_hosts=nsqd_hosts)
    system.setup()
    fails, unknown = system.lanes.values()
    del system.documents["bridge"]["lanes"][unknown]
    system.write()
    system.start(system.bridge, system.worker)
    system.send_requests(["a"])
    wait_until(system.channel, 20, "it to be deferred", accept=lambda channel: channel["deferred_count"] == 1)
    assert f"not marked safe_to_empty: {unknown}. --discard" in system.run("empty", "--all", "--yes", expect=4).stderr
    said = _empty(system, "--all", "--discard", "--yes", expect=1)
    assert [(lane["lane"], lane["deferred"], lane["discarded"]) for lane in said["lanes"]] == [
        (fails, 1, 1),
        (unknown, 0, 0),
    ]
    assert said["errors"] == [f"{unknown}: the bridge answers 404: the bridge has no such lane"]
    services = system.services
    channels = [system.channel(lane=lane, nsqd=services.nsqd_of(host)) for lane in system.lanes for host in nsqd_hosts]
    assert not any(channel["paused"] or channel["deferred_count"] for channel in channels)

    system.run("pause", fails)
    assert f"discarded 0 requests of {fails}" in system.run("empty", fails, "--yes").stdout
    assert system.channel()["paused"]
    system.bridge.stop()
    assert str(system.folder / "bridge.sock") in system.run("empty", fails, "--yes", expect=1).stderr


def test_what_was_discarded_is_told_also_where_a_host_is_gone_and_keeps_its_pause(make_system: MakeSystem) -> None:
    system = make_system(lane={"safe_to_empty": True}, nsqd_hosts=(ACTIVE, SECOND))
    system.setup()
    # Discarding needs all hosts that the bridge serves.
    nsqd = system.documents["bridge"]["nsqd"]
    del nsqd["draining"], nsqd["hosts"][SECOND]
    system.write()
    system.start(system.bridge)
    system.send_requests(["a"])
    wait_until(system.outstanding, 20, "it on NSQ")
    system.bridge.freeze()
    environment = {**system.environment, "SLOWJOBS_CONFIG": str(system.cli_config)}
    argv = [str(SLOWJOBS), "empty", system.lane, "--yes", "--json"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as asked:
        second = system.services.second_nsqd
        wait_until(lambda: system.channel(nsqd=second)["paused"], 20, "all to be paused")
        second.stop()
        system.bridge.thaw()
        said, _ = asked.communicate(timeout=30)
    document = json.loads(said)
    assert [lane["discarded"] for lane in document["lanes"]] == [1]
    [error] = document["errors"]
    assert error.startswith(f"{system.lane} on {SECOND} may still be paused, until `slowjobs unpause {system.lane}`: ")
    assert not system.channel()["paused"]


def test_who_is_interrupted_leaves_the_lane_paused_for_the_bridge_that_goes_on(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.NOTING, lane={"safe_to_empty": True})
    system.setup()
    system.start(system.bridge)
    system.bridge.freeze()
    environment = {**system.environment, "SLOWJOBS_CONFIG": str(system.cli_config)}
    argv = [str(SLOWJOBS), "empty", system.lane, "--yes"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as asked:
        wait_until(lambda: system.channel()["paused"], 20, "it to be paused")
        asked.send_signal(signal.SIGINT)
        _, said = asked.communicate(timeout=20)
    system.bridge.thaw()
    assert asked.returncode == 128 + signal.SIGINT
    assert f"Then: slowjobs unpause {system.lane}" in said
    assert system.channel()["paused"]


def test_what_a_killed_bridge_has_told_stays_discarded_and_the_rest_is_as_it_was(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.NOTING, lane={"safe_to_empty": True})
    # So that the first to be told of are those that are in NSQ.
    system.services.kafka.create_topic(system.lane, partitions=1)
    _fill(system, 10_000)
    environment = {**system.environment, "SLOWJOBS_CONFIG": str(system.cli_config)}
    argv = [str(SLOWJOBS), "empty", system.lane, "--yes"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as asked:
        wait_until(lambda: _ends(system, "discarded"), 30, "some to be discarded")
        system.bridge.kill()
        _, said = asked.communicate(timeout=20)
    assert asked.returncode == 1
    assert f"failed: {system.lane}: the bridge ended meanwhile" in said
    told = _ends(system, "discarded")
    assert len(told) < 10_000

    # What is left runs as if nobody had asked, and can be discarded later.
    system.start(system.bridge, system.worker)
    wait_until(lambda: len(handlers.runs(system)), 30, "others to run", accept=lambda count: count >= 50)
    system.run("pause", "--all")
    wait_until(lambda: system.worker.state()["running"], 10, "the last to end", accept=lambda running: not running)
    _empty(system, system.lane, "--yes")
    discarded, results = _ends(system, "discarded"), _ends(system, "result")
    assert told.keys() <= discarded.keys()
    assert discarded + results == dict.fromkeys(system.sent(), 1)
    assert sum(handlers.runs(system).values()) == len(results)
