"""`slowjobs pause` and `unpause`: nothing of a lane begins, on no host, and what waits in workers goes back."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from support import handlers
from support.services import ACTIVE, SECOND
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.nsqd import Nsqd
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

#: Takes so long that there is always one in the middle of its run.
BRIEF = ("/bin/sh", "-c", "sleep 0.2; cat")
#: Runs until the file "gate" is there, and then finds full what it needs.
BUSY_IN_THE_END = ("/bin/sh", "-c", "cat >> runs.log; until [ -e gate ]; do sleep 0.05; done; exit 69")
#: Who finds its resource full is parked for this long.
PATIENT = {"base_seconds": 60, "cap_seconds": 60}


def _starts(system: System, lane: str) -> list[float]:
    """Return when requests of a lane began, in seconds since 1970."""
    return [
        datetime.fromisoformat(event["at"]).timestamp()
        for event in system.events("started")
        if event["lane"] == system.lanes[lane]
    ]


def _paused(system: System, nsqd: Nsqd, lane: str) -> tuple[bool, bool]:
    """Return whether the topic and the channel of a lane are paused."""
    topic = nsqd.topic(system.lanes[lane])
    assert topic is not None
    return topic["paused"], nsqd.channel(system.lanes[lane], system.pool)["paused"]


def _said(system: System, *arguments: str, expect: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(system.run(*arguments, "--json", expect=expect).stdout)
    return document


def test_nothing_begins_a_second_after_a_pause_and_other_lanes_go_on(make_system: MakeSystem) -> None:
    system = make_system(
        handler=BRIEF, slots=3, worker_hosts=("worker1", "worker2"), lanes={"stops": {"weight": 4}, "goes": {}}
    )
    system.setup()
    system.send_requests(range(600), lane="stops")
    system.send_requests(range(1000, 1600), lane="goes")
    system.start(system.bridge, *system.workers.values())
    for _ in range(3):
        before = len(_starts(system, "stops"))
        wait_until(lambda: len(_starts(system, "stops")), 20, "load", accept=lambda count: count > before + 10)  # noqa: B023 - called here
        system.run("pause", system.lanes["stops"])
        paused_at = time.time()
        # What comes too late would have come by then: slots have become free several times.
        wait_until(lambda: max(_starts(system, "goes")), 20, "the other lane", accept=lambda at: at > paused_at + 2)  # noqa: B023
        late = [at - paused_at for at in _starts(system, "stops") if at > paused_at + 1]
        assert late == [], "seconds after the pause"
        assert system.channel(lane="stops")["in_flight_count"] == 0
        system.run("unpause", system.lanes["stops"])


def test_what_finds_its_resource_full_after_a_pause_goes_back_and_does_not_begin_again(
    make_system: MakeSystem,
) -> None:
    system = make_system(handler=BUSY_IN_THE_END, slots=1)
    system.setup()
    system.send_requests(["a"])
    system.start(system.bridge, system.worker)
    wait_until(lambda: handlers.runs(system), 30, "it to run")
    system.run("pause", "--all")
    assert len(system.worker.state()["running"]) == 1, "what runs goes on"
    handlers.open_gate(system)
    channel = wait_until(system.channel, 10, "it to wait on NSQ", accept=lambda channel: channel["depth"] == 1)
    assert (channel["in_flight_count"], channel["timeout_count"]) == (0, 0)
    assert [event["event"] for event in system.story("a")] == ["started", "requeued"]
    assert system.worker.state()["parked"] == []


def test_what_comes_just_after_a_worker_was_told_goes_back_too(make_system: MakeSystem) -> None:
    system = make_system(handler=("/bin/sh", "-c", "exit 69"), slots=1, pool={"retry": PATIENT})
    system.setup()
    system.send_requests(["a"])
    system.start(system.bridge, system.worker)
    wait_until(lambda: system.worker.state()["parked"], 30, "it to be parked")
    # The lane is not paused, so what goes back comes again at once, as if it had been on its way.
    system.worker.release()
    wait_until(lambda: system.events("requeued"), 10, "it to go back again", accept=lambda events: len(events) == 2)
    wait_until(lambda: system.worker.state()["parked"], 10, "it to come and stay")


def test_pause_says_what_it_changed_what_was_so_already_and_what_workers_gave_back(make_system: MakeSystem) -> None:
    system = make_system(
        handler=("/bin/sh", "-c", "exit 69"), lanes={"one": {}, "two": {}}, worker_hosts=("worker1", "worker2"),
        nsqd_hosts=(ACTIVE, SECOND), pool={"retry": PATIENT},
    )  # fmt: skip
    system.setup()
    first, second = system.services.nsqd, system.services.second_nsqd
    system.send_requests(["parked"], lane="one")
    system.start(system.bridge, system.worker)
    wait_until(lambda: system.worker.state()["parked"], 30, "it to be parked")
    one, two = system.lanes.values()

    said = _said(system, "pause", one)
    assert said["v"] == 1
    assert said["errors"] == []
    assert said["lanes"] == [{"lane": one, "nsqd": host, "changed": True} for host in (ACTIVE, SECOND)]
    assert said["workers"] == [
        {"host": "worker1", "pool": system.pool, "released": 1},
        {"host": "worker2", "pool": system.pool, "released": None},
    ]
    assert _paused(system, first, "one") == _paused(system, second, "one") == (True, True)
    assert _paused(system, first, "two") == (False, False)

    shown = system.run("pause", "--pool", system.pool).stdout
    for line in (f"was paused   {one} on {ACTIVE}", f"paused       {two} on {SECOND}", "is stopped"):
        assert line in shown
    assert _paused(system, first, "two") == (True, True)

    # Half a pause, as somebody leaves it who does it by hand.
    first.post(f"/channel/unpause?topic={two}&channel={system.pool}")
    said = _said(system, "pause", "--all")
    assert [each["lane"] for each in said["lanes"] if each["changed"]] == [two]
    assert _paused(system, first, "two") == (True, True)

    said = _said(system, "unpause", "--all")
    assert all(each["changed"] for each in said["lanes"])
    assert _paused(system, second, "one") == _paused(system, first, "two") == (False, False)
    assert not any(each["changed"] for each in _said(system, "unpause", "--all")["lanes"])


def test_pause_tries_all_and_names_each_lane_and_host_that_failed(make_system: MakeSystem) -> None:
    system = make_system(lanes={"one": {}, "two": {}}, nsqd_hosts=(ACTIVE, SECOND), worker_hosts=("worker1", "worker2"))
    system.setup()
    services = system.services
    services.nsqd.post(f"/topic/delete?topic={system.lanes['two']}")
    for worker in system.documents["slowjobs"]["services"]:
        if worker["host"] == "worker2":
            worker["state_address"] = services.nsqd.http_address
    system.write()
    services.second_nsqd.stop()
    said = system.run("pause", "--all", expect=1)
    assert _paused(system, services.nsqd, "one") == (True, True)
    one, two = system.lanes.values()
    assert f"is stopped   slowjobs-worker@{system.pool} on worker1" in said.stdout
    failed = [line.split(": ")[1] for line in said.stderr.splitlines()]
    worker = f"slowjobs-worker@{system.pool} on worker2"
    assert failed == [f"{one} on {SECOND}", f"{two} on {ACTIVE}", f"{two} on {SECOND}", worker]
    assert "slowjobs setup" in said.stderr
    assert len(_said(system, "unpause", "--all", expect=1)["errors"]) == 3


def test_lanes_that_do_not_exist_are_refused_with_those_that_do(make_system: MakeSystem) -> None:
    system = make_system(lanes={"one": {}, "two": {}})
    system.setup()
    said = system.run("pause", "no-lane", system.lanes["one"], "nor-this", expect=2)
    for name in ("no-lane", "nor-this", *system.lanes.values()):
        assert name in said.stderr
    assert _paused(system, system.services.nsqd, "one") == (False, False)
    assert system.pool in system.run("unpause", "--pool", "no-pool", expect=2).stderr
    system.run("pause", expect=2)
    system.run("pause", system.lanes["one"], "--all", expect=2)
