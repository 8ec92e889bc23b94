"""What a worker tells the ledger, each event acknowledged by Kafka before the worker goes on (design, "Data")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from slowjobs import documents, kafka

if TYPE_CHECKING:
    from slowjobs.worker import tasks


class Events:
    """The events of one worker. Each call returns when Kafka has the event.

    A request that a person published has no position: the ledger does not know it, and is told nothing.
    """

    def __init__(self, producer: kafka.Producer, worker: str) -> None:
        self._producer = producer
        self._worker = worker

    async def up(self) -> None:
        """Tell that this process begins: what earlier ones ran in its place is over."""
        await self._send(documents.Event("up", self._worker))

    async def started(self, task: tasks.Task) -> None:
        """Tell it before the handler begins."""
        await self._tell(task, "started")

    async def requeued(self, task: tasks.Task, delay_seconds: float, reason: str | None = None) -> None:
        """Tell it before REQ."""
        await self._tell(task, "requeued", until=documents.now(delay_seconds), reason=reason)

    async def done(
        self, task: tasks.Task, outcome: Literal["result", "skipped", "dead"], reason: str | None = None
    ) -> None:
        """Tell it after the result or the dead letter, before FIN."""
        await self._tell(task, "done", outcome=outcome, reason=reason)

    async def abandoned(self, task: tasks.Task, reason: str) -> None:
        """Tell that it ended here without a result and without REQ: nsqd gives it to somebody after msg-timeout."""
        await self._tell(task, "abandoned", reason=reason)

    async def _tell(
        self,
        task: tasks.Task,
        event: Literal["started", "requeued", "done", "abandoned"],
        **members: Any,
    ) -> None:
        position = task.assignment.position
        if position is None:
            return
        await self._send(
            documents.Event(
                event,
                self._worker,
                lane=task.lane,
                position=position,
                attempt=task.message.attempts,
                nsqd=task.source.subscription.host,
                **members,
            )
        )

    async def _send(self, event: documents.Event) -> None:
        await self._producer.send_for_sure(kafka.EVENTS, event.write())
