"""One bridge and one persister of each kind: a second instance takes over, and the first ends for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support import toml
from support.processes import free_port
from support.system import Service
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

FENCED = 5


def _second(system: System, first: Service, *arguments: str) -> Service:
    """Return another instance of ``first`` as somebody would start it on another host."""
    config = system.folder / f"second-{first.name}.toml"
    second = Service(f"second-{first.name}", arguments, config=config, environment=system.environment)
    second.state_address = f"127.0.0.1:{free_port()}"
    document = {**system.documents[first.name], "host": "control2", "state_address": second.state_address}
    config.write_text(toml.dumps(document), encoding="utf-8")
    return second


def test_a_second_bridge_fences_the_first(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start()
    system.send_requests(range(20))
    system.wait_for_results(range(20), 30)
    second = _second(system, system.bridge, "bridge")
    try:
        second.start()
        assert system.bridge.wait(30) == FENCED, system.bridge.log_tail()
        system.send_requests(range(20, 40))
        wait_until(lambda: set(system.result_rows()), 30, "new results", accept=lambda ids: ids == set(range(40)))
        assert second.is_running
        assert second.stop() == 0, second.log_tail()
    finally:
        second.discard()


def test_a_second_persister_fences_the_first(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    first = system.persisters["requests"]
    system.start(first)
    system.send_requests(range(20))
    wait_until(lambda: len(system.request_rows()), 30, "20 rows", accept=lambda count: count == 20)
    second = _second(system, first, "persister", "requests")
    try:
        second.start()
        assert first.wait(30) == FENCED, first.log_tail()
        system.send_requests(range(20, 40))
        wait_until(lambda: len(system.request_rows()), 30, "40 rows", accept=lambda count: count == 40)
        assert second.stop() == 0, second.log_tail()
    finally:
        second.discard()


def test_a_lane_that_is_added_is_served_after_a_restart(make_system: MakeSystem) -> None:
    """The group's member stays the same and asks for more topics, at once and not when its session has timed out."""
    system, added = make_system(), make_system()
    for each in (system, added):
        each.setup()
    system.start(system.bridge, system.worker)
    system.send_requests(range(5))
    wait_until(lambda: len(system.results()), 30, "the first lane's results", accept=lambda count: count == 5)
    assert system.bridge.stop() == 0
    for section in ("kinds", "lanes", "pools"):
        system.documents["bridge"][section] |= added.documents["bridge"][section]
    system.write()
    system.start(system.bridge)
    added.send_requests(range(5))
    system.send_requests(range(5, 10))
    added.start(added.worker)
    wait_until(lambda: len(added.results()), 20, "the added lane's results", accept=lambda count: count == 5)
    wait_until(lambda: len(system.results()), 20, "the first lane's results", accept=lambda count: count == 10)
