"""What the tables hold after rows of all sorts, in whatever order and batches they come."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies as st
import pytest

from slowjobs import documents, kinds, postgres, schema, settings
from slowjobs.persister import tables
from support.system import ingest_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services import Services

pytestmark = pytest.mark.integration

INGEST = settings.IngestKind(type="ingest")
DAY = datetime(2025, 1, 1, tzinfo=UTC)
SLOW = hypothesis.settings(deadline=None, max_examples=60)


class Database:
    """A database with all tables, and rows on their way into it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        schema.make(connection, ["job", "ingest"])

    def write(self, *rows: tables.Row) -> None:
        with self._connection.cursor() as cursor:
            tables.write(cursor, rows)

    def query(self, sql: str, parameters: dict[str, object] | None = None) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())

    def empty(self, table: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {table}")  # noqa: S608 - a name from these tests


@pytest.fixture(scope="module")
def database(_running_services: Services) -> Iterator[Database]:
    _running_services.restore()
    name = f"db_{uuid.uuid4().hex[:8]}"
    _running_services.postgresql.create_database(name)
    with closing(_running_services.postgresql.connect(name)) as connection:
        yield Database(connection)


@pytest.fixture(autouse=True)
def _empty(database: Database) -> None:
    for table in schema.tables(["job", "ingest"]):
        database.empty(table)


def _at(minutes: float) -> str:
    return (DAY + timedelta(minutes=minutes)).isoformat(timespec="microseconds")


def _ingest(raw: bytes, minutes: float = 0) -> tables.IngestRequest:
    return tables.IngestRequest.of("ingest", kinds.parse(raw, INGEST), _at(minutes))


def _kept(database: Database) -> list[tuple[Any, ...]]:
    return database.query("SELECT ingest_request_source, release_stage, request FROM ingest_request")


# Requests


@pytest.mark.parametrize("together", [True, False])
def test_the_newest_job_request_stays_with_the_time_of_the_first(database: Database, together: bool) -> None:
    rows = [tables.JobRequest("kind", '["a"]', _at(turn), f'{{"turn": {turn}}}') for turn in (1, 2, 3)]
    for part in [rows] if together else [[row] for row in rows]:
        database.write(*part)
    assert database.query("SELECT created, request FROM job_request") == [(DAY + timedelta(minutes=1), {"turn": 3})]


@pytest.mark.parametrize("together", [True, False])
def test_the_first_ingest_request_of_a_key_stays(database: Database, together: bool) -> None:
    rows = [_ingest(ingest_request("https://a.org", turn=turn), turn) for turn in (1, 2)]
    for part in [rows] if together else [[row] for row in rows]:
        database.write(*part)
    assert database.query("SELECT created, request FROM ingest_request") == [(DAY + timedelta(minutes=1), {"turn": 1})]


def test_members_go_to_their_columns_when_those_can_hold_them(database: Database) -> None:
    database.write(_ingest(ingest_request("https://a.org", ingest_request_source="oai", release_stage="published")))
    assert _kept(database) == [("oai", "published", None)]


@pytest.mark.parametrize("value", ["", None, 7, 1.5, True, [], {"a": "b"}, "x" * 2001, "\u00fc" * 1001])
def test_members_that_their_columns_cannot_hold_are_kept_beside_them(database: Database, value: object) -> None:
    members = {"ingest_request_source": value, "release_stage": value}
    database.write(_ingest(ingest_request("https://a.org", **members)))
    assert _kept(database) == [(None, None, members)]


def test_numbers_of_an_ingest_request_stay_as_they_were_written(database: Database) -> None:
    digits = "3.14159265358979323846264338327950288"
    database.write(_ingest(ingest_request("https://a.org")[:-1] + b', "n": %s}' % digits.encode()))
    assert database.query("SELECT request ->> 'n' FROM ingest_request") == [(digits,)]


# Results


def _result(minutes: float, *, hit: bool) -> tables.IngestResult:
    outcome = kinds.IngestOutcome(f"status-{minutes}", hit, None, None, None, None)
    return tables.IngestResult.of('["doi", "10.1/a", "pdf", "https://a.org"]', _at(minutes), outcome)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=6, unique=True), st.data()
)
@SLOW
def test_the_newest_hit_stays_and_else_the_newest_failure_in_whatever_order_they_come(
    database: Database, results: list[tuple[int, bool]], data: st.DataObject
) -> None:
    database.empty("ingest_file_result")
    for batch in _batches(data, [_result(minutes, hit=hit) for minutes, hit in results]):
        database.write(*batch)
    minutes, hit = max(results, key=lambda result: (result[1], result[0]))
    assert database.query("SELECT hit, status FROM ingest_file_result") == [(hit, f"status-{minutes}")]


