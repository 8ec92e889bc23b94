"""What went in came out, whatever was killed."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import pytest

from support import handlers
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem

pytestmark = pytest.mark.acceptance


def test_nothing_is_lost_when_worker_and_bridge_are_killed_while_work_flows(make_system: MakeSystem) -> None:
    # A small cap keeps the bridge publishing to the end, so that every kill meets it at work.
    system = make_system(handler=("/bin/sh", "-c", "sleep 0.02; cat"), slots=8, lane={"max_outstanding": 100})
    system.setup()
    system.start()
    ids = [f"file-{number}" for number in range(1500)]
    assert system.send_requests(ids) == len(ids)

    kills = 0
    for victim, done in zip(itertools.cycle([system.worker, system.bridge]), (150, 350, 550, 750, 950, 1150)):
        wait_until(
            lambda: len(system.result_rows()), 60, f"{done} results", accept=lambda count, done=done: count >= done
        )
        victim.kill()
        victim.start()
        kills += 1

    system.wait_for_results(ids, 60)
    wait_until(system.outstanding, 20, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert set(system.request_rows()) == set(ids)
    assert set(system.result_rows()) == set(ids)
    assert system.dead_letters() == []
    written = [result["file_id"] for result in system.results()]
    assert set(written) == set(ids)
    # Doubled: what was in flight at a kill, or published and not committed.
    assert len(written) - len(ids) <= kills * 200
    wait_until(lambda: system.committed("slowjobs-bridge"), 10, "all committed", accept=lambda n: n == len(ids))


def test_a_request_that_nsqd_did_not_acknowledge_survives_the_bridge(make_system: MakeSystem) -> None:
    """The bridge is killed after it sent a batch and before nsqd's answer: its offset must not be committed yet."""
    system = make_system()
    system.setup()
    with system.services.swallowing_nsqd() as swallowing:
        system.documents["bridge"]["nsqd"]["hosts"]["svc506"]["tcp_address"] = swallowing.address
        system.write()
        system.start(system.bridge)
        ids = [f"file-{number}" for number in range(50)]
        system.send_requests(ids)
        wait_until(lambda: swallowing.swallowed, 30, "the bridge to publish", while_true=system.trouble)
        # Time for a bridge that commits too early to do it.
        time.sleep(1)
        assert system.committed("slowjobs-bridge") == 0
        system.bridge.kill()
    assert system.outstanding() == 0

    system.documents["bridge"]["nsqd"]["hosts"]["svc506"]["tcp_address"] = system.services.nsqd.tcp_address
    system.write()
    system.start()
    system.wait_for_results(ids, 30)


def test_a_result_that_kafka_did_not_acknowledge_survives_the_worker(make_system: MakeSystem) -> None:
    """The worker is killed when its handlers have ended and Kafka is away: no request may be finished on NSQ yet."""
    system = make_system(handler=handlers.GATED, slots=4)
    system.setup()
    ids = ["a", "b", "c", "d"]
    system.send_requests(ids)
    system.start()
    wait_until(lambda: len(handlers.runs(system)), 30, "all handlers to run", accept=lambda n: n == len(ids))
    system.services.kafka.stop()
    handlers.open_gate(system)
    wait_until(lambda: len(handlers.ends(system)), 10, "all handlers to end", accept=lambda n: n == len(ids))
    # Time for a worker that finishes too early to do it.
    time.sleep(1)
    assert system.outstanding() == len(ids)
    system.worker.kill()

    system.services.kafka.start()
    system.worker.start()
    system.wait_for_results(ids, 40)
    wait_until(system.outstanding, 10, "NSQ to hold nothing", accept=lambda left: left == 0)


def test_rows_that_postgresql_did_not_commit_survive_the_persister(make_system: MakeSystem) -> None:
    """The persister is killed inside its transaction: its offsets must not be committed yet."""
    system = make_system()
    system.setup()
    persister = system.persisters["requests"]
    ids = [f"file-{number}" for number in range(300)]
    with system.locked("job_request"):
        system.send_requests(ids)
        system.start(persister)
        wait_until(system.waits_for_lock, 30, "the persister to write", while_true=system.trouble)
        # Time for a persister that commits too early to do it.
        time.sleep(1)
        assert system.committed("slowjobs-persister-requests") == 0
        persister.kill()

    persister.start()
    wait_until(lambda: set(system.request_rows()), 30, "all rows", accept=lambda rows: rows == set(ids))


def test_killing_the_persisters_neither_loses_nor_doubles_a_row(make_system: MakeSystem) -> None:
    system = make_system(slots=2)
    system.setup()
    system.start()
    ids = [f"file-{number}" for number in range(600)]
    for part in range(4):
        system.send(request(file_id, part=part) for file_id in ids[part * 150 : (part + 1) * 150])
        wait_until(
            lambda: len(system.result_rows()), 60, "some results", accept=lambda n, part=part: n >= part * 150 + 20
        )
        for persister in system.persisters.values():
            persister.kill()
        system.start(*system.persisters.values())
    system.wait_for_results(ids, 60)
    wait_until(lambda: len(system.request_rows()), 10, "all request rows", accept=lambda n: n == len(ids))
    assert system.rows("SELECT count(*), count(DISTINCT key) FROM job_result") == [(len(ids), len(ids))]
    assert system.rows("SELECT count(*), count(DISTINCT key) FROM job_request") == [(len(ids), len(ids))]


def test_the_newest_request_and_the_newest_result_win(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start()
    system.send([request("same", turn=1)])
    system.wait_for_results(["same"], 30)
    both = "SELECT job_request.created, job_result.updated FROM job_request JOIN job_result USING (kind, key)"
    [(created, updated)] = wait_until(lambda: system.rows(both), 20, "the first")
    system.send([request("same", turn=2)])
    wait_until(
        lambda: system.rows("SELECT result->>'turn' FROM job_result"), 20, "the second", accept=lambda r: r == [("2",)]
    )
    newest = "SELECT request->>'turn', created FROM job_request"
    wait_until(lambda: system.rows(newest), 20, "the newest", accept=lambda rows: rows == [("2", created)])
    assert system.rows("SELECT updated > %s FROM job_result", (updated,)) == [(True,)]
