"""Old requests are sent again: those that need it, once, and nothing that is still on its way."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from slowjobs import kafka, settings
from slowjobs.bridge import bridge
from support import handlers
from support.system import INGEST, SLOWJOBS, ingest_request
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

#: Ends every request as a dead letter: it was worked on and has no result.
REJECTING = ("/bin/sh", "-c", "exit 65")
#: Does with a request what its file_id says.
SORTING = ("/bin/sh", "-c", 'case "$(cat)" in *runs*) exec sleep 60;; *deferred*) exit 75;; *) exit 65;; esac')


def _insert_requests(system: System, count: int, *, checked_days_ago: int | None = None) -> None:
    """Insert requests that came before there were positions, with a result of some age or without any."""
    system.rows(
        "INSERT INTO job_request SELECT %s, format('[\"file-%%s\"]', n), now() - interval '2 days',"
        " jsonb_build_object('file_id', format('file-%%s', n)) FROM generate_series(1, %s) AS n",
        (system.kind, count),
    )
    if checked_days_ago is not None:
        system.rows(
            "INSERT INTO job_result"
            " SELECT kind, key, now() - make_interval(days => %s), 'success', true FROM job_request",
            (checked_days_ago,),
        )


def _reenqueue(system: System, *arguments: str, lane: str | None = None, expect: int = 0) -> dict[str, Any]:
    """Run it without asking and return its document."""
    selection = arguments or ("--window", "8d")
    if "--policy" not in arguments:
        selection = (lane or system.lane, *selection)
    said = system.run("reenqueue", *selection, "--yes", "--json", expect=expect)
    document: dict[str, Any] = json.loads(said.stdout)
    return document


@contextmanager
def _process(system: System, *arguments: str, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**system.environment, "SLOWJOBS_CONFIG": str(system.cli_config)}
    argv = [str(SLOWJOBS), "reenqueue", system.lane, "--window", "8d", *arguments]
    with subprocess.Popen(argv, env=environment, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def _wait_until_done(system: System, count: int) -> None:
    """Wait until nothing of the first lane's ``count`` requests is on its way any more."""
    wait_until(lambda: system.committed("slowjobs-bridge"), 20, "its commit", accept=lambda offset: offset == count)
    wait_until(system.outstanding, 20, "an empty lane", accept=lambda held: held == 0)


def _sent_keys(system: System) -> Counter[str]:
    return Counter(json.loads(value or b"null")["file_id"] for value in system.sent().values())


def test_a_policy_that_runs_while_nobody_works_sends_its_limit_once_and_nothing_is_checked_twice(
    make_system: MakeSystem,
) -> None:
    """2,500 files that were not checked for 90 days, every half hour, with the workers stopped; here it is 300."""
    system = make_system(handler=handlers.NOTING, slots=8, lane={"max_outstanding": 100})
    policy = {"lane": system.lane, "window_days": 3650, "result_older_than_days": 90, "limit": 300}
    system.documents["slowjobs"]["policies"] = {"fixity": policy}
    system.write()
    system.setup()
    _insert_requests(system, 1000, checked_days_ago=100)
    system.start(*system.persisters.values())

    def run_policy() -> int:
        return int(_reenqueue(system, "--policy", "fixity")["sent"])

    # Not even the bridge works at first.
    assert [run_policy() for _ in range(2)] == [300, 0]
    system.start(system.bridge)
    assert run_policy() == 0
    wait_until(system.outstanding, 10, "a full lane", accept=lambda held: held == 100)
    assert run_policy() == 0
    assert len(system.sent()) == 300

    system.start(system.worker)
    wait_until(lambda: len(system.results()), 60, "300 results", accept=lambda count: count >= 300)
    _wait_until_done(system, 300)
    assert run_policy() == 300, "the next ones"
    wait_until(lambda: len(system.results()), 60, "600 results", accept=lambda count: count >= 600)
    assert set(_sent_keys(system).values()) == {1}
    assert set(Counter(result["file_id"] for result in system.results()).values()) == {1}
    assert system.rows("SELECT count(*), max(reenqueue_count), max(last_seen) FROM slowjobs_request_position") == [
        (600, 1, None)
    ]


