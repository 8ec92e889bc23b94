"""Tables and indexes in databases of our own and of others."""

from __future__ import annotations

import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from slowjobs import schema
from support.postgresql import SUPERUSER, USER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services import Services

pytestmark = pytest.mark.integration

TYPES = ("job", "ingest")


@pytest.fixture
def database(services: Services) -> str:
    name = f"db_{uuid.uuid4().hex[:8]}"
    services.postgresql.create_database(name)
    return name


@pytest.fixture
def connection(services: Services, database: str) -> Iterator[Any]:
    with closing(services.postgresql.connect(database)) as connection:
        yield connection


def _missing_indexes(connection: Any) -> list[str]:
    indexes = [schema.indexes(connection, table) for table in schema.tables(TYPES)]
    return [name for each in indexes for name, there in each.items() if not there]


def test_what_is_there_is_not_made_again(connection: Any) -> None:
    names = schema.tables(TYPES)
    assert schema.missing_tables(connection, names) == names
    schema.make(connection, TYPES)
    schema.make(connection, TYPES)
    assert schema.missing_tables(connection, names) == []
    assert [mistake for name in names for mistake in schema.table_mistakes(connection, name)] == []
    assert _missing_indexes(connection) == []


def test_only_the_tables_of_the_types_in_use_are_needed() -> None:
    assert schema.tables(["job"]) == ["job_request", "job_result", "slowjobs_request_position"]


def test_an_index_of_another_name_will_do(connection: Any) -> None:
    schema.make(connection, TYPES)
    _run(connection, "ALTER INDEX ingest_request_created_idx RENAME TO somebody_elses")
    assert _missing_indexes(connection) == []


def test_what_an_interrupted_build_has_left_is_made_again(connection: Any) -> None:
    schema.make(connection, TYPES)
    _run(connection, "DROP INDEX job_request_created_idx")
    _run(
        connection,
        "INSERT INTO job_request (kind, key, request) SELECT 'k', n::text, '{}' FROM generate_series(1, 9) n",
    )
    # Longer than the time that a build beside an open transaction would have to wait.
    with closing(psycopg2.connect(connection.dsn, password=connection.info.password)) as other:
        other.cursor().execute("UPDATE job_request SET request = '{\"b\": 1}'")
        _run(connection, "SET statement_timeout = '200ms'")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            schema.make(connection, TYPES)
        other.rollback()
    assert _missing_indexes(connection) == ["job_request_created_idx"]
    _run(connection, "RESET statement_timeout")
    schema.make(connection, TYPES)
    assert _missing_indexes(connection) == []


def test_a_table_with_other_columns_is_named_with_what_it_lacks(connection: Any) -> None:
    schema.make(connection, TYPES)
    _run(connection, "ALTER TABLE ingest_request DROP COLUMN release_stage")
    _run(connection, "ALTER TABLE ingest_request ADD COLUMN owner text NOT NULL")
    _run(connection, "ALTER TABLE ingest_file_result ALTER COLUMN terminal_status_code TYPE text")
    assert schema.table_mistakes(connection, "ingest_request") == [
        "table ingest_request has no column release_stage (text)",
        "table ingest_request has column owner, which must not be null and has no default",
    ]
    assert schema.table_mistakes(connection, "ingest_file_result") == [
        "table ingest_file_result has column terminal_status_code of type text, expected integer"
    ]


def test_what_our_role_may_not_do_is_said_with_what_to_run_and_as_whom(
    services: Services, database: str, connection: Any
) -> None:
    schema.make(connection, TYPES)
    for statement in (
        "ALTER TABLE ingest_request OWNER TO postgres",
        f"GRANT SELECT ON ingest_request TO {USER}",
        "DROP INDEX ingest_request_created_idx",
        "DROP TABLE job_request",
        f"ALTER DATABASE {database} OWNER TO postgres",
    ):
        services.postgresql.query(database, statement, user=SUPERUSER)
    assert schema.table_mistakes(connection, "ingest_request") == [
        f"table ingest_request gives {USER} no INSERT",
        f"table ingest_request gives {USER} no UPDATE",
    ]
    with pytest.raises(schema.NotAllowedError, match="as role postgres run `CREATE INDEX CONCURRENTLY"):
        schema.make_index(connection, "ingest_request", "ingest_request_created_idx")
    with pytest.raises(schema.NotAllowedError, match=f"run `GRANT CREATE ON SCHEMA public TO {USER};`"):
        schema.make_table(connection, "job_request")


def _run(connection: Any, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)
