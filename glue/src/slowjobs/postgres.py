"""PostgreSQL: one connection, our statements, and which errors are the row's and which the server's."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.extras

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slowjobs import settings

#: seconds.
CONNECT_TIMEOUT_SECONDS = 5
#: milliseconds; a server that stopped answering is noticed, so that it can be waited for.
_TCP_USER_TIMEOUT_MILLISECONDS = 10_000
#: what each type of kind keeps its requests and results in; ``sql/tables_<name>.sql`` makes them.
TABLES = {
    "job": ("job_request", "job_result"),
    "ingest": ("ingest_request", "ingest_file_result"),
    "position": ("slowjobs_request_position",),
}

#: The server is away, going away or not set up yet: wait and do it again.
AwayError = (
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    psycopg2.errors.UndefinedTable,
    psycopg2.errors.InsufficientPrivilege,
)
#: The server refuses a row for what it holds.
RefusedError = (psycopg2.DataError, psycopg2.IntegrityError, psycopg2.errors.ProgramLimitExceeded)

Row = tuple[object, ...]


def statement(name: str) -> str:
    """Return the text of ``sql/<name>.sql``."""
    return importlib.resources.files("slowjobs").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def connect(
    postgresql: settings.Postgresql, secrets: settings.Credentials, *, service: str
) -> psycopg2.extensions.connection:
    """Connect as ``slowjobs-<service>``. Raises psycopg2.OperationalError."""
    return psycopg2.connect(
        postgresql.dsn,
        password=secrets.postgresql_password,
        application_name=f"slowjobs-{service}",
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        tcp_user_timeout=_TCP_USER_TIMEOUT_MILLISECONDS,
        keepalives_idle=10,
    )


def write(connection: psycopg2.extensions.connection, sql: str, rows: Sequence[Row]) -> list[tuple[int, str]]:
    """Write all rows that the server takes, in one transaction; return ``(index, error)`` of those that it refuses.

    A refused row is found by halving: the batch is tried whole first, so that good batches cost one statement.
    Raises one of AwayError with nothing written.
    """
    with connection, connection.cursor() as cursor:
        return _write(cursor, sql, rows, 0)


def _write(cursor: psycopg2.extensions.cursor, sql: str, rows: Sequence[Row], first: int) -> list[tuple[int, str]]:
    if not rows:
        return []
    cursor.execute("SAVEPOINT part")
    try:
        psycopg2.extras.execute_values(cursor, sql, rows, page_size=len(rows))
    except RefusedError as error:
        cursor.execute("ROLLBACK TO SAVEPOINT part")
        if len(rows) == 1:
            return [(first, " ".join(str(error).split()))]
        half = len(rows) // 2
        return _write(cursor, sql, rows[:half], first) + _write(cursor, sql, rows[half:], first + half)
    cursor.execute("RELEASE SAVEPOINT part")
    return []


def tables(types: Iterable[str]) -> list[str]:
    """Return the tables that kinds of these types need."""
    return [table for name in (*sorted(set(types)), "position") for table in TABLES[name]]


def missing_tables(connection: psycopg2.extensions.connection, names: Sequence[str]) -> list[str]:
    """Return which of ``names`` are not there."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM unnest(%s) AS name WHERE to_regclass(name) IS NULL", (list(names),))
        return [name for (name,) in cursor.fetchall()]


def make_tables(connection: psycopg2.extensions.connection, types: Iterable[str]) -> None:
    """Make the tables of these types that are missing."""
    with connection, connection.cursor() as cursor:
        for name in (*sorted(set(types)), "position"):
            cursor.execute(statement(f"tables_{name}"))
