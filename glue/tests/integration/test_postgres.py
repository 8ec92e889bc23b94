"""Our statements and their errors against a real PostgreSQL."""

from __future__ import annotations

import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from slowjobs import postgres, schema, settings
from slowjobs.persister import tables
from support.postgresql import PASSWORD, SUPERUSER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.services import Services

pytestmark = pytest.mark.integration

TYPES = ("job", "ingest")
SECRETS = settings.Credentials({}, PASSWORD)


@pytest.fixture
def database(services: Services) -> str:
    name = f"db_{uuid.uuid4().hex[:8]}"
    services.postgresql.create_database(name)
    return name


@pytest.fixture
def connection(services: Services, database: str) -> Iterator[Any]:
    with closing(_connect(services, database)) as connection:
        connection.autocommit = True
        schema.make(connection, TYPES)
        connection.autocommit = False
        yield connection


def _connect(services: Services, database: str) -> Any:
    return postgres.connect(settings.Postgresql(dsn=services.postgresql.dsn(database)), SECRETS, service="tests")


def _upsert(cursor: Any, bodies: Sequence[str]) -> None:
    """Write requests whose keys are their bodies."""
    tables.write(cursor, [tables.JobRequest("kind", body, "2025-01-01T00:00:00Z", body) for body in bodies])


def test_refused_rows_are_named_and_all_others_are_written(services: Services, database: str, connection: Any) -> None:
    bodies = [f'{{"fine": {number}}}' for number in range(1000)]
    # Each in its own way: no numeric, a NUL, half a surrogate pair, no JSON at all.
    bad = {0: '{"n": 1e200000}', 333: '{"t": "\\u0000"}', 500: '{"t": "\\ud800"}', 999: "{"}
    for place, body in bad.items():
        bodies[place] = body
    refused = postgres.write(connection, bodies, _upsert)
    assert [body for body, _ in refused] == list(bad.values())
    assert all(reason for _, reason in refused)
    assert services.postgresql.query(database, "SELECT count(*) FROM job_request") == [(1000 - len(bad),)]


def test_of_an_item_all_rows_are_written_or_none(services: Services, database: str, connection: Any) -> None:
    def upsert(cursor: Any, results: Sequence[str]) -> None:
        _upsert(cursor, ["{}"] * len(results))
        rows = [tables.JobResult("kind", "{}", "2025-01-01T00:00:00Z", "success", True, result) for result in results]
        tables.write(cursor, rows)

    assert [result for result, _ in postgres.write(connection, ['{"n": 1e200000}'], upsert)] == ['{"n": 1e200000}']
    for table in ("job_request", "job_result"):
        assert services.postgresql.query(database, f"SELECT key FROM {table}") == []  # noqa: S608 - as above


ADDED = {
    "a foreign key": """
        CREATE TABLE known (key text PRIMARY KEY);
        INSERT INTO known VALUES ('{"fine": 1}');
        ALTER TABLE job_request ADD FOREIGN KEY (key) REFERENCES known
        """,
    "a trigger": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON job_request FOR EACH ROW
        WHEN (NEW.key LIKE '%%bad%%') EXECUTE FUNCTION refuse()
        """,
}


@pytest.mark.parametrize("what", ADDED)
def test_what_somebody_has_added_to_a_table_refuses_rows_and_stops_nothing(
    services: Services, database: str, connection: Any, what: str
) -> None:
    services.postgresql.query(database, ADDED[what])
    assert [body for body, _ in postgres.write(connection, ['{"bad": 1}', '{"fine": 1}'], _upsert)] == ['{"bad": 1}']
    assert services.postgresql.query(database, "SELECT key FROM job_request") == [('{"fine": 1}',)]


def test_a_server_that_goes_away_is_no_refused_row(services: Services, connection: Any) -> None:
    services.postgresql.stop()
    with pytest.raises(postgres.AwayError):
        postgres.write(connection, ["{}"], _upsert)


def test_a_session_that_is_ended_by_the_server_is_no_refused_row(
    services: Services, database: str, connection: Any
) -> None:
    services.postgresql.query(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
        (database,),
        user=SUPERUSER,
    )
    with pytest.raises(postgres.AwayError):
        postgres.write(connection, ["{}"], _upsert)


def test_a_server_that_is_being_changed_is_waited_for(services: Services, database: str, connection: Any) -> None:
    """A table that is missing or not ours is for somebody to repair, and no reason to drop a row."""
    services.postgresql.query(database, "ALTER TABLE job_request RENAME TO elsewhere")
    with pytest.raises(postgres.AwayError):
        postgres.write(connection, ["{}"], _upsert)


def test_sessions_carry_the_name_of_their_service(services: Services, database: str, connection: Any) -> None:
    assert connection.status == psycopg2.extensions.STATUS_READY
    rows = services.postgresql.query(
        database, "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'slowjobs-%%'"
    )
    assert ("slowjobs-tests",) in rows
