"""Our statements and their errors against a real PostgreSQL."""

from __future__ import annotations

import uuid
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from slowjobs import postgres, settings
from support.postgresql import PASSWORD, SUPERUSER

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        postgres.make_tables(connection, TYPES)
        yield connection


def _connect(services: Services, database: str) -> Any:
    return postgres.connect(settings.Postgresql(dsn=services.postgresql.dsn(database)), SECRETS, service="tests")


def _requests(*bodies: str) -> list[postgres.Row]:
    return [("kind", f'["{number}"]', datetime.now(UTC), body) for number, body in enumerate(bodies)]


def test_tables_are_made_once(services: Services, database: str) -> None:
    with closing(_connect(services, database)) as connection:
        names = postgres.tables(TYPES)
        assert postgres.missing_tables(connection, names) == names
        postgres.make_tables(connection, TYPES)
        postgres.make_tables(connection, TYPES)
        assert postgres.missing_tables(connection, names) == []


def test_refused_rows_are_named_and_all_others_are_written(services: Services, database: str, connection: Any) -> None:
    bodies = ['{"fine": 1}'] * 1000
    # Each in its own way: no numeric, a NUL, half a surrogate pair, no JSON at all.
    bad = {0: '{"n": 1e200000}', 333: '{"t": "\\u0000"}', 500: '{"t": "\\ud800"}', 999: "{"}
    for place, body in bad.items():
        bodies[place] = body
    refused = postgres.write(connection, postgres.statement("upsert_job_request"), _requests(*bodies))
    assert [index for index, _ in refused] == list(bad)
    assert all(reason for _, reason in refused)
    assert services.postgresql.query(database, "SELECT count(*) FROM job_request") == [(1000 - len(bad),)]


def test_the_first_created_and_the_newest_request_stay(services: Services, database: str, connection: Any) -> None:
    sql = postgres.statement("upsert_job_request")
    first, second = datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    postgres.write(connection, sql, [("kind", '["a"]', first, '{"turn": 1}')])
    postgres.write(connection, sql, [("kind", '["a"]', second, '{"turn": 2}')])
    rows = services.postgresql.query(database, "SELECT created, request FROM job_request")
    assert rows == [(first, {"turn": 2})]


def test_an_older_result_never_overwrites_a_newer_one(services: Services, database: str, connection: Any) -> None:
    sql = postgres.statement("upsert_job_result")
    for updated, status in (("2025-01-01T00:00:00Z", "new"), ("2024-01-01T00:00:00Z", "old")):
        postgres.write(connection, sql, [("kind", '["a"]', updated, status, True, "{}")])
    assert services.postgresql.query(database, "SELECT status FROM job_result") == [("new",)]


def test_a_server_that_goes_away_is_no_refused_row(services: Services, connection: Any) -> None:
    services.postgresql.stop()
    with pytest.raises(postgres.AwayError):
        postgres.write(connection, postgres.statement("upsert_job_request"), _requests("{}"))


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
        postgres.write(connection, postgres.statement("upsert_job_request"), _requests("{}"))


def test_a_server_that_is_being_changed_is_waited_for(services: Services, database: str, connection: Any) -> None:
    """A table that is missing or not ours is for somebody to repair, and no reason to drop a row."""
    services.postgresql.query(database, "ALTER TABLE job_request RENAME TO elsewhere")
    with pytest.raises(postgres.AwayError):
        postgres.write(connection, postgres.statement("upsert_job_request"), _requests("{}"))


def test_sessions_carry_the_name_of_their_service(services: Services, database: str, connection: Any) -> None:
    assert connection.status == psycopg2.extensions.STATUS_READY
    rows = services.postgresql.query(
        database, "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'slowjobs-%%'"
    )
    assert ("slowjobs-tests",) in rows
