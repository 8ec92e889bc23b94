"""The rows that requests and results come to: a class for each table, with what makes two rows of one key one."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from slowjobs import kinds, postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    import psycopg2

    from slowjobs import documents

#: bytes of a member that has a column of its own; PostgreSQL's indexes take 2,704. A longer one stays in ``request``.
_MAX_COLUMN_BYTES = 2000


class Row(Protocol):
    """One row. Its members are named as its ``statement`` (in ``sql/``) names them.

    ``identity``: those of the table's primary key.
    """

    statement: ClassVar[str]
    identity: ClassVar[tuple[str, ...]]

    def merge(self, later: Self) -> Self:
        """Return the row that stands for both: PostgreSQL takes one of a key in a statement."""


@dataclass(frozen=True)
class JobRequest:
    """Of ``job_request``: the newest request of a key, and when the first came."""

    statement: ClassVar[str] = "upsert_job_request"
    identity: ClassVar[tuple[str, ...]] = ("kind", "key")
    kind: str
    key: str
    created: str
    request: str

    @classmethod
    def of(cls, kind: str, request: kinds.Request, created: str) -> JobRequest:
        """Return a request's row. ``created``: ISO 8601."""
        return cls(kind, request.key, created, request.raw.decode())

    def merge(self, later: JobRequest) -> JobRequest:
        """Return the later one, with the time of the first."""
        return replace(later, created=self.created)


@dataclass(frozen=True)
class IngestRequest:
    """Of ``ingest_request``: the first request of a key.

    ``raw``: all of it; its statement takes out what is in a column.
    """

    statement: ClassVar[str] = "insert_ingest_request"
    identity: ClassVar[tuple[str, ...]] = ("link_source", "link_source_id", "ingest_type", "base_url")
    link_source: str
    link_source_id: str
    ingest_type: str
    base_url: str
    ingest_request_source: str | None
    created: str
    release_stage: str | None
    raw: str

    @classmethod
    def of(cls, _kind: str, request: kinds.Request, created: str) -> IngestRequest:
        """Return a request's row. ``created``: ISO 8601."""
        members = request.members
        return cls(
            members["link_source"],
            members["link_source_id"],
            members["ingest_type"],
            members["base_url"],
            _column(members, "ingest_request_source"),
            created,
            _column(members, "release_stage"),
            request.raw.decode(),
        )

    def merge(self, _later: IngestRequest) -> IngestRequest:
        """Return the first one."""
        return self


def _column(members: kinds.JsonObject, name: str) -> str | None:
    """Return a member that its column can hold: the table's own checks want text that is not empty."""
    value = members.get(name)
    return value if isinstance(value, str) and 0 < len(value.encode()) <= _MAX_COLUMN_BYTES else None


@dataclass(frozen=True)
class RequestPosition:
    """Of ``slowjobs_request_position``: where a request was seen last, and when, by whoever sent it.

    ``last_seen``: when it was sent, if that was no re-enqueueing; ``reenqueued_at``: when it was, if that was one.
    """

    statement: ClassVar[str] = "upsert_request_position"
    identity: ClassVar[tuple[str, ...]] = ("kind", "key")
    kind: str
    key: str
    topic: str
    partition: int
    offset: int
    last_seen: str | None
    reenqueued_at: str | None

    @classmethod
    def of(
        cls, kind: str, key: str, position: documents.Position, created: datetime, *, reenqueued: bool
    ) -> RequestPosition:
        """Return the row of a request that was ``created`` on Kafka."""
        sent = created.isoformat(timespec="microseconds")
        times = (None, sent) if reenqueued else (sent, None)
        return cls(kind, key, position.topic, position.partition, position.offset, *times)

    def merge(self, later: RequestPosition) -> RequestPosition:
        """Return what the statement would make of both, one after the other."""
        return replace(
            max(
                self,
                later,
                key=lambda row: (_latest(row.last_seen, row.reenqueued_at) or "", row.partition, row.offset),
            ),
            last_seen=_latest(self.last_seen, later.last_seen),
            reenqueued_at=_latest(self.reenqueued_at, later.reenqueued_at),
        )


def _latest(*times: str | None) -> str | None:
    """Return the latest of times that are all written in the same way."""
    return max((time for time in times if time is not None), default=None)


@dataclass(frozen=True)
class JobResult:
    """Of ``job_result``: the newest result of a key."""

    statement: ClassVar[str] = "upsert_job_result"
    identity: ClassVar[tuple[str, ...]] = ("kind", "key")
    kind: str
    key: str
    updated: str
    status: str
    hit: bool
    result: str | None

    def merge(self, later: JobResult) -> JobResult:
        """Return the newer one."""
        return max(later, self, key=lambda row: row.updated)


@dataclass(frozen=True)
class IngestResult:
    """Of ``ingest_file_result``: the newest hit of a key, or the newest failure where there is no hit."""

    statement: ClassVar[str] = "upsert_ingest_file_result"
    identity: ClassVar[tuple[str, ...]] = ("ingest_type", "base_url")
    ingest_type: str
    base_url: str
    updated: str
    hit: bool
    status: str
    terminal_url: str | None
    terminal_dt: str | None
    terminal_status_code: int | None
    terminal_sha1hex: str | None

    @classmethod
    def of(cls, key: str, updated: str, outcome: kinds.IngestOutcome) -> IngestResult:
        """Return a result's row. ``key`` is the request's; Raises kinds.RejectedError for one of another type."""
        match kinds.parse_object(b'{"key": %s}' % key.encode())["key"]:
            case [str(), str(), str(ingest_type), str(base_url)]:
                pass
            case _:
                raise kinds.RejectedError("member-type", f"the key {key[:80]} is not that of an ingest request")
        return cls(ingest_type, base_url, updated, **vars(outcome))

    def merge(self, later: IngestResult) -> IngestResult:
        """Return the better one, and of two as good the newer."""
        return max(later, self, key=lambda row: (row.hit, row.updated))


def write(cursor: psycopg2.extensions.cursor, rows: Iterable[Row]) -> None:
    """Write rows of any tables, given in the order in which they came: for each table one statement.

    They are written in the order of their keys, so that two writers that lock the same rows cannot deadlock.
    """
    by_table: dict[type[Row], dict[tuple[str, ...], Row]] = {}
    for row in rows:
        ours = by_table.setdefault(type(row), {})
        identity = _identity(type(row))(row)
        ours[identity] = ours[identity].merge(row) if identity in ours else row
    for table, ours in by_table.items():
        postgres.upsert(cursor, table.statement, (vars(ours[identity]) for identity in sorted(ours)))


@functools.cache
def _identity(table: type[Row]) -> Callable[[Row], tuple[str, ...]]:
    return operator.attrgetter(*table.identity)
