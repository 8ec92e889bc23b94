"""One set of slots, several lanes and nsqd hosts: by weight, none starves, nothing is hoarded, no slot stays empty."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from support import handlers
from support.sampler import Sampler
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

SLOTS = 4
#: Short tasks, but a slot is in use for many times longer than it takes to fill it.
SHORT = ("/bin/sh", "-c", "sleep 0.1; printf '{}'")
#: seconds until a worker on a busy machine knows what NSQ knows.
REACTION_SECONDS = 0.05
LONGER = ("/bin/sh", "-c", "sleep 0.4; printf '{}'")


def _full(system: System, count: int, *lanes: str) -> None:
    """Have NSQ hold ``count`` requests of each lane before the worker starts."""
    system.setup()
    system.start(system.bridge)
    for lane in lanes:
        system.send_requests(range(count), lane=lane)
    wait_until(system.outstanding, 60, "full lanes", accept=lambda held: held == count * len(lanes))


def _starts(system: System) -> list[dict[str, Any]]:
    """Return what the results say of themselves, in the order in which their handlers began."""
    return sorted((result["_slowjobs"] for result in system.results()), key=lambda ours: ours["started"])


def _assert_nothing_is_hoarded(samples: list[dict[str, Any]]) -> None:
    """Check that at most one request more than slots is in the worker, in 99 % of the samples."""
    beyond = Counter(len(state["running"]) + len(state["held"]) - state["slots"] for state in samples)
    assert beyond.total() > 100
    assert sum(count for number, count in beyond.items() if number <= 1) >= 0.99 * beyond.total(), beyond


@pytest.mark.parametrize(("weight", "starts", "expected"), [(16, 136, (5, 14)), (2, 90, (25, 35))])
def test_full_lanes_start_by_their_weights(
    make_system: MakeSystem, weight: int, starts: int, expected: tuple[int, int]
) -> None:
    """16:1 makes 8 light starts of 136, and 2:1 makes 30 of 90."""
    system = make_system(handler=SHORT, slots=SLOTS, lanes={"heavy": {"weight": weight}, "light": {"weight": 1}})
    _full(system, starts, "heavy", "light")
    system.start(system.worker)
    wait_until(system.results, 20, "the first result")
    with Sampler(system.worker.state, a_second=50) as sampler:
        wait_until(lambda: len(system.results()), 60, "their results", accept=lambda n: n >= starts + 2 * SLOTS)
    lanes = [ours["lane"] for ours in _starts(system)][:starts]
    light = [number for number, lane in enumerate(lanes) if lane == system.lanes["light"]]
    assert expected[0] <= len(light) <= expected[1], lanes
    waits = [later - earlier for earlier, later in itertools.pairwise(light)]
    assert max(waits) <= 3 * (weight + 1), f"the light lane waited for so many starts: {waits}"
    _assert_nothing_is_hoarded(sampler.samples)


def test_an_empty_lane_costs_nothing_and_its_first_request_is_next(make_system: MakeSystem) -> None:
    system = make_system(handler=LONGER, slots=SLOTS, lanes={"heavy": {"weight": 16}, "light": {"weight": 1}})
    system.setup()
    system.start(system.bridge, system.worker)
    system.send_requests(range(2000), lane="light")
    wait_until(system.outstanding, 30, "the light lane to be full", accept=lambda held: held > 900)

    published = []
    for number in range(8):
        # Past the bridge, so that it is known when NSQ has it.
        system.services.nsqd.publish(system.lanes["heavy"], request(f"heavy-{number}"))
        published.append(time.time())
        time.sleep(0.55)
    heavy = system.lanes["heavy"]
    wait_until(
        lambda: [ours for ours in _starts(system) if ours["lane"] == heavy],
        10,
        "all heavy results",
        accept=lambda results: len(results) == 8,
    )

    tasks = _starts(system)
    begun = [(_seconds(ours, "started"), ours["lane"]) for ours in tasks]
    for since, until in zip(published, [at for at, lane in begun if lane == heavy], strict=True):
        overtook = [at for at, lane in begun if lane != heavy and since + REACTION_SECONDS < at < until]
        assert len(overtook) <= 1, f"{len(overtook)} light ones began while a heavy one waited {until - since:.3f} s"
    in_use = _slots_in_use(tasks)
    assert in_use >= 0.9, in_use


def _slots_in_use(tasks: list[dict[str, Any]]) -> float:
    begin, end = _seconds(tasks[SLOTS], "started"), _seconds(tasks[-SLOTS], "started")
    spans = [(_seconds(ours, "started"), _seconds(ours, "finished")) for ours in tasks]
    return sum(max(0, min(finished, end) - max(started, begin)) for started, finished in spans) / (
        SLOTS * (end - begin)
    )


def _seconds(ours: dict[str, str], member: str) -> float:
    return datetime.fromisoformat(ours[member]).timestamp()


def test_no_worker_hoards_what_another_could_start(make_system: MakeSystem) -> None:
    system = make_system(
        handler=handlers.GATED, slots=SLOTS, worker_hosts=("worker1", "worker2"), lanes={"one": {}, "two": {}}
    )
    system.setup()
    system.start(system.bridge, *system.workers.values())
    # As many as there are slots, and two more for what a race may leave with a worker that is full.
    for lane in system.lanes:
        system.send_requests((f"{lane}-{number}" for number in range(SLOTS + 1)), lane=lane)
    states = wait_until(
        lambda: [worker.state() for worker in system.workers.values()],
        10,
        "all slots of both workers in use",
        accept=lambda states: [len(state["running"]) for state in states] == [SLOTS, SLOTS],
    )
    assert sum(len(state["held"]) for state in states) <= 2


def test_an_active_and_a_draining_host_are_served_at_once_from_the_same_slots(make_system: MakeSystem) -> None:
    system = make_system(handler=SHORT, slots=SLOTS, nsqd_hosts=("svc506", "svc507"))
    system.setup()
    count = 80
    for active in ("svc507", "svc506"):
        system.documents["bridge"]["nsqd"] = system.nsqd_section(active)
        system.write()
        system.start(system.bridge)
        wanted = system.outstanding() + count
        system.send_requests(f"{active}-{number}" for number in range(count))
        wait_until(system.outstanding, 30, f"all on {active}", accept=lambda held, wanted=wanted: held == wanted)
        system.bridge.stop()

    system.start(system.worker)
    wait_until(system.results, 20, "the first result")
    with Sampler(system.worker.state, a_second=50) as sampler:
        wait_until(system.outstanding, 60, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert sorted(system.worker.state()["nsqd"]) == ["svc506", "svc507"]
    assert len(system.results()) == 2 * count
    begun = [event["nsqd"] for event in system.events("started")][:count]
    assert min(begun.count("svc506"), begun.count("svc507")) >= 0.3 * count
    _assert_nothing_is_hoarded(sampler.samples)
    in_use = _slots_in_use(_starts(system))
    assert in_use >= 0.75, in_use
