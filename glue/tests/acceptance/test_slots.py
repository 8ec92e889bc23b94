"""A slot that is free gets work at once."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem

pytestmark = pytest.mark.acceptance

SLOTS_OF_A_WORKER = 10
SLOTS = 2 * SLOTS_OF_A_WORKER
TASKS = 6 * SLOTS


@pytest.mark.parametrize("lanes", [{"only": {}}, {"heavy": {"weight": 16}, "light": {}, "empty": {"weight": 100}}])
def test_slots_are_in_use_while_work_waits(make_system: MakeSystem, lanes: dict[str, dict[str, int]]) -> None:
    system = make_system(
        handler=("/bin/sh", "-c", "sleep 1; printf '{}'"),
        slots=SLOTS_OF_A_WORKER,
        worker_hosts=("worker1", "worker2"),
        lanes=lanes,
    )
    system.setup()
    system.start(system.bridge, *system.workers.values())
    full = [lane for lane in lanes if lane != "empty"]
    for lane in full:
        system.send_requests(range(TASKS // len(full)), lane=lane)
    wait_until(lambda: len(system.results()), 60, "all results", accept=lambda count: count == TASKS)

    tasks = sorted((_seconds(result, "started"), _seconds(result, "finished")) for result in system.results())
    # The last wave is left out: then there is less work than slots.
    begin, end = tasks[0][0], tasks[-SLOTS][0]
    in_use = sum(min(finished, end) - started for started, finished in tasks if started < end)
    # 0.95 is promised for a longer run, of which the first wave is a smaller part.
    assert in_use / (SLOTS * (end - begin)) >= 0.9


def _seconds(result: dict[str, dict[str, str]], member: str) -> float:
    return datetime.fromisoformat(result["_slowjobs"][member]).timestamp()
