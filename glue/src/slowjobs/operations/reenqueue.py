"""``slowjobs reenqueue``: old requests on a lane again, of those that PostgreSQL knows without a result that will do.

What is sent is written to PostgreSQL batch by batch, after Kafka has acknowledged it: a run that is killed leaves at
most its last batch unwritten there, and the next run waits for persister@requests, which writes the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from slowjobs import documents, kafka, kinds, postgres, settings
from slowjobs.operations import under_way
from slowjobs.persister import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import psycopg2.extensions

#: requests, and bytes of them, that are sent, acknowledged and written together.
_BATCH_REQUESTS = 500
_BATCH_BYTES = 8 * 1024 * 1024
#: rows that PostgreSQL gives at once; a request has up to 1 MiB.
_FETCHED_ROWS = 100
#: seconds that Kafka has for a batch.
_ACKNOWLEDGE_SECONDS = 60.0
#: a position beyond the end of its topic is of one that was there before it, unless it was written since the end was
#: read; producers' clocks may be so far off.
_RECENT = timedelta(hours=1)
#: requests that a report shows, and refusals that it lists.
_SAMPLE = 5
_LISTED = 100
#: The query looks up one row after another by an index. Left to itself the planner can prefer, with old statistics or
#: none, to read whole tables and join them before the first row comes.
PLANNER = """
    SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
    SET LOCAL jit = off
