"""What becomes of an outcome: first on Kafka, then in the ledger's events, at last on NSQ, in this order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import prometheus_client
import structlog

from slowjobs import documents, kafka, kinds, outcomes, retry, settings
from slowjobs.worker import tasks

if TYPE_CHECKING:
    from slowjobs.worker import events

log = structlog.get_logger()

_FINISHED = prometheus_client.Counter("slowjobs_finished_tasks_total", "Tries that ended", ["lane", "outcome"])


def judge(outcome: outcomes.Outcome, pool: settings.Pool, kind: settings.Kind) -> outcomes.Outcome:
    """Return ``outcome``, or what a result is instead that its kind cannot keep or has one of ``retry_statuses``."""
    if not isinstance(outcome, outcomes.Result):
        return outcome
    try:
        status = kinds.outcome(kinds.parse_object(outcome.raw), kind).status
    except kinds.RejectedError as error:
        return outcomes.Failed(f"what it gave is not the result object: {error}")
    if status in pool.retry_statuses:
        return outcomes.Retry(reason=f"status {status!r}")
    return outcome


class Answers:
    """Answers the requests of one worker. ``configure`` tells of another configuration."""

    def __init__(self, producer: kafka.Producer, events: events.Events, worker: str, pool: settings.Pool) -> None:
        self._producer = producer
        self._events = events
        self._worker = worker
        self._pool = pool

    def configure(self, pool: settings.Pool) -> None:
        """Go on with another configuration."""
        self._pool = pool

    async def give(self, task: tasks.Task, outcome: outcomes.Final) -> bool:
        """Answer a request that was tried, FIN or REQ at last; return whether it is done."""
        if isinstance(outcome, outcomes.Result):
            outcome = await self._deliver(task, outcome)
        if isinstance(outcome, outcomes.Retry | outcomes.Failed):
            if task.message.attempts < self._pool.max_attempts:
                await self._retry(task, outcome)
                return False
            outcome = outcomes.Reject(outcome.reason, "attempts-exhausted")
        if isinstance(outcome, outcomes.Reject):
            await self._bury(task, outcome)
            await self._events.done(task, "dead", outcome.code)
        else:
            await self._events.done(task, "result" if isinstance(outcome, outcomes.Result) else "skipped")
        task.reach(tasks.Stage.ANSWERED)
        task.source.finish(task.message)
        self._count(task, outcome)
        return True

    async def give_back(
        self, task: tasks.Task, delay_seconds: float, reason: str, *, patience_seconds: float | None = None
    ) -> None:
        """Put a request back to NSQ, or let go of one whose connection is lost.

        ``patience_seconds``: how long Kafka gets to take the event; None for as long as it takes.
        """
        if task.source.subscription.closed:
            telling = asyncio.ensure_future(self._events.abandoned(task, reason))
        else:
            telling = asyncio.ensure_future(self._events.requeued(task, delay_seconds, reason))
        await asyncio.wait([telling], timeout=patience_seconds)
        telling.cancel()
        task.reach(tasks.Stage.ANSWERED)
        task.source.requeue(task.message, int(delay_seconds * 1000))

    async def _retry(self, task: tasks.Task, outcome: outcomes.Retry | outcomes.Failed) -> None:
        delay = self._delay_seconds(task, outcome)
        log.warning("worker.retry", **task.about(), delay_seconds=round(delay, 3), reason=outcome.reason)
        await self.give_back(task, delay, outcome.reason)
        self._count(task, outcome)

    def _delay_seconds(self, task: tasks.Task, outcome: outcomes.Retry | outcomes.Failed) -> float:
        if isinstance(outcome, outcomes.Failed) or outcome.delay is None:
            return retry.delay_seconds(self._pool.retry, task.message.attempts)
        return min(retry.at_least(outcome.delay), settings.MAX_DELAY_SECONDS)

    async def _deliver(self, task: tasks.Task, result: outcomes.Result) -> outcomes.Final:
        """Return ``result`` once Kafka has it, or what becomes of one that Kafka does not take."""
        request, position = task.assignment.request, task.assignment.position
        document = documents.write_result(
            result.raw,
            {
                "kind": task.kind_name,
                "lane": task.lane,
                "key": request.key,
                "position": position.as_json() if position else None,
                "attempt": task.message.attempts,
                "worker": self._worker,
                "started": task.started,
                "finished": documents.now(),
            },
        )
        if len(document) > kafka.MAX_BODY_BYTES:
            return outcomes.Reject(f"{len(document)} bytes, at most {kafka.MAX_BODY_BYTES}", "result-too-large")
        try:
            await self._producer.send(self._pool.result_topic, document, key=request.result_key.encode())
        except kafka.DeliveryError as error:
            if error.too_large:
                return outcomes.Reject(str(error), "result-too-large")
            return outcomes.Failed(f"Kafka does not take the result: {error}")
        return result

    async def _bury(self, task: tasks.Task, reject: outcomes.Reject) -> None:
        log.warning("worker.dead_letter", **task.about(), code=reject.code, reason=reject.reason)
        request, position = task.assignment.request, task.assignment.position
        letter = documents.DeadLetter(
            task.lane,
            reject.code,
            reject.reason,
            "worker",
            request.raw,
            position,
            request.key or None,
            task.message.attempts,
        )
        await self._producer.send_dead_letter(letter)

    def _count(self, task: tasks.Task, outcome: outcomes.Final) -> None:
        _FINISHED.labels(task.lane, type(outcome).__name__.lower()).inc()
