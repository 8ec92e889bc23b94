"""The persister: from Kafka to PostgreSQL, every request and its newest result."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import prometheus_client
import structlog

from slowjobs import kafka, kinds, postgres, retry, service
from slowjobs.persister import records, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg2

    from slowjobs import settings

log = structlog.get_logger()

#: a batch ends with so many messages or after so many seconds.
_BATCH_MESSAGES = 1000
_BATCH_SECONDS = 0.5
#: seconds; a batch that cannot be written while stopping is left to the next start.
_STOP_SECONDS = 5.0

_WRITTEN = prometheus_client.Counter("slowjobs_persisted_records_total", "Requests or results written", ["topic"])
_DEAD = prometheus_client.Counter("slowjobs_persister_dead_letters_total", "Records refused", ["topic", "reason"])


@dataclass(frozen=True)
class _Entry:
    """A record and the rows that it comes to, over several tables perhaps: all are written, or none."""

    record: kafka.Record
    rows: list[tables.Row]


@dataclass(frozen=True)
class _Batch:
    """Records as they were read. ``offsets``: what is committed once all of them are dealt with."""

    entries: list[_Entry]
    rejected: list[tuple[kafka.Record, kinds.RejectedError]]
    offsets: dict[tuple[str, int], int]


class Persister(service.Service):
    """Write what comes on Kafka to PostgreSQL: one transaction a batch, then the offsets.

    A crash between the two writes the batch again, which changes nothing. PostgreSQL away: waits, nothing committed.
    A record of which PostgreSQL refuses a row becomes a dead letter; the rest of its batch goes in.
    """

    def __init__(self, config: settings.PersisterSettings, secrets: settings.Credentials) -> None:
        self._config = config
        self._secrets = secrets
        self._records: records.Records = (
            records.Requests(config) if config.instance == "requests" else records.Results(config)
        )
        self._group = f"slowjobs-persister-{config.instance}"
        self._connection: psycopg2.extensions.connection | None = None
        self._stopping = asyncio.Event()
        self._written = 0

    def stop(self) -> None:
        """End: 1 stop polling, 2 write the batch at hand, 3 commit, 4 close."""
        self._stopping.set()

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says."""
        return {"instance": self._config.instance, "topics": self._records.topics, "written": self._written}

    async def run(self) -> None:
        """Work until ``stop``. Raises kafka.FencedError when another persister has taken over, and kafka.DeafError."""
        gc.freeze()  # each batch sets off collections, which need not look at all that was imported
        consumer = kafka.Consumer(self._config.kafka, self._secrets, group=self._group, topics=self._records.topics)
        producer = kafka.Producer(self._config.kafka, self._secrets, client_id=self._group)
        work = asyncio.create_task(self._work(consumer, producer))
        stopped = asyncio.create_task(self._stopping.wait())
        failed = asyncio.create_task(producer.watch())
        deaf = asyncio.create_task(kafka.until_deaf(kafka.Topics(self._config.kafka, self._secrets), [consumer]))
        try:
            await asyncio.wait([work, stopped, failed, deaf], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
            if deaf.done():
                raise kafka.DeafError(f"{self._group} hears nothing of Kafka any more, others do")
            await asyncio.wait([work], timeout=_STOP_SECONDS)
            if work.done():
                await work
        finally:
            for task in (work, stopped, failed, deaf):
                task.cancel()
            self._interrupt()
            await producer.close()
            await consumer.close()

    async def _work(self, consumer: kafka.Consumer, producer: kafka.Producer) -> None:
        """Fetch and read a batch while PostgreSQL writes the one before."""
        writing = asyncio.ensure_future(self._persist(self._read([]), producer))
        try:
            while not self._stopping.is_set():
                fetched = await consumer.fetch(
                    _BATCH_MESSAGES, wait_seconds=_BATCH_SECONDS, gather_seconds=_BATCH_SECONDS
                )
                batch = self._read(fetched)
                batch.offsets.update(consumer.ends())
                # Nothing to commit, perhaps: then what Kafka did not take before goes again.
                consumer.commit(await writing)
                writing = asyncio.ensure_future(self._persist(batch, producer))
            consumer.commit(await writing)
        finally:
            writing.cancel()

    def _read(self, fetched: Sequence[kafka.Record]) -> _Batch:
        batch = _Batch([], [], {record.position.partition_of: record.position.offset + 1 for record in fetched})
        for record in fetched:
            try:
                rows = self._records.rows(record)
            except kinds.RejectedError as error:
                batch.rejected.append((record, error))
                continue
            if rows:
                batch.entries.append(_Entry(record, rows))
        return batch

    async def _persist(self, batch: _Batch, producer: kafka.Producer) -> dict[tuple[str, int], int]:
        refused = await self._write(batch.entries) if batch.entries else []
        rejected = [(entry.record, kinds.RejectedError("row-rejected", refusal)) for entry, refusal in refused]
        for record, error in (*batch.rejected, *rejected):
            await self._bury(producer, record, error)
        return batch.offsets

    async def _write(self, entries: Sequence[_Entry]) -> list[tuple[_Entry, str]]:
        async for attempt in retry.while_away("postgresql", postgres.AwayError):
            with attempt:
                refused = await asyncio.to_thread(self._write_once, entries)
        self._written += len(entries) - len(refused)
        counts = Counter(entry.record.position.topic for entry in entries)
        counts.subtract(entry.record.position.topic for entry, _ in refused)
        for topic, count in counts.items():
            _WRITTEN.labels(topic).inc(count)
        return refused

    def _write_once(self, entries: Sequence[_Entry]) -> list[tuple[_Entry, str]]:
        if self._connection is None:
            self._connection = postgres.connect(
                self._config.postgresql, self._secrets, service=f"persister-{self._config.instance}"
            )
        try:
            return postgres.write(self._connection, entries, _upsert)
        except postgres.AwayError:
            self._disconnect()
            raise

    def _interrupt(self) -> None:
        """End a statement that still waits, for a lock perhaps; its thread then disconnects by itself."""
        if self._connection is not None:
            with contextlib.suppress(postgres.AwayError):
                self._connection.cancel()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _bury(self, producer: kafka.Producer, record: kafka.Record, error: kinds.RejectedError) -> None:
        letter = self._records.letter(record, error)
        await producer.send_dead_letter(letter)
        _DEAD.labels(record.position.topic, error.reason).inc()
        log.warning(
            "persister.dead_letter",
            lane=letter.lane,
            key=letter.key,
            position=str(record.position),
            reason=error.reason,
            error=error.error,
        )


def _upsert(cursor: psycopg2.extensions.cursor, entries: Sequence[_Entry]) -> None:
    tables.write(cursor, [row for entry in entries for row in entry.rows])
