"""What the ledger is told: each step is on Kafka before it is taken, and a crash between two steps loses nothing."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from support import handlers
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

MEMBERS = {"v", "event", "worker", "lane", "position", "attempt", "nsqd", "until", "outcome", "reason", "at"}

#: Fails once for a request that says so, rejects one that says so, echoes the others.
VARIED = """\
request=$(cat)
case "$request" in
    *reject*) echo 'not this one' >&2; exit 65 ;;
    *again*) if [ ! -e tried ]; then touch tried; echo 'come back' >&2; exit 75; fi ;;
esac
printf %s "$request"
"""
#: Notes that it has begun and waits at the gate; then it does not want one request, and puts another off.
GATED_CLASS = """\
import json
import time
from pathlib import Path

from slowjobs.outcomes import Retry

HERE = Path(__file__).parent


class Gated:
    def want(self, request):
        with (HERE / "runs.log").open("a") as log:
            log.write(json.dumps(request) + "\\n")
        while not (HERE / "gate").exists():
            time.sleep(0.05)
        return request["file_id"] != "unwanted"

    def process(self, request, key=None):
        if request["file_id"] == "later":
            raise Retry(delay=60, reason="in a minute")
        return request
"""


def _told(system: System, file_id: str) -> list[str]:
    return [event["event"] for event in system.story(file_id)]


def _wait_until_told(system: System, file_id: str, last: str, seconds: float = 20) -> list[str]:
    return wait_until(
        lambda: _told(system, file_id),
        seconds,
        f"{file_id} to be {last}",
        accept=lambda told: told[-1:] == [last],
        while_true=system.trouble,
    )


def test_each_step_of_a_request_is_told_with_all_that_the_ledger_needs(make_system: MakeSystem) -> None:
    system = make_system(handler=("/bin/sh", "-c", VARIED), slots=2)
    system.setup()
    system.send_requests(["good", "reject", "again"])
    system.start(system.bridge, system.worker)
    wait_until(lambda: system.events("done"), 30, "three to be done", accept=lambda done: len(done) == 3)
    # Nobody but NSQ knows of this one, so there is nothing to tell.
    system.services.nsqd.publish(system.lane, request("by hand"))
    wait_until(lambda: len(system.results()), 20, "its result", accept=lambda count: count == 3)
    wait_until(system.outstanding, 10, "NSQ to hold nothing", accept=lambda left: left == 0)

    [up, *rest] = system.events()
    worker = system.worker.state()["worker"]
    assert worker.startswith(f"worker1/{system.pool}/")
    assert (up["event"], up["worker"], up["position"]) == ("up", worker, None)
    assert len(rest) == 2 + 2 + 4, "and nothing of what was published by hand"
    for event in rest:
        assert set(event) == MEMBERS
        assert (event["v"], event["lane"], event["nsqd"], event["worker"]) == (1, system.lane, "svc506", worker)
        assert abs(datetime.fromisoformat(event["at"]).timestamp() - time.time()) < 60

    good = system.story("good")
    assert [(event["event"], event["attempt"], event["outcome"]) for event in good] == [
        ("started", 1, None),
        ("done", 1, "result"),
    ]
    rejected = system.story("reject")
    assert [(event["event"], event["outcome"], event["reason"]) for event in rejected] == [
        ("started", None, None),
        ("done", "dead", "rejected"),
    ]
    again = system.story("again")
    assert [(event["event"], event["attempt"]) for event in again] == [
        ("started", 1),
        ("requeued", 1),
        ("started", 2),
        ("done", 2),
    ]
    assert "come back" in again[1]["reason"]
    assert again[1]["at"] <= again[1]["until"] <= again[2]["at"]


def test_no_step_is_taken_before_kafka_knows_of_it(make_system: MakeSystem) -> None:
    """Kafka stands still: no handler begins, nothing is put back, nothing is finished."""
    system = make_system(slots=3, pool={"handler": {"python": "gated:Gated", "interpreter": sys.executable}})
    (system.pool_folder / "gated.py").write_text(GATED_CLASS, encoding="utf-8")
    system.setup()
    system.send_requests(["wanted", "unwanted", "later"])
    system.start(system.bridge, system.worker)
    wait_until(lambda: len(handlers.runs(system)), 30, "three to run", accept=lambda count: count == 3)
    system.send_requests(["next"])
    wait_until(system.outstanding, 10, "the next on NSQ", accept=lambda held: held == 4)

    system.services.kafka.freeze()
    handlers.open_gate(system)
    state = wait_until(
        system.worker.state, 10, "the three to end", accept=lambda state: state["held"] and not state["running"]
    )
    assert [task["key"] for task in state["held"]] == ['["next"]']
    # Time enough for a worker that goes on too early to do it.
    time.sleep(1)
    assert "next" not in handlers.runs(system)
    channel = system.channel()
    assert (channel["in_flight_count"], channel["deferred_count"], channel["requeue_count"]) == (4, 0, 0)

    system.services.kafka.thaw()
    # Twice: the ledger counts the time of a run from its event, which was old when Kafka had it.
    assert _wait_until_told(system, "next", "done") == ["started", "started", "done"]
    for file_id, event, outcome in (("wanted", "done", "result"), ("unwanted", "done", "skipped")):
        _wait_until_told(system, file_id, event)
        assert system.story(file_id)[-1]["outcome"] == outcome
    assert _wait_until_told(system, "later", "requeued") == ["started", "requeued"]
    wait_until(system.channel, 5, "one put off", accept=lambda c: (c["in_flight_count"], c["deferred_count"]) == (0, 1))
    assert sorted(result["file_id"] for result in system.results()) == ["next", "wanted"]
    assert system.dead_letters() == []


def test_a_request_is_not_done_before_its_result_is_on_kafka(make_system: MakeSystem) -> None:
    """Kafka refuses the result; a worker that says "done" first has said it by then."""
    system = make_system(slots=1)
    system.services.kafka.create_topic(system.result_topic, config={"max.message.bytes": "2000"})
    system.setup()
    system.send([request("large", text="x" * 10_000)])
    system.start(system.bridge, system.worker)
    [letter] = system.wait_for_dead_letters(1, 30)
    assert letter["reason"] == "result-too-large"
    _wait_until_told(system, "large", "done")
    assert [event["outcome"] for event in system.story("large")] == [None, "dead"]


def test_a_worker_that_is_killed_before_its_fin_arrives_has_said_all_and_runs_it_again(
    make_system: MakeSystem,
) -> None:
    system = make_system(handler=handlers.NOTING, slots=1)
    system.setup()
    nsqd = system.documents["worker1"]["nsqd"]["hosts"]["svc506"]
    with system.services.swallowing_nsqd(b"FIN ") as swallowing:
        nsqd["tcp_address"] = swallowing.address
        system.write()
        system.send_requests(["a"])
        system.start(system.bridge, system.worker)
        wait_until(lambda: swallowing.swallowed, 30, "the FIN", while_true=system.trouble)
        assert _told(system, "a") == ["started", "done"]
        assert len(system.results()) == 1
        system.worker.kill()

    nsqd["tcp_address"] = system.services.nsqd.tcp_address
    system.write()
    system.worker.start()
    wait_until(system.outstanding, 20, "NSQ to hold nothing", accept=lambda left: left == 0)
    story = system.story("a")
    assert [(event["event"], event["attempt"]) for event in story] == [
        ("started", 1),
        ("done", 1),
        ("started", 2),
        ("done", 2),
    ]
    assert {result["_slowjobs"]["key"] for result in system.results()} == {'["a"]'}
    assert len({event["worker"] for event in system.events("up")}) == 2


def test_a_request_that_waits_here_when_its_connection_breaks_is_abandoned_and_not_started(
    make_system: MakeSystem,
) -> None:
    system = make_system(handler=handlers.GATED, slots=1, lanes={"one": {}, "two": {}})
    system.setup()
    with system.services.nsqd_behind_proxy() as proxy:
        system.documents["worker1"]["nsqd"]["hosts"]["svc506"]["tcp_address"] = proxy.address
        system.write()
        system.start(system.bridge, system.worker)
        held, running = _hold_one(system)
        assert set(handlers.runs(system)) == {running}
        proxy.break_connections()
        wait_until(lambda: _told(system, held), 10, "it to be abandoned", accept=lambda told: "abandoned" in told)
        # nsqd gives it to others, of which there is none; here it has to wait for its turn again.
        wait_until(lambda: system.channel(lane=held)["depth"], 10, "it on NSQ", accept=lambda depth: depth == 1)
        assert set(handlers.runs(system)) == {running}
        handlers.open_gate(system)
        _wait_until_told(system, held, "done")
        _wait_until_told(system, running, "done")
    assert handlers.runs(system) == {held: 1, running: 1}
    last = system.story(held)[-2:]
    assert [(event["event"], event["attempt"] > 1) for event in last] == [("started", True), ("done", True)]


def _hold_one(system: System) -> tuple[str, str]:
    """Give a worker with one slot a request of each of its two lanes at once; return which is held and which runs."""
    for lane in system.lanes:
        wait_until(
            lambda lane=lane: system.channel(lane=lane)["clients"],
            20,
            "an idle worker to listen to both lanes",
            accept=lambda clients: [client["ready_count"] for client in clients] == [1],
        )
    system.worker.freeze()
    for lane in system.lanes:
        system.send_requests([lane], lane=lane)
        wait_until(lambda lane=lane: system.channel(lane=lane), 20, "both sent", accept=lambda c: c["in_flight_count"])
    system.worker.thaw()
    state = wait_until(system.worker.state, 10, "one to run", accept=lambda state: state["running"] and state["held"])
    [held], [running] = state["held"], state["running"]
    wait_until(lambda: handlers.runs(system), 10, "its handler")
    short = {name: short for short, name in system.lanes.items()}
    return short[held["lane"]], short[running["lane"]]
