"""What a worker says of itself: /state for operations and plays, /metrics for Prometheus."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from support import handlers
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem

pytestmark = pytest.mark.acceptance

STATE_MEMBERS = {
    "v", "service", "host", "config", "refused", "started", "worker", "pool", "lanes", "slots", "running", "held",
    "parked", "draining", "nsqd",
}  # fmt: skip
TASK_MEMBERS = {"lane", "position", "key", "attempt", "nsqd", "since"}


def test_state_names_each_task_and_what_the_worker_serves(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=2, lanes={"one": {}, "two": {}})
    system.setup()
    system.start(system.bridge, system.worker)
    idle = system.worker.state()
    assert set(idle) >= STATE_MEMBERS
    assert (idle["v"], idle["service"], idle["host"]) == (1, f"slowjobs-worker@{system.pool}", "worker1")
    assert (idle["running"], idle["held"], idle["parked"], idle["draining"]) == ([], [], [], False)
    wait_until(lambda: system.worker.state()["nsqd"], 10, "its nsqd", accept=lambda hosts: hosts == ["svc506"])

    system.send_requests(["a"], lane="two")
    wait_until(lambda: handlers.runs(system), 20, "it to run")
    state = system.worker.state()
    assert sorted(state["lanes"]) == sorted(system.lanes.values())
    assert (state["slots"], state["pool"]) == (2, system.pool)
    [task] = state["running"]
    assert set(task) == TASK_MEMBERS
    assert (task["lane"], task["key"], task["attempt"], task["nsqd"]) == (system.lanes["two"], '["a"]', 1, "svc506")
    [(partition, offset)] = system.sent(lane="two")
    assert task["position"] == [system.lanes["two"], partition, offset]
    assert 0 <= time.time() - datetime.fromisoformat(task["since"]).timestamp() < 20
    assert state["worker"] == system.events("up")[0]["worker"]


def test_metrics_count_what_ran_and_show_what_runs(make_system: MakeSystem) -> None:
    handler = (
        "/bin/sh",
        "-c",
        (
            'request=$(cat); case "$request" in *reject*) exit 65;; *again*) exit 75;; *gated*)'
            " until [ -e gate ]; do sleep 0.05; done;; esac; sleep 0.2; printf '{}'"
        ),
    )
    system = make_system(handler=handler, slots=2, pool={"max_attempts": 2})
    system.setup()
    system.start(system.bridge, system.worker)
    worker = system.worker
    assert worker.metric("slowjobs_running_tasks") == 0
    assert worker.metric("slowjobs_parked_tasks") == 0
    assert worker.metric("slowjobs_slots") == 2

    system.send_requests(["a", "b", "c", "reject", "again"])
    wait_until(lambda: worker.metric("slowjobs_finished_tasks_total"), 20, "all ends", accept=lambda n: n == 6)
    finished = {
        outcome: sum(
            float(line.rsplit(" ", 1)[1])
            for line in worker.metrics().splitlines()
            if line.startswith("slowjobs_finished_tasks_total{") and f'outcome="{outcome}"' in line
        )
        for outcome in ("result", "reject", "retry")
    }
    assert finished == {"result": 3, "reject": 2, "retry": 1}
    assert worker.metric("slowjobs_started_tasks_total") == 6
    assert worker.metric("slowjobs_task_seconds_count") == 6
    assert 0.6 <= worker.metric("slowjobs_task_seconds_sum") < 6

    system.send_requests(["gated"])
    wait_until(lambda: worker.metric("slowjobs_running_tasks"), 20, "a slot in use", accept=lambda n: n == 1)
    wait_until(lambda: worker.metric("slowjobs_touches_total"), 10, "touches", accept=lambda n: n >= 1)
    assert 0 < worker.metric("slowjobs_oldest_running_seconds") < 20
    handlers.open_gate(system)
    wait_until(lambda: worker.metric("slowjobs_running_tasks"), 20, "no slot in use", accept=lambda n: n == 0)
    assert worker.metric("slowjobs_oldest_running_seconds") == 0


def test_metrics_count_connections_that_broke(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    with system.services.nsqd_behind_proxy() as proxy:
        system.documents["worker1"]["nsqd"]["hosts"]["svc506"]["tcp_address"] = proxy.address
        system.write()
        system.start(system.worker)
        wait_until(lambda: system.worker.state()["nsqd"], 10, "its connection")
        assert system.worker.metric("slowjobs_reconnects_total") == 0
        proxy.break_connections()
        wait_until(lambda: system.worker.metric("slowjobs_reconnects_total"), 10, "it counted", accept=lambda n: n == 1)
        wait_until(lambda: system.worker.state()["nsqd"], 10, "another connection")


def test_a_service_tells_in_its_log_what_each_task_waits_for(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start(system.bridge)
    system.bridge.tell_what_goes_on()
    assert "Bridge._consume" in system.bridge.log_text()
    assert "Current thread" in system.bridge.log_text()
