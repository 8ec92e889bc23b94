"""`slowjobs wait-idle`: the gate before a database migration opens when nothing runs, and not because it seems so."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from support import handlers
from support.nsqd import Nsqd
from support.services import ACTIVE
from support.system import SLOWJOBS
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance


def _run_paused(system: System, *requests: str) -> None:
    """Pause the lanes of a system while ``requests`` run, until the gate opens."""
    system.setup()
    system.send_requests(requests)
    system.start(system.bridge, *system.workers.values())
    wait_until(lambda: len(handlers.runs(system)), 30, "all to run", accept=lambda count: count == len(requests))
    system.run("pause", "--all")


def _wait(system: System, timeout: str, expect: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(system.run("wait-idle", "--timeout", timeout, "--json", expect=expect).stdout)
    return document


def test_the_gate_opens_when_three_readings_2_s_apart_find_that_nothing_runs(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED)
    _run_paused(system, "a")
    said = system.run("wait-idle", "--timeout", "1s", expect=3)
    [state] = system.worker.state()["running"]
    assert f"on worker1: running since {state['since']}: {system.lane} " in said.stderr
    assert f"{system.lane} (in flight 1, clients 1)\n" in said.stderr
    document = _wait(system, "1s", 3)
    assert (document["v"], document["idle"], document["errors"]) == (1, False, [])
    [task] = document["tasks"]
    assert task == {"host": "worker1", "pool": system.pool, "stage": "running", **state}
    assert document["in_flight"] == [
        {"nsqd": "svc506", "lane": system.lane, "in_flight": 1, "clients": 1, "unclaimed": 0}
    ]

    # It waits, shows that at a terminal, and sees the end.
    out, into = pty.openpty()
    environment = {**system.environment, "SLOWJOBS_CONFIG": str(system.cli_config), "TERM": "xterm", "COLUMNS": "100"}
    argv = [str(SLOWJOBS), "wait-idle", "--timeout", "1m"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=into, env=environment) as waiting:
        os.close(into)
        with os.fdopen(out, "rb", buffering=0) as shown:
            seen = ""
            while "in flight 1" not in seen:
                seen += os.read(shown.fileno(), 65536).decode(errors="replace")
            handlers.open_gate(system)
            opened = time.monotonic()
            assert waiting.wait(20) == 0
    assert time.monotonic() - opened >= 4


def test_a_task_that_nsqd_has_timed_out_keeps_the_gate_closed(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED)
    _run_paused(system, "a")
    system.worker.freeze()
    wait_until(system.channel, 20, "nsqd to give it up", accept=lambda channel: channel["in_flight_count"] == 0)
    said = system.run("wait-idle", "--timeout", "1s", expect=3)
    assert "worker1: no answer within 3 s" in said.stderr, "who does not answer may run anything"
    system.worker.thaw()
    channel = wait_until(system.channel, 5, "it to wait", accept=lambda channel: channel["depth"] == 1)
    assert (channel["in_flight_count"], channel["timeout_count"]) == (0, 1)
    document = _wait(system, "5s", 3)
    assert document["in_flight"] == []
    assert [task["stage"] for task in document["tasks"]] == ["running"]

    # The handler goes with its worker, and a closed port is an answer. What looks idle at the end is looked at again.
    system.worker.kill()
    assert _wait(system, "0s", 0)["idle"] is True


@pytest.mark.parametrize("with_its_worker", [False, True])
def test_what_runs_of_a_lane_that_is_configured_no_more_keeps_the_gate_closed(
    make_system: MakeSystem, *, with_its_worker: bool
) -> None:
    system = make_system(handler=handlers.GATED, lanes={"stays": {}, "other": {}, "goes": {}})
    stays, _, goes = system.lanes.values()
    system.setup()
    system.send_requests(["a"], lane="goes")
    system.start(system.bridge, system.worker)
    wait_until(lambda: handlers.runs(system), 30, "it to run")
    site = system.documents["slowjobs"]
    del site["lanes"][goes]
    if with_its_worker:
        site["services"] = [service for service in site["services"] if not service.get("pool")]
    system.write()
    said = _wait(system, "1s", 3)
    assert [task["lane"] for task in said["tasks"]] == ([] if with_its_worker else [goes])
    # Of another test's lanes, which are configured no more either, something may still be in flight.
    assert [each["lane"] for each in said["in_flight"] if each["lane"] in system.lanes.values()] == [goes]
    assert "idle" in system.run("wait-idle", stays, "--timeout", "1s").stdout


def test_what_a_dead_worker_had_is_said_to_be_its(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=1, worker_hosts=("worker1", "worker2"))
    # With the time-out that the role gives it: there is time to look.
    nsqd = Nsqd(system.folder / "nsqd", flags=["--msg-timeout=30s"])
    for document in system.documents.values():
        if "nsqd" in document:
            addresses = {"tcp_address": nsqd.tcp_address, "http_address": nsqd.http_address}
            document["nsqd"]["hosts"] = {ACTIVE: addresses}
    system.write()
    nsqd.start()
    try:
        _run_paused(system, "a", "b")
        killed, other = system.workers.values()
        killed.kill()
        said = system.run("wait-idle", "--timeout", "1s", expect=3).stderr
        dead = f"{system.lane} (in flight 2, clients 1): 1 of them a dead worker's, back within msg-timeout"
        assert f"{dead}; or one's that is not configured" in said
        other.kill()
        said = system.run("wait-idle", "--timeout", "1s", expect=3).stderr
        assert f"{system.lane} (in flight 2, clients 0): a dead worker's, back within msg-timeout" in said
    finally:
        nsqd.discard()


def test_a_host_that_cannot_be_asked_keeps_the_gate_closed_unless_it_is_a_spare(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    nsqd = system.documents["slowjobs"]["nsqd"]
    nsqd["hosts"]["svc507"] = {"tcp_address": "127.0.0.1:9", "http_address": "127.0.0.1:9"}
    system.write()
    said = system.run("wait-idle")
    assert f"not paused: {system.lane}" in said.stderr, "this holds for the moment only"
    said = system.run("wait-idle", "--paused", "--timeout", "1s", expect=3)
    assert f"not paused: {system.lane}" in said.stderr, "it was asked for more"
    system.run("pause", "--all")
    assert "idle" in system.run("wait-idle", "--paused", "--timeout", "1s").stdout
    nsqd["draining"] = ["svc507"]
    system.write()
    [error] = _wait(system, "1s", 3)["errors"]
    assert error.startswith("nsqd svc507: ")
    system.services.nsqd.post(f"/topic/delete?topic={system.lane}")
    assert f"{system.lane}/{system.pool}" in str(_wait(system, "1s", 3)["errors"]), "nobody knows what it held"
