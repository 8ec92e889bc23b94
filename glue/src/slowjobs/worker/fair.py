"""Whose turn it is: start-time fair queueing over a pool's lanes.

Goyal, Vin and Cheng, "Start-time Fair Queueing" (SIGCOMM 1996): each start advances its lane's tag by 1/weight, the
smallest tag is next, and a lane that had nothing to do comes back at the present, so that it saves up no turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class FairQueue:
    """The lanes' tags. ``weights``: ``lane -> share of the starts`` while all have work."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._now = 0.0
        self._tags: dict[str, float] = {}
        self.configure(weights)

    def configure(self, weights: Mapping[str, int]) -> None:
        """Go on with other lanes or weights."""
        self._weights = dict(weights)
        self._tags = {lane: self._tags.get(lane, 0.0) for lane in weights}

    def started(self, lane: str) -> None:
        """Count a start against the lane's share."""
        self._now = max(self._now, self._tags[lane])
        self._tags[lane] = self._now + 1 / self._weights[lane]

    def turns(self, claims: Mapping[str, float], slots: int) -> Iterator[str]:
        """Yield the lanes that the next ``slots`` starts would be of; ``claims``: how many each could start."""
        left, tags, now = dict(claims), dict(self._tags), self._now
        for _ in range(slots):
            waiting = [lane for lane, count in left.items() if count > 0]
            if not waiting:
                return
            lane = min(waiting, key=lambda lane: (max(now, tags[lane]), -self._weights[lane]))
            now = max(now, tags[lane])
            tags[lane] = now + 1 / self._weights[lane]
            left[lane] -= 1
            yield lane
