"""`slowjobs find`: where one request is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from slowjobs import documents, kinds, postgres, settings
from slowjobs.operations import find
from support.postgresql import PASSWORD
from support.system import DEAD_LETTERS, INGEST, ingest_request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

URL = "https://example.org/paper"
#: enough rows for the planner to want an index.
FILL = (
    """
    INSERT INTO ingest_request (link_source, link_source_id, ingest_type, base_url)
    SELECT CASE WHEN n < 10000 THEN 'arxiv' ELSE 'doi' END, n::text, 'pdf', 'https://example.org/' || n
    FROM generate_series(1, 30000) AS n
    """,
    """
    INSERT INTO ingest_file_result (ingest_type, base_url, hit)
    SELECT ingest_type, base_url, true FROM ingest_request
    """,
    """
    INSERT INTO slowjobs_request_position (kind, key, topic, partition, "offset")
    SELECT 'ingest', link_source_id, 'topic', 0, 0 FROM ingest_request
    """,
    "ANALYZE",
)


def _find(system: System, key: str) -> list[dict[str, Any]]:
    config = settings.load(system.cli_config, settings.CliSettings)
    matches, failures = find.find(config, settings.Credentials({}, PASSWORD), find.Wanted.of(key))
    assert failures == []
    return [match.as_json() for match in matches]


def test_a_request_is_found_on_all_its_way_and_with_half_the_system_down(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    assert "0 found" in system.run("find", "a file", expect=1).stdout
    assert "no request can have it" in system.run("find", '["a\\u0000"]', expect=2).stderr

    system.start(*system.persisters.values())
    system.send_requests(["a file", "another", 5])
    wait_until(lambda: len(system.request_rows()), 20, "the rows", accept=lambda count: count == 3)
    [match] = _find(system, "a file")
    assert (match["kind"], match["key"], match["lane"]) == (system.kind, '["a file"]', system.lane)
    assert match["request"]["request"] == {"file_id": "a file"}
    assert match["position"]["topic"] == system.kafka_topic
    assert (match["result"], match["in_backlog"], match["done"]) == (None, True, False)
    assert (match["events"], match["dead_letters"]) == ([], [])
    assert [match["key"] for key in ("5", "[5]") for match in _find(system, key)] == ["[5]", "[5]"]

    system.start(system.bridge, system.worker)
    system.wait_for_results(["a file"], 30)
    wait_until(lambda: _find(system, "a file"), 20, "the bridge's commit", accept=lambda found: found[0]["done"])
    letter = documents.DeadLetter(system.lane, "rejected", "why", "worker", b"{}", key='["a file"]')
    system.services.kafka.produce(DEAD_LETTERS, [letter.write(1000)])
    [match] = _find(system, '["a file"]')
    assert match["result"] | {"status": "success", "hit": True} == match["result"]
    assert [letter["reason"] for letter in match["dead_letters"]] == ["rejected"]
    shown = system.run("find", "a file").stdout
    for text in ("success (a hit)", f"lane {system.lane}: done", "dead letter", "started", "worker1/"):
        assert text in shown

    system.services.postgresql.stop()
    said = json.loads(system.run("find", "a file", "--json", expect=1).stdout)
    [match] = said["matches"]
    assert (match["request"], match["dead_letters"][0]["reason"]) == (None, "rejected")
    assert "PostgreSQL" in said["errors"][0]


def test_find_tells_what_workers_did_with_a_request_and_until_when_it_waits(make_system: MakeSystem) -> None:
    handler = ("/bin/sh", "-c", 'case "$(cat)" in *again*) exit 75;; *) exit 65;; esac')
    system = make_system(handler=handler, pool={"retry": {"base_seconds": 800, "cap_seconds": 800}})
    system.setup()
    system.start(system.persisters["requests"], system.bridge, system.worker)
    system.send_requests(["again", "fails", "fails, too"])
    system.wait_for_dead_letters(2, 30)
    wait_until(lambda: system.channel()["deferred_count"], 20, "it to be deferred", accept=lambda count: count == 1)
    wait_until(lambda: len(system.request_rows()), 20, "the rows", accept=lambda count: count == 3)

    [match] = wait_until(
        lambda: _find(system, "again"), 20, "its commit", accept=lambda found: not found[0]["in_backlog"]
    )
    assert match["done"] is False
    started, requeued = match["events"]
    assert [event["event"] for event in match["events"]] == ["started", "requeued"]
    assert started["worker"].startswith(f"worker1/{system.pool}/")
    assert (started["attempt"], started["nsqd"], started["until"]) == (1, "svc506", None)
    assert documents.seconds(requeued["until"]) > documents.seconds(requeued["at"]) >= documents.seconds(started["at"])
    shown = system.run("find", "again").stdout
    assert f"lane {system.lane}: handed to NSQ, not done" in shown
    assert f"  requeued     {requeued['at']}, {requeued['worker']}, attempt 1, from svc506, waits until" in shown

    [match] = _find(system, "fails")
    assert [event["outcome"] for event in match["events"]] == [None, "dead"]
    # It was sent again since: what became of the older one is known by its dead letter.
    system.send_requests(["fails"])
    system.wait_for_dead_letters(3, 30)
    [match] = wait_until(lambda: _find(system, "fails"), 20, "both", accept=lambda found: len(found[0]["events"]) == 4)
    assert [event["event"] for event in match["events"]] == ["started", "done"] * 2


def test_an_ingest_request_is_found_by_either_key_and_by_its_address_or_its_source(make_system: MakeSystem) -> None:
    system = make_system(kind=INGEST)
    system.setup()
    system.start(*system.persisters.values())
    system.send(
        [ingest_request(URL), ingest_request(URL, link_source="arxiv", link_source_id="1"), ingest_request(f"{URL}/2")]
    )
    count = "SELECT count(*) FROM slowjobs_request_position"
    wait_until(lambda: system.rows(count), 20, "the rows", accept=lambda rows: rows == [(3,)])
    system.rows(
        "INSERT INTO ingest_file_result (ingest_type, base_url, hit, status) VALUES ('pdf', %s, true, 'success'),"
        " ('html', %s, false, 'no-capture')",
        (URL, URL),
    )
    doi, arxiv = f'["doi", "10.123/abc", "pdf", "{URL}"]', f'["arxiv", "1", "pdf", "{URL}"]'
    for key, expected in {
        doi: {doi: "success"},
        f'["pdf", "{URL}"]': {doi: "success", arxiv: "success"},
        f'["html","{URL}"]': {None: "no-capture"},
        URL: {doi: "success", arxiv: "success", None: "no-capture"},
        "1": {arxiv: "success"},
        "10.123/abc": {doi: "success", doi.replace(URL, f"{URL}/2"): None},
    }.items():
        found = _find(system, key)
        assert {match["key"]: match["result"] and match["result"]["status"] for match in found} == expected
        assert all((match["position"] is None) == (match["key"] is None) for match in found)
    assert _find(system, f"{URL}/3") == []


def test_find_reads_by_indexes_alone(make_system: MakeSystem) -> None:
    system = make_system(kind=INGEST)
    system.setup()
    for statement in FILL:
        system.rows(statement)
    everything = {"kind": system.kind, "base_url": "x", "link_source_id": "x", "ingest_types": list(kinds.INGEST_TYPES)}
    plan = str(_explain(system, "find_ingest", everything))
    assert "Index Scan" in plan
    for table in ("ingest_request", "ingest_file_result", "slowjobs_request_position"):
        assert f"Seq Scan on {table}" not in plan


def _explain(system: System, name: str, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
    connection = system.services.postgresql.connect(system.database)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {postgres.statement(name)}", parameters)
            return list(cursor.fetchall())
    finally:
        connection.close()
