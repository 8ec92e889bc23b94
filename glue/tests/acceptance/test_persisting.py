"""What the persisters make of requests and results: rows of both types, large ones, and those of nobody's kind."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from slowjobs import documents
from support.postgresql import SUPERUSER, USER
from support.system import INGEST, ingest_request, request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

MEBIBYTE = 1024 * 1024
#: as the design has them, without anything of ours.
SANDCRAWLER = """
CREATE TABLE ingest_request (
    link_source text NOT NULL CHECK (octet_length(link_source) >= 1),
    link_source_id text NOT NULL CHECK (octet_length(link_source_id) >= 1),
    ingest_type text NOT NULL CHECK (octet_length(ingest_type) >= 1),
    base_url text NOT NULL CHECK (octet_length(base_url) >= 1),
    ingest_request_source text CHECK (octet_length(ingest_request_source) >= 1),
    created timestamp with time zone DEFAULT now() NOT NULL,
    release_stage text CHECK (octet_length(release_stage) >= 1),
    request jsonb,
    PRIMARY KEY (link_source, link_source_id, ingest_type, base_url)
);
CREATE INDEX ingest_request_base_url_idx ON ingest_request (base_url, ingest_type);
CREATE INDEX ingest_request_source_created_idx ON ingest_request (ingest_request_source, created);
CREATE TABLE ingest_file_result (
    ingest_type text NOT NULL CHECK (octet_length(ingest_type) >= 1),
    base_url text NOT NULL CHECK (octet_length(base_url) >= 1),
    updated timestamp with time zone DEFAULT now() NOT NULL,
    hit boolean NOT NULL,
    status text CHECK (octet_length(terminal_url) >= 1),
    terminal_url text CHECK (octet_length(terminal_url) >= 1),
    terminal_dt text CHECK (octet_length(terminal_dt) = 14),
    terminal_status_code int,
    terminal_sha1hex text CHECK (octet_length(terminal_sha1hex) = 40),
    PRIMARY KEY (ingest_type, base_url)
);
CREATE INDEX ingest_file_result_terminal_url_idx ON ingest_file_result (terminal_url);
CREATE INDEX ingest_file_result_terminal_sha1hex_idx ON ingest_file_result (terminal_sha1hex);
"""
#: gives an ingest request back as a result that found it.
FINDS = ("/bin/sh", "-c", 'printf \'{"request": %s, "status": "success", "hit": true}\' "$(cat)"')


def _result(system: System, key: list[str], members: dict[str, Any] | None = None, **origin: object) -> bytes:
    """Return a result as a worker writes it; ``origin`` comes over what it says of itself."""
    ours = {
        "kind": system.kind,
        "lane": system.lane,
        "key": json.dumps(key),
        "position": [system.kafka_topic, 0, 7],
        "finished": documents.now(),
        **origin,
    }
    return documents.write_result(json.dumps(members or {}).encode(), ours)


def test_a_database_that_somebody_else_made_is_used_as_it_is(make_system: MakeSystem) -> None:
    system = make_system(kind=INGEST, handler=FINDS)
    server = system.services.postgresql
    server.query("postgres", f'ALTER DATABASE "{system.database}" OWNER TO {SUPERUSER}', user=SUPERUSER)
    server.query(system.database, SANDCRAWLER, user=SUPERUSER)
    for grant in (
        f"GRANT SELECT, INSERT, UPDATE ON ingest_request, ingest_file_result TO {USER}",
        f"GRANT CREATE ON SCHEMA public TO {USER}",
    ):
        server.query(system.database, grant, user=SUPERUSER)

    done = system.run("setup", "--json", expect=1)
    document = json.loads(done.stdout)
    missing = [item["name"] for item in document["items"] if item["state"] == "missing"]
    assert missing == ["ingest_request_created_idx"]
    [error] = document["errors"]
    assert "as role postgres run `CREATE INDEX CONCURRENTLY ingest_request_created_idx" in error
    owner_runs = error.split("`")[1]
    server.query(system.database, owner_runs, user=SUPERUSER)
    system.run("setup", "--check", expect=0)

    system.start()
    urls = [f"https://example.org/{number}" for number in range(20)]
    system.send(ingest_request(url, release_stage="draft", ext_ids={"doi": "10.1/a"}) for url in urls)
    system.wait_for_results(urls, 30)
    wait_until(
        lambda: system.rows("SELECT release_stage, request, count(*) FROM ingest_request GROUP BY 1, 2"),
        10,
        "the requests' rows",
        accept=lambda rows: rows == [("draft", {"ext_ids": {"doi": "10.1/a"}}, 20)],
    )
    positions = 'SELECT count(*), count(DISTINCT (topic, partition, "offset")) FROM slowjobs_request_position'
    assert system.rows(positions) == [(20, 20)]


def test_a_table_with_other_columns_is_said_by_setup_and_waited_for_by_the_persister(make_system: MakeSystem) -> None:
    system = make_system(kind=INGEST)
    system.setup()
    system.rows("ALTER TABLE ingest_request DROP COLUMN release_stage")
    said = system.run("setup", "--check", expect=1).stderr
    assert "table ingest_request has no column release_stage (text)" in said
    persister = system.persisters["requests"]
    system.start(persister)
    system.send([ingest_request("https://example.org")])
    wait_until(lambda: "UndefinedColumn" in persister.log_text(), 20, "the persister to say so")
    system.rows("ALTER TABLE ingest_request ADD COLUMN release_stage text")
    wait_until(lambda: system.rows("SELECT 1 FROM ingest_request"), 20, "the row")


@pytest.mark.parametrize(("wanted", "rows"), [("full", [({"n": 1},)]), ("status", [(None,)]), ("none", [])])
def test_of_results_as_much_is_kept_as_the_pool_says(make_system: MakeSystem, wanted: str, rows: list[Any]) -> None:
    system = make_system(persist_results=wanted)
    system.setup()
    system.services.kafka.produce(system.result_topic, [_result(system, ["a"], {"n": 1})])
    system.start(system.persisters["results"])
    wait_until(
        lambda: system.services.kafka.committed("slowjobs-persister-results", system.result_topic),
        20,
        "the offset to be committed",
    )
    assert system.rows("SELECT result FROM job_result") == rows


def test_a_result_of_a_kind_or_lane_that_is_no_more_does_not_stop_the_others(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    results = [
        _result(system, ["of no kind"], kind="gone"),
        b"written by nobody of ours",
        b'{"_slowjobs": {"v": 1}}',
        _result(system, ["of no lane"], lane="gone"),
        _result(system, ["good"]),
    ]
    system.services.kafka.produce(system.result_topic, results)
    system.start(system.persisters["results"])
    wait_until(
        lambda: set(system.result_rows()), 20, "the other rows", accept=lambda rows: rows == {"of no lane", "good"}
    )
    letters = {letter["reason"]: letter for letter in system.wait_for_dead_letters(3, 20)}
    assert set(letters) == {"rejected", "not-json", "member-type"}
    rejected = letters["rejected"]
    assert "'gone'" in rejected["error"]
    assert (rejected["key"], rejected["position"]) == ('["of no kind"]', [system.kafka_topic, 0, 7])
    assert rejected["request"] is None
    assert f"(the result is {system.result_topic}[" in rejected["error"]


def test_a_request_sent_again_moves_its_position_and_not_its_row(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start(system.persisters["requests"])
    system.send_requests(["a"], turn=1)
    wait_until(system.request_rows, 20, "the row")
    system.services.kafka.produce(system.kafka_topic, [request("a", turn=2)], headers={"slowjobs-reenqueued": b"test"})
    wait_until(
        lambda: system.rows("SELECT reenqueue_count, reenqueued_at > last_seen FROM slowjobs_request_position"),
        20,
        "the position",
        accept=lambda rows: rows == [(1, True)],
    )
    assert system.request_rows() == {"a": {"file_id": "a", "turn": 1}}


def test_a_result_of_nearly_20_mebibytes_is_kept_and_a_larger_one_is_a_dead_letter(make_system: MakeSystem) -> None:
    # The size that is asked for, of a text that PostgreSQL cannot compress away, and a little for the rest.
    program = (
        "import json, os, sys; r = json.load(sys.stdin); print(json.dumps({'text': os.urandom(r['bytes'] // 2).hex()}))"
    )
    system = make_system(handler=("/usr/bin/env", "python3", "-c", program), slots=1)
    system.setup()
    system.start()
    fits = [f"fits-{number}" for number in range(4)]
    system.send(
        [request(file_id, bytes=20 * MEBIBYTE - 1000) for file_id in fits] + [request("large", bytes=21 * MEBIBYTE)]
    )
    [letter] = system.wait_for_dead_letters(1, 60)
    assert letter["reason"] == "result-too-large"
    assert str(20 * MEBIBYTE) in letter["error"]
    assert letter["request"] == {"file_id": "large", "bytes": 21 * MEBIBYTE}
    assert len(json.dumps(letter)) < 1000
    system.wait_for_results(fits, 60)
    sizes = {size for (size,) in system.rows("SELECT length(result ->> 'text') FROM job_result")}
    assert sizes == {20 * MEBIBYTE - 1000}


# Many requests, one in a hundred of them bad

#: requests; more of them by hand.
COUNT = int(os.environ.get("SLOWJOBS_TEST_REQUESTS", "4000"))
FINDER = """\
class Finder:
    def process(self, request, key=None):
        request.pop("n", None)  # more than a float holds, perhaps
        return {"request": request, "status": "success", "hit": True, "terminal": request.get("terminal")}
