"""What a handler cannot do now: parked in its worker while a resource is full, put back for a status or an error."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from support import handlers
from support.nsqd import MSG_TIMEOUT_SECONDS
from support.sampler import Sampler
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

#: A request that is "limited" needs something that is full until the file "free" is there; others wait at the gate.
LIMITED = """\
import json
import time
from pathlib import Path

from slowjobs.outcomes import Busy

HERE = Path(__file__).parent


class Limited:
    def process(self, request, key=None):
        with (HERE / "runs.log").open("a") as log:
            log.write(json.dumps(request) + "\\n")
        if request.get("limited") and not (HERE / "free").exists():
            raise Busy(delay=request.get("delay", 0.3), reason="all ten are in use")
        while request.get("gated") and not (HERE / "gate").exists():
            time.sleep(0.05)
        return {"file_id": request["file_id"]}
"""


def _limited(make_system: MakeSystem, **settings: Any) -> System:
    pool = {"handler": {"python": "limited:Limited", "interpreter": sys.executable}, **settings.pop("pool", {})}
    system = make_system(pool=pool, **settings)
    (system.pool_folder / "limited.py").write_text(LIMITED, encoding="utf-8")
    system.setup()
    system.start(system.bridge, system.worker)
    return system


def _free(system: System) -> None:
    (system.pool_folder / "free").touch()


def _wait_until_parked(system: System, count: int) -> list[dict[str, Any]]:
    return wait_until(
        lambda: system.worker.state()["parked"], 20, f"{count} to be parked", accept=lambda parked: len(parked) == count
    )


def _wait_until_empty(system: System) -> None:
    wait_until(system.outstanding, 20, "NSQ to hold nothing", accept=lambda left: left == 0, while_true=system.trouble)


def test_a_parked_request_needs_no_slot_and_no_new_delivery(make_system: MakeSystem) -> None:
    system = _limited(make_system, slots=2)
    system.send_requests(["limited"], limited=True)
    _wait_until_parked(system, 1)
    parked_at = time.monotonic()
    system.send_requests(range(20))
    wait_until(lambda: len(system.results()), 20, "the others' results", accept=lambda count: count == 20)
    # Longer than nsqd waits for a word.
    time.sleep(max(0, parked_at + 2 * MSG_TIMEOUT_SECONDS - time.monotonic()))
    [parked] = _wait_until_parked(system, 1)
    assert (parked["key"], parked["attempt"]) == ('["limited"]', 1)
    channel = system.channel()
    assert (channel["in_flight_count"], channel["timeout_count"], channel["requeue_count"]) == (1, 0, 0)
    assert handlers.runs(system)["limited"] > 3

    _free(system)
    _wait_until_empty(system)
    assert system.worker.state()["parked"] == []
    # That it is tried again is told again, and all of it is one delivery.
    *starts, done = [(event["event"], event["attempt"]) for event in system.story("limited")]
    assert len(starts) > 3
    assert set(starts) == {("started", 1)}
    assert done == ("done", 1)


def test_a_pool_whose_requests_are_parked_takes_no_more_than_it_finishes(make_system: MakeSystem) -> None:
    system = _limited(make_system, slots=2)
    with Sampler(system.worker.state) as sampler:
        system.send_requests((f"limited-{number}" for number in range(20)), limited=True)
        wait_until(system.outstanding, 20, "all on NSQ", accept=lambda held: held == 20)
        wait_until(lambda: max(handlers.runs(system).values()), 20, "several tries", accept=lambda runs: runs >= 4)
    here = [sum(len(state[where]) for where in ("running", "held", "parked")) for state in sampler.samples]
    assert max(here) <= 3, "two slots, and one that a race may bring"
    assert system.outstanding() == 20
    _free(system)
    _wait_until_empty(system)
    assert len(system.results()) == 20
    assert {event["attempt"] for event in system.events("done")} == {1}


def test_a_request_goes_back_after_the_park_limit(make_system: MakeSystem) -> None:
    system = _limited(make_system, slots=1, pool={"park_limit_seconds": 1, "max_attempts": 100})
    system.send_requests(["limited"], limited=True)
    [requeued, *_] = wait_until(lambda: system.events("requeued"), 20, "it to go back")
    assert requeued["attempt"] == 1
    assert "all ten are in use" in requeued["reason"]
    wait_until(lambda: system.story("limited")[-1], 20, "its next delivery", accept=lambda event: event["attempt"] == 2)
    _free(system)
    _wait_until_empty(system)
    assert len(system.results()) == 1


def test_release_gives_back_what_is_parked_of_a_lane_and_leaves_what_runs(make_system: MakeSystem) -> None:
    system = _limited(make_system, slots=4, lanes={"one": {}, "two": {}})
    system.send_requests(["a", "b"], lane="one", limited=True, delay=60)
    system.send_requests(["c"], lane="two", limited=True)
    _wait_until_parked(system, 3)
    system.send_requests(["gated"], lane="one", gated=True)
    wait_until(lambda: handlers.runs(system)["gated"], 20, "the gated one to run")

    # As `slowjobs pause` will: the channel first, or it would all come again.
    where = f"topic={quote(system.lanes['one'])}&channel={quote(system.pool)}"
    system.services.nsqd.post(f"/channel/pause?{where}")
    _wait_until_parked(system, 3)
    assert system.worker.release(system.lanes["one"], "of-a-newer-inventory") == 2
    [left] = _wait_until_parked(system, 1)
    assert left["key"] == '["c"]'
    assert '["gated"]' in [task["key"] for task in system.worker.state()["running"]]
    wait_until(lambda: system.channel(lane="one"), 5, "two waiting", accept=lambda channel: channel["depth"] == 2)
    assert [event["event"] for event in system.story("a")][-1] == "requeued"

    _free(system)
    system.services.nsqd.post(f"/channel/unpause?{where}")
    handlers.open_gate(system)
    _wait_until_empty(system)
    assert len(system.results()) == 4
    assert handlers.runs(system)["gated"] == 1


def test_a_stopping_worker_gives_back_at_once_what_is_parked(make_system: MakeSystem) -> None:
    system = _limited(make_system, slots=3)
    system.send_requests(["a", "b"], limited=True, delay=60)
    _wait_until_parked(system, 2)
    system.send_requests(["gated"], gated=True)
    wait_until(lambda: handlers.runs(system)["gated"], 20, "the gated one to run")
    # The persisters do not run, hence the exit status.
    [worker] = json.loads(system.run("status", "--json", expect=1).stdout)["workers"]
    assert (worker["running"], worker["parked"]) == (1, 2)
    system.worker.signal(signal.SIGTERM)
    back = wait_until(system.channel, 2, "both to wait on NSQ", accept=lambda channel: channel["depth"] == 2)
    assert (back["in_flight_count"], back["timeout_count"]) == (1, 0)
    assert system.worker.is_running, "the gated one runs"
    handlers.open_gate(system)
    assert system.worker.wait(10) == 0
    assert [result["file_id"] for result in system.results()] == ["gated"]


def test_a_result_with_a_status_that_the_pool_names_is_tried_again(make_system: MakeSystem) -> None:
    script = (
        'request=$(cat); echo "$request" >> runs.log; case "$request" in'
        """ *never*) printf '{"status": "busy-server"}';;"""
        """ *once*) if [ -e tried ]; then printf '{"status": "success"}';"""
        """ else touch tried; printf '{"status": "busy-server"}'; fi;;"""
        """ *) printf '{"status": "gone"}';; esac"""
    )
    system = make_system(handler=("/bin/sh", "-c", script), pool={"retry_statuses": ["busy-server"], "max_attempts": 3})
    system.setup()
    system.send_requests(["never", "once", "other"])
    system.start()
    system.wait_for_results(["once", "other"], 30)
    [letter] = system.wait_for_dead_letters(1, 30)
    assert (letter["key"], letter["reason"], letter["attempts"]) == ('["never"]', "attempts-exhausted", 3)
    assert "busy-server" in letter["error"]
    assert system.result_rows() == {"once": "success", "other": "gone"}
    assert handlers.runs(system) == {"never": 3, "once": 2, "other": 1}
