"""How many requests of a lane may go to NSQ now (docs/architecture.md, "The cap")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Reading:
    settled: int
    held: int
    copying: bool


class Cap:
    """Keeps a lane's outstanding requests at or below ``max_outstanding``.

    nsqd's depth leaves out what is in flight and deferred, so a reading is the sum of all three. A reading is not
    atomic: a message that moves between two counts can be missed once, never twice in a row. So the larger of the
    last two readings counts, each with what was sent and not answered when it began, or sent since. While nsqd copies
    from the topic to its channel, one message is in neither of them: then one more counts.
    """

    def __init__(self, max_outstanding: int) -> None:
        self.max_outstanding = max_outstanding
        self._sent = 0
        self._settled = 0
        self._readings: list[_Reading] = []

    def send(self, count: int) -> None:
        """Note ``count`` requests, before they are sent: nsqd stores them one by one until its answer."""
        self._sent += count

    def settle(self, count: int) -> None:
        """Note that ``count`` of the requests sent are in nsqd's figures from now on, or will never be."""
        self._settled += count

    def begin_reading(self) -> int:
        """Return a mark to be given to ``end_reading``: what is settled until now is in the reading's figures."""
        return self._settled

    def end_reading(self, mark: int, held: int, *, copying: bool) -> None:
        """Note what nsqd said, over all hosts: ``held`` requests, and whether some of them wait in the topic."""
        self._readings = [*self._readings[-1:], _Reading(mark, held, copying)]

    def forget(self) -> None:
        """Drop the readings: they say nothing while a host does not answer. There is no room until two new ones."""
        self._readings = []

    @property
    def outstanding(self) -> int | None:
        """Return an upper bound of the requests that NSQ holds, or None when it is not known."""
        if len(self._readings) < 2:  # noqa: PLR2004 - the last two
            return None
        moving = self._sent > self._readings[0].settled or any(reading.copying for reading in self._readings)
        return max(reading.held + self._sent - reading.settled for reading in self._readings) + moving

    @property
    def room(self) -> int:
        """Return how many requests may be published now."""
        return 0 if self.outstanding is None else max(0, self.max_outstanding - self.outstanding)
