"""PostgreSQL: one connection, our statements, and which errors are the row's and which the server's."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import TYPE_CHECKING, TypeVar

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from slowjobs import settings

#: seconds.
CONNECT_TIMEOUT_SECONDS = 5
#: milliseconds; a server that stopped answering is noticed, so that it can be waited for.
_TCP_USER_TIMEOUT_MILLISECONDS = 10_000
#: The server is away, going away or not as it must be (a table is missing, a column, a right): wait and do it again.
AwayError = psycopg2.Error
#: The server refuses a row for what it holds; the last three by what somebody has added to the table. No value in a
#: column of theirs (NotNullViolation) would refuse every row, and is for somebody to repair.
RefusedError = (
    psycopg2.DataError,
    psycopg2.errors.CheckViolation,
    psycopg2.errors.UniqueViolation,
    psycopg2.errors.ProgramLimitExceeded,
    psycopg2.errors.ForeignKeyViolation,
    psycopg2.errors.ExclusionViolation,
    psycopg2.errors.RaiseException,
)

T = TypeVar("T")


@functools.cache
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


def write(
    connection: psycopg2.extensions.connection,
    items: Sequence[T],
    upsert: Callable[[psycopg2.extensions.cursor, Sequence[T]], None],
) -> list[tuple[T, str]]:
    """Have ``upsert`` write all items that the server takes, in one transaction; return those that it refuses, and why.

    A refused one is found by halving: all are tried at once first, so that good ones cost no more. ``upsert`` may need
    several statements; what it wrote of a refused item is gone. Raises AwayError with nothing written.
    """
    with connection, connection.cursor() as cursor:
        try:
            upsert(cursor, items)
        except RefusedError:
            connection.rollback()
            return _halve(cursor, items, upsert)
        return []


def _write(
    cursor: psycopg2.extensions.cursor,
    items: Sequence[T],
    upsert: Callable[[psycopg2.extensions.cursor, Sequence[T]], None],
) -> list[tuple[T, str]]:
    cursor.execute("SAVEPOINT part")
    try:
        upsert(cursor, items)
    except RefusedError as error:
        cursor.execute("ROLLBACK TO SAVEPOINT part")
        return [(items[0], one_line(error))] if len(items) == 1 else _halve(cursor, items, upsert)
    cursor.execute("RELEASE SAVEPOINT part")
    return []


def _halve(
    cursor: psycopg2.extensions.cursor,
    items: Sequence[T],
    upsert: Callable[[psycopg2.extensions.cursor, Sequence[T]], None],
) -> list[tuple[T, str]]:
    half = len(items) // 2
    return [refused for part in (items[:half], items[half:]) if part for refused in _write(cursor, part, upsert)]


def upsert(cursor: psycopg2.extensions.cursor, name: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Run ``sql/<name>.sql`` with ``rows``: in one JSON array, which costs less than any other way to send them."""
    cursor.execute(statement(name), {"rows": json.dumps(list(rows), ensure_ascii=False)})


def one_line(error: psycopg2.Error) -> str:
    """Return what the server says."""
    return " ".join(str(error).split())
