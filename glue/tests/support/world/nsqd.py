"""nsqd, as far as the ledger can tell."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.world import times

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slowjobs import documents
    from support.world.worker import Connection
    from support.world.world import World


@dataclass(eq=False)
class Message:
    """What nsqd holds. ``position`` is None for what a person published."""

    position: documents.Position | None


class Nsqd:
    """One nsqd and its one topic: the queue is on disk, what is in flight or deferred is in memory."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.up = True
        #: by the bridge; the workers always reach it.
        self.reachable = True
        #: workers take from it.
        self.consumed = True
        #: the channel: nothing is delivered.
        self.paused = False
        self.start_time = int(world.now) - 100
        self.message_count = 0
        self.waiting: list[Message] = []
        self.in_flight: dict[Message, Connection] = {}
        #: message -> when it is due.
        self.deferred: dict[Message, float] = {}
        #: by how many the depth is wrong, until the queue is empty.
        self.misreported = 0

    @property
    def answers(self) -> bool:
        """Tell whether the bridge gets an answer."""
        return self.up and self.reachable

    def messages(self) -> Iterable[Message]:
        return itertools.chain(self.waiting, self.in_flight, self.deferred)

    def holds(self, position: documents.Position) -> bool:
        return any(message.position == position for message in self.messages())

    def depth(self) -> int:
        if not self.waiting:
            self.misreported = 0
        return max(0, len(self.waiting) + self.misreported)

    def put(self, message: Message) -> None:
        self.waiting.append(message)
        self.message_count += 1

    def deliver(self, connection: Connection) -> Message | None:
        if not self.up or self.paused or not self.waiting:
            return None
        message = self.waiting.pop(self._world.random.randrange(len(self.waiting)))
        self.in_flight[message] = connection
        return message

    def finish(self, message: Message, connection: Connection) -> bool:
        """Take a FIN; return whether the message was in flight on this connection."""
        if connection.closed or self.in_flight.get(message) is not connection:
            return False
        del self.in_flight[message]
        return True

    def requeue(self, message: Message, connection: Connection, delay: float) -> None:
        """Take a REQ: the message waits again after ``delay`` seconds."""
        if self.finish(message, connection):
            self.deferred[message] = due = self._world.now + delay
            self._world.after(delay, lambda: self._put_back(message, due))

    def _put_back(self, message: Message, due: float) -> None:
        if self.deferred.get(message) == due:
            del self.deferred[message]
            self.waiting.append(message)

    def forsake(self, connection: Connection) -> None:
        """Nobody touches what is in flight there: it waits again msg-timeout after its last touch."""
        for message, holder in self.in_flight.items():
            if holder is connection:
                seconds = times.MSG_TIMEOUT * self._world.random.uniform(2 / 3, 1)
                self._world.after(seconds, lambda message=message: self._time_out(message, connection))

    def _time_out(self, message: Message, connection: Connection) -> None:
        if self.in_flight.get(message) is connection:
            del self.in_flight[message]
            self.waiting.append(message)

    def kill(self) -> None:
        """Kill -9: what was in memory is gone."""
        self.in_flight.clear()
        self.deferred.clear()
        self._end()

    def stop(self) -> None:
        """Stop in good order: all goes to disk, delays are forgotten."""
        self.waiting += [*self.in_flight, *self.deferred]
        self.in_flight.clear()
        self.deferred.clear()
        self._end()

    def _end(self) -> None:
        self.up = False
        self._world.disconnect(self)

    def start(self) -> None:
        self.up, self.start_time, self.message_count = True, int(self._world.now), 0

    def empty(self) -> None:
        """Empty the channel, as a person can: what is in flight, too."""
        self.waiting.clear()
        self.in_flight.clear()
        self.deferred.clear()