def test_what_a_killed_run_has_sent_is_not_sent_again(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    _insert_requests(system, 1200)
    system.start(*system.persisters.values())
    # Killed at the worst moment: a batch is on Kafka, and not in PostgreSQL.
    with system.locked("slowjobs_request_position"), _process(system, "--yes"):
        wait_until(lambda: len(system.sent()), 30, "a batch on Kafka", accept=lambda count: count == 500)
    assert _reenqueue(system)["sent"] == 1200 - 500
    # Neither does a run just behind a complete one.
    again = _reenqueue(system)
    assert again["sent"] == 0
    assert again["left_out"] == [{"reason": "on-kafka", "lane": system.lane, "requests": 1200}]
    assert set(_sent_keys(system).values()) == {1}
    assert len(system.sent()) == 1200


def test_what_is_on_its_way_is_left_out_and_keeps_nothing_else_from_being_sent(make_system: MakeSystem) -> None:
    retry = {"base_seconds": 800, "cap_seconds": 800}
    pool = {"retry": retry, "max_attempts": 1000}
    system = make_system(handler=SORTING, pool=pool, lanes={"main": {}, "other": {}})
    system.setup()
    system.start()
    system.send_requests(["runs", "is deferred", "ended without a result"])
    system.send_requests(["runs, too"], lane="other")
    system.wait_for_dead_letters(1, 30)
    for figure, lane in (("in_flight_count", "main"), ("deferred_count", "main"), ("in_flight_count", "other")):
        wait_until(lambda f=figure, at=lane: system.channel(lane=at)[f], 20, f"{figure} 1", accept=lambda n: n == 1)
    dry_run = ("--window", "8d", "--dry-run")
    document = wait_until(
        lambda: _reenqueue(system, *dry_run), 30, "its end in the ledger", accept=lambda said: said["selected"] == 1
    )
    assert (document["sent"], document["sample"]) == (0, [{"file_id": "ended without a result"}])
    assert document["outstanding"] == {system.lanes["main"]: 2, system.lanes["other"]: 1}

    # The bridge is down, and what it knew is on Kafka.
    system.bridge.stop()
    system.send_requests(["waits on Kafka"])
    assert _reenqueue(system, "--window", "8d", "--limit", "3")["sent"] == 0, "3 are not done"
    said = system.run("reenqueue", system.lane, *dry_run).stdout
    assert f"2 left out: handed to NSQ for lane {system.lane}, not done yet" in said
    document = _reenqueue(system)
    assert document["sent"] == 1
    assert document["left_out"] == [
        {"reason": "in-nsq", "lane": system.lanes["main"], "requests": 2},
        {"reason": "in-nsq", "lane": system.lanes["other"], "requests": 1},
        {"reason": "on-kafka", "lane": system.lanes["main"], "requests": 1},
    ]
    assert _sent_keys(system) == {"runs": 1, "is deferred": 1, "ended without a result": 2, "waits on Kafka": 1}
    headers = [message.headers() for message in system.messages()]
    assert [each for each in headers if each] == [[("slowjobs-reenqueued", b"person")]]


def test_one_of_the_requests_that_share_a_result_is_sent_as_it_came(make_system: MakeSystem) -> None:
    system = make_system(kind=INGEST, handler=REJECTING)
    system.setup()
    system.start()
    shared = "https://example.org/shared"
    odd = {"release_stage": 5, "ingest_request_source": "someone", "ext_ids": {"doi": "10.1/x"}, "n": 1.50}
    system.send(ingest_request(shared, link_source_id=f"10.1/{number}", **odd, number=number) for number in range(3))
    system.wait_for_dead_letters(3, 30)
    _wait_until_done(system, 3)
    before = [json.loads(value or b"null") for value in system.sent().values()]
    document = _reenqueue(system)
    assert document["sent"] == 1
    [sent] = [message for message in system.messages() if message.headers()]
    assert json.loads(sent.value()) in before
    assert json.loads(sent.key()) == ["doi", json.loads(sent.value())["link_source_id"], "pdf", shared]


def test_it_shows_what_it_would_send_and_asks(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    _insert_requests(system, 20)
    system.start(*system.persisters.values())
    # Nobody to ask: refused, and nothing sent.
    said = system.run("reenqueue", system.lane, "--window", "8d", expect=4)
    assert "--yes" in said.stderr
    for answer, sent in ((b"n\n", 0), (b"y\n", 20)):
        terminal, end = pty.openpty()
        with _process(system, stdin=end, stdout=subprocess.PIPE) as process:
            os.write(terminal, answer)
            said_by_it, _ = process.communicate(timeout=30)
        os.close(terminal)
        os.close(end)
        assert said_by_it.decode().count('{"file_id": "file-') == 5 * (1 + (answer == b"y\n"))
        assert "20 requests to send" in said_by_it.decode()
        assert len(system.sent()) == sent


def test_a_run_that_could_not_be_right_sends_nothing_and_says_why(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    _insert_requests(system, 1)
    window = ("reenqueue", system.lane, "--window", "8d", "--yes")

    # A persister that does not write hides what was seen, or what came of it.
    system.send_requests(["not-written"])
    said = system.run(*window, "--timeout", "1s", expect=3)
    assert "slowjobs-persister@requests has 1 messages to go" in said.stderr
    system.start(system.persisters["requests"])
    wait_until(lambda: system.committed("slowjobs-persister-requests"), 30, "the request's row")
    system.services.kafka.produce(system.result_topic, [b"{}"])
    said = system.run(*window, "--timeout", "1s", expect=3)
    assert "slowjobs-persister@results has 1 messages to go" in said.stderr
    system.start(system.persisters["results"])

    # Another run of the same kind.
    with (
        closing(system.services.postgresql.connect(system.database)) as connection,
        connection.cursor() as cursor,
    ):
        name = f"slowjobs-reenqueue {system.kind}"
        cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (name,))
        assert system.kind in system.run(*window, expect=4).stderr

    # A pool whose results nobody can see.
    system.documents["slowjobs"]["pools"][system.pool]["persist_results"] = "none"
    system.write()
    assert "persist_results" in system.run(*window, expect=2).stderr

    for wrong in ((system.lane,), ("no-lane", "--window", "8d"), ("--policy", "no-policy")):
        assert "Traceback" not in system.run("reenqueue", *wrong, "--yes", expect=2).stderr
    assert len(system.sent()) == 1


async def _commit_as_bridge(system: System, metadata: str) -> None:
    properties = settings.Kafka(properties={"bootstrap.servers": system.services.kafka.address})
    secrets, topics = settings.Credentials({}, None), [system.kafka_topic]
    consumer = kafka.Consumer(properties, secrets, group=bridge.GROUP, topics=topics, begin=lambda _: None)
    try:
        async with asyncio.timeout(30):
            while system.kafka_topic not in {committed.topic for committed in consumer.joined()}:
                await consumer.fetch(1, wait_seconds=0.1)
            await consumer.commit_now([kafka.Committed(system.kafka_topic, 0, 0, metadata)])
    finally:
        await consumer.close()


def test_what_a_bridge_of_another_version_has_committed_is_not_guessed_at(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    _insert_requests(system, 1)
    system.start(*system.persisters.values())
    asyncio.run(_commit_as_bridge(system, '{"v": 99}'))
    said = system.run("reenqueue", system.lane, "--window", "8d", "--yes", expect=1)
    assert "got 99: upgrade slowjobs here; nothing was sent" in said.stderr
    status = json.loads(system.run("status", "--json", expect=1).stdout)
    assert (status["lanes"][0]["unfinished"], status["lanes"][0]["waiting"]) == (None, 0)
    assert "got 99: upgrade slowjobs here" in str(status["errors"])