"""


def _malformed(number: int) -> list[tuple[str, bytes]]:
    """Return one request of each sort that its kind does not accept, with the reason of its dead letter."""

    def ingest(sort: str, **members: object) -> bytes:
        return ingest_request(f"https://bad.example.org/{sort}/{number}", **members)

    return [
        ("not-json", b"no JSON %d" % number),
        ("not-json", b'{"base_url": "\xff%d"}' % number),
        ("not-json", ingest("cut off")[:-1]),
        ("not-json", ingest("no number")[:-1] + b', "n": NaN}'),
        ("not-json", ingest("half a pair", text="\ud800")),
        ("not-an-object", b'["%d"]' % number),
        ("member-missing", b'{"link_source": "doi", "link_source_id": "%d", "ingest_type": "pdf"}' % number),
        ("member-missing", b'{"base_url": "https://example.org/%d", "ingest_type": "pdf"}' % number),
        ("member-type", ingest("empty", link_source="")),
        ("member-type", ingest("number", link_source_id=7)),
        ("member-type", ingest("type", ingest_type="spreadsheet")),
        ("member-type", ingest_request(f"gopher://example.org/{number}")),
        ("nul-character", ingest("nul", text="\0")),
        ("too-deep", ingest("deep", deep=json.loads("[" * 100 + "]" * 100))),
        ("too-large", ingest("large", text="x" * (MEBIBYTE - 250))),
        ("key-too-long", ingest("x" * 2000)),
    ]


def _refused(number: int) -> list[bytes]:
    """Return requests that their kind accepts; PostgreSQL refuses the rows of two, and the third's result's."""
    url = f"https://refused.example.org/{number}"
    return [
        ingest_request(f"{url}/numeric")[:-1] + b', "n": 1e200000}',
        # Of two members of one name the second counts; PostgreSQL looks at both.
        ingest_request(f"{url}/twice")[:-1] + b', "n": "\\ud800", "n": 1}',
        ingest_request(f"{url}/integer", terminal={"terminal_status_code": 2**40}),
    ]


def test_of_many_requests_each_bad_one_is_a_dead_letter_and_the_rest_has_results(make_system: MakeSystem) -> None:
    handler = {"python": "finder:Finder", "interpreter": sys.executable}
    system = make_system(kind=INGEST, slots=16, pool={"handler": handler})
    (system.pool_folder / "finder.py").write_text(FINDER, encoding="utf-8")
    system.setup()
    reasons = {}
    for number in range(max(1, COUNT // 100 // (len(_malformed(0)) + len(_refused(0))))):
        reasons |= {value: reason for reason, value in _malformed(number)}
        reasons |= dict.fromkeys(_refused(number), "row-rejected")
    good = [ingest_request(f"https://example.org/{number}", n=number) for number in range(COUNT - len(reasons))]
    requests = [*good, *reasons]
    random.Random(COUNT).shuffle(requests)
    system.send(requests)
    system.start()

    refused = sum(reason == "row-rejected" for reason in reasons.values())
    system.wait_for_dead_letters(len(reasons), 60 + COUNT / 100)
    results = len(good) + refused * 2 // 3
    wait_until(
        lambda: system.rows("SELECT count(*) FROM ingest_file_result WHERE hit")[0][0],
        60 + COUNT / 100,
        f"{results} results",
        accept=lambda count: count >= results,
        while_true=system.trouble,
    )
    rows = len(good) + refused // 3
    wait_until(
        lambda: system.rows("SELECT count(*) FROM ingest_request")[0][0],
        60,
        f"{rows} requests",
        accept=lambda count: count >= rows,
    )

    sent = system.sent()
    letters = system.dead_letters()
    buried = {sent[tuple(letter["position"][1:])]: letter["reason"] for letter in letters}
    assert buried == reasons
    assert len(letters) == len(reasons), "one each"
    malformed = len(reasons) - refused
    assert Counter(letter["from"] for letter in letters) == {"bridge": malformed, "persister": refused}
    assert system.persisters["requests"].metric("slowjobs_skipped_requests_total") == malformed
    for table, expected in (("ingest_file_result", results), ("ingest_request", rows)):
        assert system.rows(f"SELECT count(*) FROM {table}") == [(expected,)]  # noqa: S608 - names from here
