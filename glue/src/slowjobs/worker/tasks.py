"""A request in a worker, from its delivery to its answer."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slowjobs import documents

if TYPE_CHECKING:
    import asyncio

    from slowjobs import nsq, settings
    from slowjobs.worker import slots


class Stage(enum.IntEnum):
    """How far a request has come. One that is ANSWERED is nsqd's no more; the others are in flight and touched."""

    #: waits for its ``started`` event and for a slot.
    HELD = enum.auto()
    #: waits for something that was full, without a slot.
    PARKED = enum.auto()
    #: its handler runs.
    RUNNING = enum.auto()
    #: its outcome is on the way to Kafka.
    ANSWERING = enum.auto()
    #: goes back to NSQ before its end.
    RETURNING = enum.auto()
    ANSWERED = enum.auto()


@dataclass(eq=False)
class Task:
    """A delivered request. ``source`` and ``message`` are its newest delivery: what is answered and touched."""

    lane: str
    kind_name: str
    kind: settings.Kind
    assignment: documents.Assignment
    source: slots.Source
    message: nsq.Message
    stage: Stage = Stage.HELD
    #: when it came to this stage, as documents write it.
    since: str = field(default_factory=documents.now)
    #: when its handler began the last time.
    started: str | None = None
    #: the event loop's time of its last ``started`` event, and of its first parking.
    announced_at: float | None = None
    parked_at: float | None = None
    #: its lane was released while it was here: it is not parked, and begins here no more.
    released: bool = False
    work: asyncio.Task[None] | None = field(default=None, repr=False)

    def reach(self, stage: Stage) -> None:
        """Come to a stage; what goes back to NSQ comes to no other before it is there."""
        if self.stage is not Stage.RETURNING or stage is Stage.ANSWERED:
            self.stage, self.since = stage, documents.now()

    def about(self) -> dict[str, Any]:
        """Return what ``/state`` and the log say of it."""
        position = self.assignment.position
        return {
            "lane": self.lane,
            "position": position.as_json() if position else None,
            "key": self.assignment.request.key,
            "attempt": self.message.attempts,
            "nsqd": self.source.subscription.host,
            "since": self.since,
        }
