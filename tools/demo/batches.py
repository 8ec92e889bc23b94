"""What is sent to a lane, and what is to come of it."""

import collections
import dataclasses

#: what came of a request: the status of its result, or "dead letter: REASON" -> how many.
Ends = collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The lines of one file for ``slowjobs enqueue``.

    ``expected``: of all requests that differ. ``again``: how many of the lines came before, word for word; they share
    the others' rows. ``malformed``: what is written to the lane's topic past all checks.
    """

    lane: str
    lines: list[str]
    expected: Ends
    again: int = 0
    malformed: tuple[bytes, ...] = ()
