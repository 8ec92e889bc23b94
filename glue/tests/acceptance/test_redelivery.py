"""A request that is delivered again: attached where it still runs, run by another worker where it does not."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support import handlers
from support.nsqd import MSG_TIMEOUT_SECONDS
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance


@contextmanager
def _broken_off(make_system: MakeSystem, *, slots: int) -> Iterator[System]:
    """Yield a system that runs two requests whose connection to nsqd has just broken."""
    system = make_system(handler=handlers.GATED, slots=slots)
    system.setup()
    with system.services.nsqd_behind_proxy() as proxy:
        system.documents["worker1"]["nsqd"]["hosts"]["svc506"]["tcp_address"] = proxy.address
        system.write()
        system.send_requests(["a", "b"])
        system.start(system.bridge, system.worker)
        wait_until(lambda: handlers.runs(system), 30, "both to run", accept=lambda runs: len(runs) == 2)
        proxy.break_connections()
        yield system
        wait_until(system.outstanding, 15, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert handlers.runs(system) == {"a": 1, "b": 1}
    assert sorted(result["file_id"] for result in system.results()) == ["a", "b"]
    assert [event["outcome"] for event in system.events("done")] == ["result"] * 2


def test_a_request_that_comes_again_while_it_runs_here_is_attached_to_its_run(make_system: MakeSystem) -> None:
    with _broken_off(make_system, slots=3) as system:
        wait_until(
            lambda: [task["attempt"] for task in system.worker.state()["running"]],
            30,
            "both to be delivered again",
            accept=lambda attempts: len(attempts) == 2 and min(attempts) >= 2,
        )
        # The new delivery is touched as the first was.
        before = system.channel()["timeout_count"]
        time.sleep(1.5 * MSG_TIMEOUT_SECONDS)
        assert system.channel()["timeout_count"] == before
        handlers.open_gate(system)


def test_a_request_that_comes_again_after_it_was_done_here_is_only_finished(make_system: MakeSystem) -> None:
    with _broken_off(make_system, slots=2) as system:
        # At once: its results are on Kafka before nsqd takes it for lost.
        handlers.open_gate(system)
        wait_until(lambda: system.events("done"), 10, "both to be done", accept=lambda done: len(done) == 2)


def test_what_a_killed_worker_ran_runs_on_another_within_msg_timeout(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=4, worker_hosts=("worker1", "worker2"))
    first, _ = system.workers.values()
    system.setup()
    system.send_requests(range(8))
    system.start(system.bridge, *system.persisters.values(), *system.workers.values())
    wait_until(lambda: len(handlers.runs(system)), 30, "eight handlers to run", accept=lambda count: count == 8)
    mine = {task["key"] for task in first.state()["running"]}
    assert len(mine) == 4

    first.kill()
    handlers.open_gate(system)
    wait_until(
        lambda: {f"[{file_id}]" for file_id, count in handlers.runs(system).items() if count == 2},
        MSG_TIMEOUT_SECONDS + 5,
        "them to run again",
        accept=lambda again: again == mine,
    )
    system.wait_for_results(range(8), 20)
    wait_until(system.outstanding, 10, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert handlers.runs(system).total() == 12
    assert system.dead_letters() == []


def test_slots_are_in_use_when_nsqd_has_delivered_a_request_twice_at_the_same_time(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=2)
    system.setup()
    system.start(system.bridge)
    system.send_requests(["a", "b"])
    wait_until(lambda: system.channel()["depth"], 30, "both to wait", accept=lambda depth: depth == 2)
    system.services.nsqd.stop()
    system.services.nsqd.double_first(system.lane, system.pool)
    system.services.nsqd.start()
    system.start(system.worker)
    wait_until(lambda: handlers.runs(system), 20, "both to run", accept=lambda runs: runs == {"a": 1, "b": 1})
    handlers.open_gate(system)
    wait_until(system.outstanding, 15, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert sorted(result["file_id"] for result in system.results()) == ["a", "b"]
