"""What the records of Kafka come to: rows, or a dead letter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import prometheus_client

from slowjobs import documents, kafka, kinds
from slowjobs.persister import tables

if TYPE_CHECKING:
    from slowjobs import settings

_SKIPPED = prometheus_client.Counter(
    "slowjobs_skipped_requests_total", "The bridge's dead letters", ["topic", "reason"]
)

_REQUESTS: dict[str, type[tables.JobRequest | tables.IngestRequest]] = {
    "job": tables.JobRequest,
    "ingest": tables.IngestRequest,
}


class Records(Protocol):
    """How the records of some topics are read."""

    topics: list[str]

    def rows(self, record: kafka.Record) -> list[tables.Row]:
        """Return the record's rows, none for one that is not to be kept. Raises kinds.RejectedError."""

    def letter(self, record: kafka.Record, error: kinds.RejectedError) -> documents.DeadLetter:
        """Return what is to be said of a record whose rows cannot be written."""


class Requests:
    """Requests: each comes to a row of its kind's request table, and to its position.

    One that was sent again on purpose is in its table already, perhaps in a newer form: only its position is written.
    """

    def __init__(self, config: settings.PersisterSettings) -> None:
        self._config = config
        self._lane_of_topic = config.lane_of_topic
        self.topics = list(self._lane_of_topic)

    def rows(self, record: kafka.Record) -> list[tables.Row]:
        """Return what ``Records`` says. What the bridge makes a dead letter of, by the same check, is only counted."""
        kind = self._config.lanes[self._lane_of_topic[record.position.topic]].kind
        try:
            request = self._check(record)
        except kinds.RejectedError as error:
            _SKIPPED.labels(record.position.topic, error.reason).inc()
            return []
        position = tables.RequestPosition.of(
            kind, request.key, record.position, record.created, reenqueued=record.reenqueued
        )
        if position.last_seen is None:
            return [position]
        return [_REQUESTS[self._config.kinds[kind].type].of(kind, request, position.last_seen), position]

    def letter(self, record: kafka.Record, error: kinds.RejectedError) -> documents.DeadLetter:
        """Return what ``Records`` says."""
        return documents.DeadLetter(
            self._lane_of_topic[record.position.topic],
            error.reason,
            error.error,
            "persister",
            record.value,
            record.position,
            self._check(record).key,
        )

    def _check(self, record: kafka.Record) -> kinds.Request:
        kind = self._config.kind_of(self._lane_of_topic[record.position.topic])
        return documents.check_request(record.value, record.position, kind, self._config.max_message_bytes)


class Results:
    """Results: each comes to a row of its kind's result table, as far as its pool's ``persist_results`` wants."""

    def __init__(self, config: settings.PersisterSettings) -> None:
        self._config = config
        self.topics = list(dict.fromkeys(pool.result_topic for pool in config.pools.values()))

    def rows(self, record: kafka.Record) -> list[tables.Row]:
        """Return what ``Records`` says."""
        members, origin = documents.read_result(record.value)
        kind = self._config.kinds.get(origin.kind)
        if kind is None:
            raise kinds.RejectedError(
                "rejected", f"a result of kind {origin.kind!r}, which the inventory does not name"
            )
        wanted = self._persist_results(origin.lane, record.position.topic)
        if wanted == "none":
            return []
        outcome = kinds.outcome(members, kind)
        if isinstance(outcome, kinds.IngestOutcome):
            return [tables.IngestResult.of(origin.key, origin.finished, outcome)]
        result = documents.without_ours(record.value).decode() if wanted == "full" else None
        return [tables.JobResult(origin.kind, origin.key, origin.finished, outcome.status, outcome.hit, result)]

    def _persist_results(self, lane: str, topic: str) -> str:
        """Return the word of the lane's pool, or of the topic's first for a lane that is no more."""
        if lane in self._config.lanes:
            return self._config.pools[self._config.lanes[lane].pool].persist_results
        return next(pool.persist_results for pool in self._config.pools.values() if pool.result_topic == topic)

    def letter(self, record: kafka.Record, error: kinds.RejectedError) -> documents.DeadLetter:
        """Return what ``Records`` says: it is about the request, and the result stays where it is on Kafka."""
        said = f"{error.error} (the result is {record.position})"
        try:
            _, origin = documents.read_result(record.value)
        except kinds.RejectedError:
            return documents.DeadLetter(
                self._any_lane(record.position.topic), error.reason, said, "persister", record.value, record.position
            )
        return documents.DeadLetter(origin.lane, error.reason, said, "persister", None, origin.position, origin.key)

    def _any_lane(self, topic: str) -> str:
        pools = [name for name, pool in self._config.pools.items() if pool.result_topic == topic]
        return next((name for name, lane in self._config.lanes.items() if lane.pool in pools), "")
