"""Servers that are away for a while: everything goes on by itself, and nothing is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from support import handlers
from support.sampler import Sampler
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

OUTAGE_SECONDS = 6
IDS = range(1000)
MAX_OUTSTANDING = 100


def _flowing(make_system: MakeSystem) -> System:
    """Return a system in the middle of its work."""
    system = make_system(
        handler=("/bin/sh", "-c", "sleep 0.02; exec cat"), slots=6, lane={"max_outstanding": MAX_OUTSTANDING}
    )
    system.setup()
    system.start()
    system.send_requests(IDS)
    wait_until(lambda: len(system.result_rows()), 30, "the first results", accept=lambda count: count >= 100)
    return system


def _goes_on(system: System, *, more: int = 0) -> None:
    system.wait_for_results(IDS, 100)
    wait_until(lambda: len(system.request_rows()), 20, "all request rows", accept=lambda rows: rows == len(IDS) + more)
    wait_until(system.outstanding, 20, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert system.dead_letters() == []
    assert [process.exit_status for process in system.processes] == [None] * len(system.processes)


def test_work_goes_on_after_kafka_was_away(make_system: MakeSystem) -> None:
    system = _flowing(make_system)
    system.services.kafka.stop()
    time.sleep(OUTAGE_SECONDS)
    system.services.kafka.start()
    _goes_on(system)


def test_work_goes_on_after_kafka_was_killed(make_system: MakeSystem) -> None:
    system = _flowing(make_system)
    system.services.kafka.kill()
    system.services.kafka.start()
    _goes_on(system)


def test_work_goes_on_after_postgresql_was_away(make_system: MakeSystem) -> None:
    system = _flowing(make_system)
    system.services.postgresql.stop()
    # Only the rows wait for it: requests go on being worked on.
    results = len(system.results())
    more = range(len(IDS), len(IDS) + 200)
    system.send_requests(more)
    wait_until(lambda: len(system.results()), 30, "results", accept=lambda count: count >= results + 200)
    time.sleep(OUTAGE_SECONDS)
    system.services.postgresql.start()
    system.wait_for_results(more, 100)
    _goes_on(system, more=len(more))


def test_work_goes_on_after_nsqd_was_stopped_in_good_order(make_system: MakeSystem) -> None:
    """As every planned stop: the channel is paused first, then nothing is in flight, then nsqd stops."""
    system = _flowing(make_system)
    nsqd = system.services.nsqd
    where = f"topic={quote(system.lane)}&channel={quote(system.pool)}"
    nsqd.post(f"/channel/pause?{where}")
    # A batch that is on its way at the stop has no answer and is published again: with a full lane none is.
    wait_until(system.outstanding, 30, "the lane to be full", accept=lambda n: n == MAX_OUTSTANDING)
    wait_until(lambda: system.channel()["in_flight_count"], 20, "nothing in flight", accept=lambda n: n == 0)
    assert nsqd.stop() == 0
    time.sleep(OUTAGE_SECONDS)
    nsqd.start()
    nsqd.post(f"/channel/unpause?{where}")
    _goes_on(system)
    assert len(system.results()) == len(IDS), "nothing was in flight, so nothing runs twice"


def test_a_worker_takes_work_again_within_seconds_of_each_return_of_nsqd(make_system: MakeSystem) -> None:
    system = make_system(handler=("/bin/sh", "-c", "cat >> runs.log; sleep 0.3; printf '{}'"), slots=4)
    system.setup()
    system.send_requests(range(250))
    system.start(system.bridge, system.worker)
    wait_until(system.outstanding, 30, "work for the whole test", accept=lambda held: held > 200)
    for _ in range(3):
        wait_until(lambda: handlers.runs(system), 10, "work")
        system.services.nsqd.stop()
        time.sleep(OUTAGE_SECONDS)
        before = handlers.runs(system).total()
        system.services.nsqd.start()
        wait_until(
            lambda: handlers.runs(system).total(), 5, "more work", accept=lambda runs, before=before: runs > before
        )
    assert system.worker.metric("slowjobs_reconnects_total") == 3


def test_work_goes_on_after_nsqd_stood_still(make_system: MakeSystem) -> None:
    """Its connections stay open and nobody answers: only deadlines of our own notice that."""
    system = _flowing(make_system)
    with Sampler(system.outstanding) as sampler:
        system.services.nsqd.freeze()
        time.sleep(2 * OUTAGE_SECONDS)
        system.services.nsqd.thaw()
        _goes_on(system)
    # A batch without an answer may be there twice, and counts as often as it is there.
    assert max(sampler.samples) <= 100


def test_services_start_before_their_servers(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    servers = (system.services.kafka, system.services.nsqd, system.services.postgresql)
    for server in servers:
        server.stop()
    system.start()
    time.sleep(2)
    assert system.trouble() is None
    for server in servers:
        server.start()
    system.send_requests(range(20))
    system.wait_for_results(range(20), 40)


def test_a_task_that_ends_while_kafka_is_away_runs_once(make_system: MakeSystem) -> None:
    """Its result waits in the worker, and its message is touched, until Kafka has it."""
    system = make_system(handler=handlers.GATED, slots=4)
    system.setup()
    system.send_requests(range(4))
    system.start()
    wait_until(lambda: len(handlers.runs(system)), 30, "four handlers to run", accept=lambda count: count == 4)
    system.services.kafka.stop()
    handlers.open_gate(system)
    time.sleep(OUTAGE_SECONDS)
    system.services.kafka.start()
    system.wait_for_results(range(4), 100)
    assert handlers.runs(system) == dict.fromkeys(range(4), 1)


def test_requests_of_a_worker_that_stands_still_go_to_another(make_system: MakeSystem) -> None:
    # While the frozen worker's connection is open nsqd goes on giving to it, and each of these deliveries counts.
    system = make_system(
        handler=handlers.GATED, slots=4, worker_hosts=("worker1", "worker2"), pool={"max_attempts": 100}
    )
    first, second = system.workers.values()
    system.setup()
    system.send_requests(range(4))
    system.start(system.bridge, *system.persisters.values(), first)
    wait_until(lambda: len(handlers.runs(system)), 30, "four handlers to run", accept=lambda count: count == 4)
    first.freeze()
    handlers.open_gate(system)
    system.start(second)
    wait_until(system.result_rows, 30, "a result of the second worker")
    # Back from the dead: what it ran is somebody else's by now, and no harm.
    first.thaw()
    system.wait_for_results(range(4), 30)
    wait_until(system.outstanding, 20, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert system.trouble() is None
