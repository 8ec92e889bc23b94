"""A worker reads its file again and goes on with it; no task is dropped, and what it cannot take it refuses."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from support import handlers
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance


def _runs(system: System, count: int) -> None:
    wait_until(
        lambda: len(handlers.runs(system)),
        20,
        f"{count} to run",
        accept=lambda n: n == count,
        while_true=system.trouble,
    )


def test_slots_lanes_and_hosts_change_while_tasks_run(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=2, lanes={"old": {}, "new": {}})
    system.setup()
    worker = system.documents["worker1"]
    new_lane = worker["lanes"].pop(system.lanes["new"])
    system.write()
    system.start(system.bridge, system.worker)
    pid = system.worker.pid
    system.send_requests((f"old-{number}" for number in range(7)), lane="old")
    system.send_requests(["new"], lane="new")
    _runs(system, 2)

    # More slots, then fewer: what runs goes on, and nothing new begins until it is below.
    worker["pool"]["slots"] = 4
    assert system.reload()["slots"] == 4
    _runs(system, 4)
    worker["pool"]["slots"] = 1
    assert len(system.reload()["running"]) == 4

    # Another lane, and another host; the first lane goes, and so does what waits in it, but not what runs of it.
    worker["pool"]["slots"] = 6
    worker["lanes"] = {system.lanes["new"]: new_lane}
    second = system.services.second_nsqd
    second.create(system.lanes["new"], system.pool)
    second.publish(system.lanes["new"], request("on the second"))
    worker["nsqd"] = system.nsqd_section("svc506", "svc507")
    state = system.reload()
    assert state["lanes"] == [system.lanes["new"]]
    assert state["refused"] is None
    _runs(system, 6)
    wait_until(lambda: sorted(system.worker.state()["nsqd"]), 10, "both", accept=lambda h: h == ["svc506", "svc507"])
    assert len(system.worker.state()["running"]) == 6
    assert system.channel(lane="old")["in_flight_count"] == 4

    # The second host goes again while something of it runs.
    worker["nsqd"] = system.nsqd_section("svc506")
    assert system.reload()["nsqd"] == ["svc506"]
    assert len(system.worker.state()["running"]) == 6

    handlers.open_gate(system)
    wait_until(lambda: len(system.results()), 20, "their results", accept=lambda count: count == 6)
    for nsqd, lane in ((system.services.nsqd, "old"), (second, "new")):
        left = wait_until(
            lambda nsqd=nsqd, lane=lane: system.channel(lane=lane, nsqd=nsqd),
            10,
            "no connection left",
            accept=lambda channel: channel["client_count"] == 0,
        )
        assert (left["in_flight_count"], left["timeout_count"], left["requeue_count"]) == (0, 0, 0)
    assert system.channel(lane="old")["depth"] == 3
    assert system.worker.pid == pid
    assert system.worker.is_running

    # The first lane comes back.
    worker["lanes"] = dict.fromkeys(system.lanes.values(), new_lane)
    system.reload()
    wait_until(system.outstanding, 20, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert set(handlers.runs(system).values()) == {1}
    assert len(system.results()) == 9
    assert system.worker.stop() == 0


def test_weights_change_while_lanes_are_full(make_system: MakeSystem) -> None:
    handler = ("/bin/sh", "-c", "sleep 0.05; printf '{}'")
    system = make_system(handler=handler, slots=4, lanes={"one": {"weight": 1}, "two": {"weight": 1}})
    system.setup()
    system.start(system.bridge)
    for lane in system.lanes:
        system.send_requests(range(250), lane=lane)
    wait_until(system.outstanding, 30, "full lanes", accept=lambda held: held == 500)
    system.start(system.worker)
    wait_until(lambda: len(system.results()), 30, "40 results", accept=lambda count: count >= 40)
    system.documents["worker1"]["lanes"][system.lanes["one"]]["weight"] = 9
    system.reload()
    before = len(system.results())
    wait_until(lambda: len(system.results()), 30, "100 more", accept=lambda count: count >= before + 110)

    begun = sorted((result["_slowjobs"] for result in system.results()), key=lambda ours: ours["started"])
    two = [ours["lane"] == system.lanes["two"] for ours in begun]
    assert 15 <= sum(two[:40]) <= 25
    # Ten of a hundred; what was held at the change is in there.
    assert 5 <= sum(two[before + 5 : before + 105]) <= 16


def test_what_cannot_be_taken_is_refused_with_its_reasons_and_the_old_file_stays_in_force(
    make_system: MakeSystem,
) -> None:
    system = make_system(handler=handlers.NOTING)
    system.setup()
    system.start(system.bridge, system.worker)
    config = system.worker.state()["config"]
    assert system.worker.state()["refused"] is None
    pool = system.documents["worker1"]["pool"]
    pool["slots"] = 0
    state = system.reload()
    assert state["config"] == config
    assert "pool.slots" in str(state["refused"]["reasons"])
    assert state["slots"] == 4
    system.worker.config.write_text("pool = [", encoding="utf-8")
    state = system.worker.reload()
    assert state["config"] == config
    assert state["refused"]["config"] == hashlib.sha256(b"pool = [").hexdigest()

    pool["slots"] = 9
    pool["handler"]["command"] = ["/bin/true"]
    system.documents["worker1"]["generation"] = "another release"
    state = system.reload()
    assert state["refused"]["reasons"] == ["generation", "pool.handler"]
    assert state["slots"] == 4, "none of it, not a part of it"
    system.send_requests(["still here"])
    wait_until(lambda: handlers.runs(system), 20, "the old handler to run", while_true=system.trouble)

    pool["slots"] = 7
    pool["handler"]["command"] = list(handlers.NOTING)
    del system.documents["worker1"]["generation"]
    state = system.reload()
    assert (state["slots"], state["refused"]) == (7, None)
    # The journal says what was wrong, for whoever sent the signal by hand.
    assert "pool.slots" in system.worker.log_text()
