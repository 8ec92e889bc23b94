"""The tables and indexes that must be there, what is wrong with those that are, and how they are made.

Connections that are given here are in autocommit mode: an index that is built beside the work cannot be built in a
transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2

from slowjobs import postgres

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: what each type of kind keeps its requests and results in; ``sql/table_<name>.sql`` makes one.
_TABLES = {
    "job": ("job_request", "job_result"),
    "ingest": ("ingest_request", "ingest_file_result"),
}
_POSITION_TABLE = "slowjobs_request_position"
#: ``table -> index -> columns``; those of created and last_seen are what re-enqueueing reads by.
_INDEXES = {
    "job_request": {"job_request_created_idx": "kind, created"},
    "ingest_request": {
        "ingest_request_base_url_idx": "base_url, ingest_type",
        "ingest_request_source_created_idx": "ingest_request_source, created",
        "ingest_request_created_idx": "created",
    },
    _POSITION_TABLE: {"slowjobs_request_position_last_seen_idx": "kind, last_seen"},
}


class NotAllowedError(Exception):
    """Our role may not make something; the text says what to run, and as whom."""


def tables(types: Iterable[str]) -> list[str]:
    """Return the tables that kinds of these types need."""
    return [table for type_ in sorted(set(types)) for table in _TABLES[type_]] + [_POSITION_TABLE]


def missing_tables(connection: psycopg2.extensions.connection, names: Sequence[str]) -> list[str]:
    """Return which of ``names`` are not there."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM unnest(%s) AS name WHERE to_regclass(name) IS NULL", (list(names),))
        return [name for (name,) in cursor.fetchall()]


def make_table(connection: psycopg2.extensions.connection, name: str) -> None:
    """Make a table. Raises NotAllowedError."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(postgres.statement(f"table_{name}"))
        except psycopg2.errors.InsufficientPrivilege as error:
            cursor.execute("SELECT current_user, current_schema()")
            role, schema = cursor.fetchone() or ("?", "?")
            raise NotAllowedError(
                f"table {name} is missing ({postgres.one_line(error)}): as the owner of the schema run"
                f" `GRANT CREATE ON SCHEMA {schema} TO {role};`, then `slowjobs setup` again"
            ) from error


def table_mistakes(connection: psycopg2.extensions.connection, name: str) -> list[str]:
    """Return why a table that is there cannot be used: columns that it lacks, rights that our role lacks."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::regclass::oid", (name,))
        (table,) = cursor.fetchone() or (None,)
        cursor.execute("BEGIN")
        try:
            cursor.execute("SET LOCAL search_path TO pg_temp")
            cursor.execute(postgres.statement(f"table_{name}"))
            cursor.execute(postgres.statement("table_mistakes"), {"table": table, "name": name})
            return [f"table {name} {mistake}" for (mistake,) in cursor.fetchall()]
        finally:
            cursor.execute("ROLLBACK")


def indexes(connection: psycopg2.extensions.connection, table: str) -> dict[str, bool]:
    """Return the indexes that ``table`` needs, and whether each is there, whatever its name."""
    usable = {columns for columns, valid in _present_indexes(connection, table).values() if valid}
    return {name: columns in usable for name, columns in _INDEXES.get(table, {}).items()}


def make_index(connection: psycopg2.extensions.connection, table: str, name: str) -> None:
    """Make an index while others work on the table; what an interrupted try has left goes first.

    Raises NotAllowedError: only the table's owner can.
    """
    sql = f"CREATE INDEX CONCURRENTLY {name} ON {table} ({_INDEXES[table][name]})"
    with connection.cursor() as cursor:
        try:
            if not _present_indexes(connection, table).get(name, ("", True))[1]:
                cursor.execute(f"DROP INDEX CONCURRENTLY {name}")
            cursor.execute(sql)
        except psycopg2.errors.InsufficientPrivilege as error:
            cursor.execute("SELECT relowner::regrole::text FROM pg_class WHERE oid = %s::regclass", (table,))
            (owner,) = cursor.fetchone() or ("?",)
            raise NotAllowedError(
                f"index {name} is missing ({postgres.one_line(error)}): as role {owner} run `{sql};`"
            ) from error


def make(connection: psycopg2.extensions.connection, types: Iterable[str]) -> None:
    """Make all that is missing of the tables and indexes of these types. Raises NotAllowedError."""
    names = tables(types)
    for table in missing_tables(connection, names):
        make_table(connection, table)
    for table in names:
        for index, there in indexes(connection, table).items():
            if not there:
                make_index(connection, table, index)


def _present_indexes(connection: psycopg2.extensions.connection, table: str) -> dict[str, tuple[str, bool]]:
    """Return ``name -> (columns, whether it is valid)``."""
    with connection.cursor() as cursor:
        cursor.execute(postgres.statement("table_indexes"), {"table": table})
        return {name: (columns, valid) for name, columns, valid in cursor.fetchall()}
