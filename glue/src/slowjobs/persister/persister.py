"""The persister: from Kafka to PostgreSQL, every request and its newest result."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import prometheus_client
import structlog

from slowjobs import documents, kafka, kinds, postgres, retry, service

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import psycopg2

    from slowjobs import settings

log = structlog.get_logger()

#: a batch ends with so many messages or after so many seconds.
_BATCH_MESSAGES = 1000
_BATCH_SECONDS = 0.5
#: seconds; a batch that cannot be written while stopping is left to the next start.
_STOP_SECONDS = 5.0

_ROWS = prometheus_client.Counter("slowjobs_persisted_rows_total", "Rows written", ["topic"])
_SKIPPED = prometheus_client.Counter(
    "slowjobs_skipped_requests_total", "The bridge's dead letters", ["topic", "reason"]
)
_DEAD = prometheus_client.Counter("slowjobs_persister_dead_letters_total", "Rows refused", ["topic", "reason"])

#: (kind, key): what a row is about.
RowKey = tuple[str, str]


@dataclass(frozen=True)
class _Row:
    """One row, and the record that it came from. ``values``: in the order of the statement's columns."""

    values: postgres.Row
    record: kafka.Record

    @property
    def key(self) -> RowKey:
        return str(self.values[0]), str(self.values[1])


class _Table(Protocol):
    """How records of some topics become rows of one table."""

    topics: list[str]
    sql: str

    def row(self, record: kafka.Record) -> _Row | None:
        """Return the record's row; None for one that is not ours to report. Raises kinds.RejectedError."""

    def newest(self, earlier: _Row, later: _Row) -> _Row:
        """Return the one row that stands for two of the same key, in the order in which they came."""

    def lane(self, record: kafka.Record) -> str:
        """Return the lane that a dead letter names."""


class _Requests:
    """``job_request``: the newest request of a key, and when the first came."""

    def __init__(self, config: settings.PersisterSettings) -> None:
        self._kinds = config.kinds
        self._max_message_bytes = config.max_message_bytes
        self._lanes = config.lanes
        self._lane_of_topic = config.lane_of_topic
        self.topics = list(self._lane_of_topic)
        self.sql = postgres.statement("upsert_job_request")

    def row(self, record: kafka.Record) -> _Row | None:
        kind = self._lanes[self.lane(record)].kind
        try:
            request, _ = documents.write_assignment(
                record.value, record.position, self._kinds[kind], self._max_message_bytes
            )
        except kinds.RejectedError as error:
            # The same check makes the bridge write the dead letter.
            _SKIPPED.labels(record.position.topic, error.reason).inc()
            return None
        return _Row((kind, request.key, record.created, request.raw.decode()), record)

    def newest(self, earlier: _Row, later: _Row) -> _Row:
        kind, key, created, _ = earlier.values
        return _Row((kind, key, created, later.values[3]), later.record)

    def lane(self, record: kafka.Record) -> str:
        return self._lane_of_topic[record.position.topic]


class _Results:
    """``job_result``: always the newest result of a key."""

    def __init__(self, config: settings.PersisterSettings) -> None:
        self._kinds = config.kinds
        self._lanes = config.lanes
        self._pool_of_topic = {pool.result_topic: name for name, pool in config.pools.items()}
        self.topics = list(self._pool_of_topic)
        self.sql = postgres.statement("upsert_job_result")

    def row(self, record: kafka.Record) -> _Row | None:
        members, ours = documents.read_result(record.value)
        kind, key, finished = (str(ours.get(name, "")) for name in ("kind", "key", "finished"))
        if kind not in self._kinds or not key or not finished:
            raise kinds.RejectedError("member-type", f"{documents.MEMBER!r} is not as a worker writes it")
        outcome = kinds.outcome(members, self._kinds[kind])
        result = documents.without_ours(record.value).decode()
        return _Row((kind, key, finished, outcome.status, outcome.hit, result), record)

    def newest(self, earlier: _Row, later: _Row) -> _Row:
        return max(earlier, later, key=lambda row: str(row.values[2]))

    def lane(self, record: kafka.Record) -> str:
        pool = self._pool_of_topic[record.position.topic]
        return next(name for name, lane in self._lanes.items() if lane.pool == pool)