"""

#: why a request is left out: its newest position was not handed to NSQ yet; it was, and is not done; it was sent again
#: a short time ago. The query says the same words.
ON_KAFKA, IN_NSQ, COOL_DOWN = "on-kafka", "in-nsq", "cool-down"
#: why a request is refused by Kafka; other reasons are those of dead letters.
NOT_SENT = "not-sent"
#: why a request is not sent whose kind had other key members when it came.
KEY_CHANGED = "key-changed"


class RunningError(Exception):
    """Another run sends requests of the same kind."""


@dataclass
class Report:
    """What was found, and what became of it.

    ``requests``: selected, or sent; ``sample``: some of them. ``left_out``: (reason, Kafka topic) -> requests.
    ``refused``: reason -> requests that their kind or Kafka does not take any more, ``refusals`` some of them with key
    and error.
    """

    under_way: under_way.UnderWay
    requests: int = 0
    sample: list[kinds.JsonObject] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[tuple[str, str]] = field(default_factory=list)

    def add(self, request: kinds.Request) -> None:
        """Count a request that is selected, or sent."""
        self.requests += 1
        if len(self.sample) < _SAMPLE:
            self.sample.append(request.members)

    def refuse(self, key: str, reason: str, error: str) -> None:
        """Count a request that cannot be sent."""
        self.refused[reason] += 1
        if len(self.refusals) < _LISTED:
            self.refusals.append((key, error))


class Reenqueue:
    """One policy, or what a person asked for instead, at work. ``timeout_seconds``: how long persisters are waited for.

    Both methods look at everything anew, and raise under_way.DeadlineError, settings.ConfigurationError for a policy
    that cannot work, documents.UnknownVersionError, and errors.SERVER_ERRORS; ``advance`` hears of each request that is
    dealt with.
    """

    def __init__(
        self,
        config: settings.CliSettings,
        secrets: settings.Credentials,
        policy: settings.Policy,
        *,
        timeout_seconds: float,
        waiting: under_way.Waiting,
        advance: Callable[[int], None],
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._policy = policy
        self._kind = config.lanes[policy.lane].kind
        self._timeout_seconds = timeout_seconds
        self._waiting = waiting
        self._advance = advance

    def count(self) -> Report:
        """Return what ``send`` would send now."""
        report = self._look()
        with self._connect() as connection:
            for request in self._select(connection, report):
                report.add(request)
                self._advance(1)
        return report

    def send(self, by: str, *, at_most: int | None = None) -> Report:
        """Send what is selected, and return it. ``by``: who is to be read in the messages' header.

        Raises RunningError, and TimeoutError for what Kafka does not acknowledge: the next run finds out about that.
        """
        with self._connect() as reading, self._connect() as writing:
            self._lock(writing)
            report = self._look()
            producer = kafka.BulkProducer(self._config.kafka, self._secrets, client_id="slowjobs-reenqueue")
            for batch in _batches(itertools.islice(self._select(reading, report), at_most)):
                sent = self._send(producer, batch, by, report)
                self._write(writing, sent)
                for request, _ in sent:
                    report.add(request)
                self._advance(len(batch))
        return report

    # Looking

    def _look(self) -> Report:
        self._check_results_are_kept()
        return Report(
            under_way.read(
                self._config,
                self._secrets,
                self._kind,
                timeout_seconds=self._timeout_seconds,
                waiting=self._waiting,
            )
        )

    def _check_results_are_kept(self) -> None:
        for name, lane in self._config.lanes.items():
            if lane.kind == self._kind and self._config.pools[lane.pool].persist_results == "none":
                raise settings.ConfigurationError(
                    f"lane {name}: pool {lane.pool} has persist_results none, so a request of kind {self._kind} that"
                    f" has its result cannot be told from one that has none. Set it to status or full first."
                )

    def _select(self, connection: psycopg2.extensions.connection, report: Report) -> Iterator[kinds.Request]:
        """Yield what may be sent, at most as many as the lane has room for, and count what may not."""
        return itertools.islice(self._candidates(connection, report), self._room(report.under_way))

    def _room(self, seen: under_way.UnderWay) -> int | None:
        """Return how many requests the lane may get, None for any number.

        With a limit the lane never has more than that to do, however often a policy runs while nobody works on it.
        """
        if self._policy.limit is None:
            return None
        topic = self._config.kafka_topic(self._policy.lane)
        return max(0, self._policy.limit - seen.unpublished(topic) - seen.outstanding(topic))

    def _candidates(self, connection: psycopg2.extensions.connection, report: Report) -> Iterator[kinds.Request]:
        topic = self._config.kafka_topic(self._policy.lane)
        kind = self._config.kinds[self._kind]
        for key, raw, left_out in select(connection, self._config, self._policy, report.under_way):
            if left_out is not None:
                reason, _, where = left_out.partition(" ")
                report.left_out[reason, where] += 1
                continue
            try:
                request = documents.check_request(
                    raw.encode(), documents.longest_position(topic), kind, self._config.nsqd.max_message_bytes
                )
            except kinds.RejectedError as error:
                report.refuse(key, error.reason, error.error)
                continue
            if request.key == key:
                yield request
            else:  # its result would be another row's, and it would be sent again for ever
                report.refuse(key, KEY_CHANGED, f"the members that identify it today make {request.key}")

    @contextlib.contextmanager
    def _connect(self) -> Iterator[psycopg2.extensions.connection]:
        connection = postgres.connect(self._config.postgresql, self._secrets, service="reenqueue")
        with contextlib.closing(connection):
            yield connection

    # Sending

    def _lock(self, connection: psycopg2.extensions.connection) -> None:
        """Keep other runs of this kind out until the connection is closed. Raises RunningError."""
        with connection, connection.cursor() as cursor:
            name = f"slowjobs-reenqueue {self._kind}"
            cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,))
            if cursor.fetchone() != (True,):
                raise RunningError(f"another run sends requests of kind {self._kind}: wait for its end")

    def _send(
        self, producer: kafka.BulkProducer, batch: list[kinds.Request], by: str, report: Report
    ) -> list[tuple[kinds.Request, kafka.Delivered]]:
        """Return what Kafka has acknowledged, once it has answered for all of the batch."""
        sent: list[tuple[kinds.Request, kafka.Delivered]] = []

        def _answered(request: kinds.Request, answer: kafka.Delivered | kafka.DeliveryError) -> None:
            if isinstance(answer, kafka.DeliveryError):
                report.refuse(request.key, NOT_SENT, str(answer))
            else:
                sent.append((request, answer))

        topic = self._config.kafka_topic(self._policy.lane)
        headers = {kafka.REENQUEUED_HEADER: by.encode()}
        for request in batch:
            producer.send(
                topic, request.raw, key=request.key.encode(), headers=headers, then=partial(_answered, request)
            )
        deadline = time.monotonic() + _ACKNOWLEDGE_SECONDS
        # Now and then a signal gets its turn.
        while (missing := producer.flush(1)) and time.monotonic() < deadline:
            pass
        if missing:
            raise TimeoutError(
                f"Kafka has not acknowledged {missing} requests within {_ACKNOWLEDGE_SECONDS:g} s, and may have them:"
                f" another run finds out"
            )
        return sent

    def _write(
        self, connection: psycopg2.extensions.connection, sent: list[tuple[kinds.Request, kafka.Delivered]]
    ) -> None:
        """Write where the requests are now; the persister writes the same, before or after."""
        rows = [
            tables.RequestPosition.of(self._kind, request.key, delivered.position, delivered.created, reenqueued=True)
            for request, delivered in sent
        ]
        with connection, connection.cursor() as cursor:
            tables.write(cursor, rows)


def _batches(requests: Iterable[kinds.Request]) -> Iterator[list[kinds.Request]]:
    batch: list[kinds.Request] = []
    size = 0
    for request in requests:
        batch.append(request)
        size += len(request.raw)
        if len(batch) == _BATCH_REQUESTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def select(
    connection: psycopg2.extensions.connection,
    config: settings.CliSettings,
    policy: settings.Policy,
    seen: under_way.UnderWay,
) -> Iterator[tuple[str, str, str | None]]:
    """Yield key, request and why it is left out, of each request that the policy is about, one for each result key.

    The rows come through a server-side cursor, in no particular order. Raises psycopg2.Error.
    """
    with connection.cursor() as cursor:
        cursor.execute(PLANNER)
    with connection.cursor(name="reenqueue") as cursor:
        cursor.itersize = _FETCHED_ROWS
        cursor.execute(*query(config, policy, seen))
        yield from cursor


def query(
    config: settings.CliSettings, policy: settings.Policy, seen: under_way.UnderWay
) -> tuple[str, dict[str, object]]:
    """Return the statement of ``select``, and its parameters."""
    kind = config.lanes[policy.lane].kind
    partitions = seen.partitions.items()
    now = datetime.now(UTC)
    older_than = policy.result_older_than_days
    by_result = older_than is not None or policy.statuses
    return postgres.statement(f"reenqueue_{config.kinds[kind].type}"), {
        "kind": kind,
        "since": now - timedelta(days=policy.window_days),
        "before": "infinity" if older_than is None else now - timedelta(days=older_than),
        "wanted": [like(glob) for glob in policy.statuses or ("*",)] if by_result else [],
        "unwanted": [like(glob) for glob in policy.exclude_statuses],
        "cool_since": now - timedelta(hours=policy.cool_down_hours),
        # Above the list nothing is done, whether it was handed to NSQ or not: the mark is there as a rule.
        "listed": json.dumps({topic: [each.listed for each in progress] for topic, progress in partitions}),
        "end": json.dumps({topic: [each.end for each in progress] for topic, progress in partitions}),
        "recent": now - _RECENT,
        # One text each: PostgreSQL looks it up by its hash.
        "undone": [
            f"{topic} {partition} {offset}"
            for topic, progress in partitions
            for partition, each in enumerate(progress)
            for offset in each.undone
        ],
    }


def like(glob: str) -> str:
    """Return the pattern of SQL's LIKE that matches what ``glob`` does: ``*`` any characters, ``?`` one."""
    plain = glob.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return plain.replace("*", "%").replace("?", "_")