@hypothesis.given(st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True), st.data())
@SLOW
def test_the_newest_job_result_stays_in_whatever_order_they_come(
    database: Database, results: list[int], data: st.DataObject
) -> None:
    database.empty("job_result")
    rows = [tables.JobResult("kind", '["a"]', _at(minutes), str(minutes), True, None) for minutes in results]
    for batch in _batches(data, rows):
        database.write(*batch)
    assert database.query("SELECT status FROM job_result") == [(str(max(results)),)]


def _batches(data: st.DataObject, rows: list[Any]) -> list[list[Any]]:
    """Cut rows into batches somewhere."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=3), label="cuts"))
    return [rows[first:last] for first, last in zip([0, *cuts], [*cuts, len(rows)], strict=True) if first < last]


# Sightings

#: topic, partition, minutes, whether it was a re-enqueueing; offsets grow with each sighting of a partition.
SIGHTINGS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.integers(0, 9), st.booleans()), min_size=1, max_size=8
)


def _sighting(offset: int, topic: str, partition: int, minutes: float, reenqueued: bool) -> tables.RequestPosition:
    position = documents.Position(topic, partition, offset)
    return tables.RequestPosition.of("k", '["a"]', position, DAY + timedelta(minutes=minutes), reenqueued=reenqueued)


def _seen(database: Database) -> tuple[Any, ...]:
    columns = 'topic, partition, "offset", last_seen, reenqueued_at, reenqueue_count'
    [row] = database.query(f"SELECT {columns} FROM slowjobs_request_position")  # noqa: S608 - as above
    return row


def test_the_newest_sighting_stays_with_the_newest_of_each_sort(database: Database) -> None:
    database.write(_sighting(7, "bulk", 3, 1, False))
    database.write(_sighting(5, "daily", 0, 2, True))
    assert _seen(database) == ("daily", 0, 5, DAY + timedelta(minutes=1), DAY + timedelta(minutes=2), 1)
    database.write(_sighting(8, "bulk", 3, 1.5, False))
    assert _seen(database)[:3] == ("daily", 0, 5), "an older sighting changes nothing"
    database.write(_sighting(9, "bulk", 3, 3, False))
    assert _seen(database) == ("bulk", 3, 9, DAY + timedelta(minutes=3), DAY + timedelta(minutes=2), 1)


@pytest.mark.parametrize("together", [True, False])
def test_a_reenqueueing_is_known_although_a_sighting_by_a_clock_that_is_ahead_came_first(
    database: Database, together: bool
) -> None:
    ahead, reenqueued = _sighting(7, "bulk", 3, 30, False), _sighting(9, "bulk", 3, 1, True)
    for batch in [[ahead, reenqueued]] if together else [[ahead], [reenqueued]]:
        database.write(*batch)
    assert _seen(database)[3:5] == (DAY + timedelta(minutes=30), DAY + timedelta(minutes=1))


def test_a_request_that_was_only_ever_reenqueued_was_never_seen_otherwise(database: Database) -> None:
    database.write(_sighting(7, "bulk", 3, 1, True))
    assert _seen(database) == ("bulk", 3, 7, None, DAY + timedelta(minutes=1), 1)


def test_a_topic_made_anew_is_followed_although_its_offsets_start_again(database: Database) -> None:
    database.write(_sighting(41207, "bulk", 3, 1, False))
    database.write(_sighting(0, "bulk", 3, 2, False))
    assert _seen(database)[:3] == ("bulk", 3, 0)


def test_of_two_sightings_within_a_millisecond_the_later_on_kafka_is_the_newer(database: Database) -> None:
    for offset in (7, 8, 7):
        database.write(_sighting(offset, "bulk", 3, 1, False))
    assert _seen(database)[2] == 8


def test_each_reenqueueing_is_counted_once_whoever_tells_of_it_first(database: Database) -> None:
    for offset in (1, 2, 3):
        for _persister_and_reenqueue in range(2):
            database.write(_sighting(offset, "bulk", 3, offset, True))
    assert _seen(database)[-1] == 3


def test_a_reenqueueing_that_comes_again_together_with_a_later_sighting_is_not_counted_again(
    database: Database,
) -> None:
    reenqueued, later = _sighting(1, "bulk", 3, 1, True), _sighting(2, "bulk", 3, 2, False)
    database.write(reenqueued)
    database.write(reenqueued, later)
    assert _seen(database) == ("bulk", 3, 2, DAY + timedelta(minutes=2), DAY + timedelta(minutes=1), 1)


@hypothesis.given(SIGHTINGS, st.data())
@SLOW
def test_what_comes_again_after_a_crash_changes_nothing(
    database: Database, sightings: list[tuple[str, int, int, bool]], data: st.DataObject
) -> None:
    """PostgreSQL has committed more than Kafka knows of, and the batches are cut in other places this time."""
    database.empty("slowjobs_request_position")
    rows = [_sighting(offset, *sighting) for offset, sighting in enumerate(sightings)]
    for batch in _batches(data, rows):
        database.write(*batch)
    seen = _seen(database)
    for batch in _batches(data, rows[data.draw(st.integers(0, len(rows) - 1), label="committed") :]):
        database.write(*batch)
    assert _seen(database) == seen


# A request is what its row says

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
COLUMNS = ["ingest_request_source", "release_stage", "request", "created", "link_source_extra", "_slowjobs", ""]
#: have reenqueue's statement take any request that has no result.
ALL = {
    "kind": "ingest",
    "since": DAY,
    "before": DAY,
    "cool_since": DAY,
    "listed": "{}",
    "end": "{}",
    "recent": DAY,
    "undone": [],
    "wanted": [],
    "unwanted": [],
}


@hypothesis.given(st.dictionaries(st.sampled_from(COLUMNS) | NAMES, VALUES, max_size=6))
@SLOW
def test_what_is_sent_again_is_what_was_sent(database: Database, members: dict[str, object]) -> None:
    database.empty("ingest_request")
    required = {"link_source": "doi", "link_source_id": "10.1/a", "ingest_type": "pdf", "base_url": "https://a.org"}
    request = json.dumps({**members, **required})
    database.write(_ingest(request.encode()))
    [(key, again, _)] = database.query(postgres.statement("reenqueue_ingest"), ALL)
    assert key == kinds.parse(request.encode(), INGEST).key
    assert _exact(again) == _exact(request)


def _exact(text: str) -> Any:
    """Parse JSON without rounding its numbers."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@pytest.mark.parametrize(
    "key",
    ['["a", "b", [], "x"]', '["a", "b", 1, "x"]', '["a"]', '"a"', "[" * 100_000, '["a", "b", "\\ud800", "x"]', "no"],
)
def test_a_result_whose_key_is_not_that_of_an_ingest_request_is_refused(key: str) -> None:
    with pytest.raises(kinds.RejectedError):
        tables.IngestResult.of(key, _at(0), kinds.IngestOutcome("success", True, None, None, None, None))