class Persister(service.Service):
    """Write what comes on Kafka to PostgreSQL: one transaction a batch, then the offsets.

    A crash between the two writes the batch again, which changes nothing. PostgreSQL away: waits, nothing committed.
    A row that PostgreSQL refuses becomes a dead letter; the rest of its batch goes in.
    """

    def __init__(self, config: settings.PersisterSettings, secrets: settings.Credentials) -> None:
        self._config = config
        self._secrets = secrets
        self._table: _Table = _Requests(config) if config.instance == "requests" else _Results(config)
        self._group = f"slowjobs-persister-{config.instance}"
        self._connection: psycopg2.extensions.connection | None = None
        self._stopping = asyncio.Event()
        self._written = 0

    def stop(self) -> None:
        """End: 1 stop polling, 2 write the batch at hand, 3 commit, 4 close."""
        self._stopping.set()

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says."""
        return {"instance": self._config.instance, "topics": self._table.topics, "written": self._written}

    async def run(self) -> None:
        """Work until ``stop``. Raises kafka.FencedError when another persister has taken over."""
        consumer = kafka.Consumer(self._config.kafka, self._secrets, group=self._group, topics=self._table.topics)
        producer = kafka.Producer(self._config.kafka, self._secrets, client_id=self._group)
        work = asyncio.create_task(self._work(consumer, producer))
        stopped = asyncio.create_task(self._stopping.wait())
        failed = asyncio.create_task(producer.watch())
        try:
            await asyncio.wait([work, stopped, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
            await asyncio.wait([work], timeout=_STOP_SECONDS)
            if work.done():
                await work
        finally:
            for task in (work, stopped, failed):
                task.cancel()
            self._interrupt()
            await producer.close()
            await consumer.close()

    async def _work(self, consumer: kafka.Consumer, producer: kafka.Producer) -> None:
        while not self._stopping.is_set():
            batch = await consumer.fetch(_BATCH_MESSAGES, wait_seconds=_BATCH_SECONDS, gather_seconds=_BATCH_SECONDS)
            if batch:
                await self._persist(batch, producer)
                consumer.commit(_next_offsets(batch))
            else:
                consumer.commit({})  # what Kafka did not take before

    async def _persist(self, batch: Sequence[kafka.Record], producer: kafka.Producer) -> None:
        rows: dict[RowKey, _Row] = {}
        for record in batch:
            try:
                row = self._table.row(record)
            except kinds.RejectedError as error:
                await self._bury(producer, record, error)
                continue
            if row is not None:
                rows[row.key] = self._table.newest(rows[row.key], row) if row.key in rows else row
        # In the order of their keys: two writers that lock the same rows cannot deadlock.
        ordered = [rows[key] for key in sorted(rows)]
        for index, refusal in await self._write(ordered):
            row = ordered[index]
            await self._bury(producer, row.record, kinds.RejectedError("row-rejected", refusal), key=row.key[1])

    async def _write(self, rows: Sequence[_Row]) -> list[tuple[int, str]]:
        values = [row.values for row in rows]
        async for attempt in retry.while_away("postgresql", *postgres.AwayError):
            with attempt:
                refused = await asyncio.to_thread(self._write_once, values)
        self._written += len(rows) - len(refused)
        for row in rows:
            _ROWS.labels(row.record.position.topic).inc()
        return refused

    def _write_once(self, values: Sequence[postgres.Row]) -> list[tuple[int, str]]:
        if self._connection is None:
            self._connection = postgres.connect(
                self._config.postgresql, self._secrets, service=f"persister-{self._config.instance}"
            )
        try:
            return postgres.write(self._connection, self._table.sql, values)
        except postgres.AwayError:
            self._disconnect()
            raise

    def _interrupt(self) -> None:
        """End a statement that still waits, for a lock perhaps; its thread then disconnects by itself."""
        if self._connection is not None:
            with contextlib.suppress(*postgres.AwayError):
                self._connection.cancel()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _bury(
        self, producer: kafka.Producer, record: kafka.Record, error: kinds.RejectedError, *, key: str | None = None
    ) -> None:
        lane = self._table.lane(record)
        await producer.send_dead_letter(
            documents.DeadLetter(lane, error.reason, error.error, "persister", record.value, record.position, key)
        )
        _DEAD.labels(record.position.topic, error.reason).inc()
        log.warning(
            "persister.dead_letter", lane=lane, position=str(record.position), reason=error.reason, error=error.error
        )


def _next_offsets(batch: Iterable[kafka.Record]) -> dict[tuple[str, int], int]:
    return {record.position.partition_of: record.position.offset + 1 for record in batch}
