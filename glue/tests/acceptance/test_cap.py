"""The bridge never brings a lane above its cap: waiting, in flight and deferred together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.sampler import Sampler
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem

pytestmark = pytest.mark.acceptance

CAP = 1000
ENOUGH_SAMPLES = 200


def test_outstanding_stays_at_or_below_the_cap_with_20000_requests_waiting(make_system: MakeSystem) -> None:
    # Every twentieth request is put back for long: what is deferred counts as well.
    handler = ("/bin/sh", "-c", 'request=$(cat); case "$request" in *later*) exit 75;; esac; sleep 0.02; printf "{}"')
    system = make_system(
        handler=handler, slots=8, pool={"retry": {"base_seconds": 60, "cap_seconds": 60}, "max_attempts": 1000}
    )
    system.setup()
    system.send(request(number, **({"later": True} if number % 20 == 0 else {})) for number in range(20_000))
    with Sampler(system.outstanding) as sampler:
        # First, since a lane that is worked on holds less: what is done takes a while to be replaced.
        system.start(system.bridge)
        wait_until(system.outstanding, 30, "the lane to fill up", accept=lambda held: held >= 0.95 * CAP)
        system.start(system.worker)
        wait_until(lambda: len(system.results()), 60, "800 results", accept=lambda count: count >= 800)
        # One that starts again knows nothing of what it published, except from nsqd.
        system.bridge.kill()
        system.bridge.start()
        wait_until(lambda: len(system.results()), 60, "2000 results", accept=lambda count: count >= 2000)
        assert system.channel()["deferred_count"] > 0

    assert max(sampler.samples) <= CAP
    assert len(sampler.samples) >= ENOUGH_SAMPLES


def test_a_full_lane_does_not_hold_back_another(make_system: MakeSystem) -> None:
    system = make_system(lane={"max_outstanding": 10}, handler=("/bin/sh", "-c", "sleep 600"))
    other = make_system()
    bridge = system.documents["bridge"]
    for section in ("kinds", "lanes", "pools"):
        bridge[section] |= other.documents["bridge"][section]
    system.write()
    for each in (system, other):
        each.setup()
    system.send_requests(range(6000))
    system.start(system.bridge, system.worker)
    wait_until(system.outstanding, 30, "the first lane to be full", accept=lambda held: held == 10)
    other.start(other.worker, *other.persisters.values())
    other.send_requests(range(200))
    other.wait_for_results(range(200), 30)
    assert system.outstanding() == 10
