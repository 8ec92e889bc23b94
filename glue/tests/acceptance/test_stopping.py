"""A service that is told to stop ends in good order, whatever it is doing and whoever is away."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from support import handlers
from support.nsqd import MSG_TIMEOUT_SECONDS
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance


def _gated(make_system: MakeSystem, **settings: object) -> System:
    """Return a system whose four slots are taken by handlers that wait at the gate, with more work behind them."""
    system = make_system(handler=handlers.GATED, slots=4, **settings)
    system.setup()
    system.send_requests(range(12))
    system.start(system.bridge, system.worker)
    wait_until(lambda: len(handlers.runs(system)), 30, "four handlers to run", accept=lambda n: n == 4)
    return system


def test_a_stopping_worker_finishes_what_runs_and_starts_nothing_new(make_system: MakeSystem) -> None:
    system = _gated(make_system)
    running = set(handlers.runs(system))
    before = system.channel()
    system.worker.signal(signal.SIGTERM)
    # Three times as long as nsqd waits for a word from a worker: only touching keeps the four here.
    time.sleep(3 * MSG_TIMEOUT_SECONDS)
    assert system.worker.is_running
    assert system.worker.state()["draining"] is True
    handlers.open_gate(system)
    assert system.worker.wait(10) == 0

    assert set(handlers.runs(system)) == running, "nothing new began"
    assert set(handlers.runs(system).values()) == {1}
    assert {result["file_id"] for result in system.results()} == running
    after = wait_until(system.channel, 5, "the other eight waiting", accept=lambda c: c["depth"] == 8)
    assert after["in_flight_count"] == 0
    assert after["timeout_count"] == before["timeout_count"]


def test_tasks_longer_than_msg_timeout_run_once(make_system: MakeSystem) -> None:
    system = _gated(make_system)
    time.sleep(2 * MSG_TIMEOUT_SECONDS)
    handlers.open_gate(system)
    wait_until(system.outstanding, 30, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert handlers.runs(system) == dict.fromkeys(range(12), 1)


def test_what_still_runs_after_the_drain_timeout_goes_back_at_once(make_system: MakeSystem) -> None:
    system = _gated(make_system, pool={"drain_timeout_seconds": 1})
    started = time.monotonic()
    assert system.worker.stop(seconds=10) == 0
    assert time.monotonic() - started >= 1
    # At once, not when nsqd has waited long enough for a worker that is gone.
    back = wait_until(system.channel, 1, "all back on NSQ", accept=lambda c: c["depth"] == 12)
    assert back["timeout_count"] == 0


def test_a_second_sigterm_ends_a_worker_now(make_system: MakeSystem) -> None:
    system = _gated(make_system)
    system.worker.signal(signal.SIGTERM)
    wait_until(lambda: system.worker.state()["draining"], 5, "the worker to drain")
    assert system.worker.stop(seconds=5) == 0
    wait_until(system.channel, 1, "all back on NSQ", accept=lambda c: c["depth"] == 12)


def test_a_restart_in_good_order_doubles_nothing(make_system: MakeSystem) -> None:
    system = make_system(slots=8, lane={"max_outstanding": 50})
    system.setup()
    system.start()
    system.send_requests(range(600))
    for service, done in ((system.bridge, 100), (system.worker, 250), (system.persisters["results"], 400)):
        wait_until(lambda: len(system.results()), 60, f"{done} results", accept=lambda n, done=done: n >= done)
        assert service.stop() == 0
        service.start()
    system.wait_for_results(range(600), 60)
    assert len(system.results()) == 600


@pytest.mark.parametrize("server", ["kafka", "nsqd", "postgresql"])
def test_every_service_stops_while_a_server_is_away(make_system: MakeSystem, server: str) -> None:
    system = make_system()
    system.setup()
    system.start()
    # With work under way, so that there is something that cannot be put away.
    getattr(system.services, server).stop()
    if server != "kafka":
        system.send_requests(range(50))
        time.sleep(1)
    for process in system.processes:
        process.signal(signal.SIGTERM)
    assert {process.name: process.wait(20) for process in system.processes} == dict.fromkeys(
        (process.name for process in system.processes), 0
    )


def test_a_bridge_that_has_just_got_its_partitions_stops_while_kafka_is_away(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.bridge.start()
    wait_until(lambda: "kafka.assigned" in system.bridge.log_text(), 30, "partitions")
    system.services.kafka.freeze()
    system.bridge.signal(signal.SIGTERM)
    assert system.bridge.wait(20) == 0
    system.services.kafka.thaw()


def test_a_bridge_that_waits_for_kafka_to_take_its_commit_publishes_nothing_and_stops(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    nsqd, kafka = system.services.nsqd, system.services.kafka
    nsqd.freeze()
    system.start(system.bridge)
    system.send_requests(range(20))
    wait_until(
        lambda: _lane_state(system)["fetched"], 30, "requests that wait for nsqd", accept=lambda count: count == 20
    )
    kafka.freeze()
    nsqd.thaw()
    wait_until(lambda: _lane_state(system)["unsettled"], 30, "a batch that is about to be sent")
    system.bridge.signal(signal.SIGTERM)
    assert system.bridge.wait(20) == 0
    assert system.outstanding() == 0
    kafka.thaw()


def _lane_state(system: System) -> dict[str, Any]:
    lanes: dict[str, dict[str, Any]] = system.bridge.state()["lanes"]
    return lanes[system.lane]
