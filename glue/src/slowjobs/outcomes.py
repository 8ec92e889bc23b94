"""What can come of one try of a request: the words between a handler and the worker.

A Python handler returns its result, or raises ``Retry``, ``Busy`` or ``Reject``; any other exception is an unexpected
error. Nothing but the standard library is imported here: handlers import this module in environments of their own.
"""

from __future__ import annotations


class Retry(Exception):  # noqa: N818 - a word of the handler's, not an error of ours
    """Try again later, as often as the pool's ``max_attempts`` allows.

    ``delay``: seconds, 890 at most, because nsqd keeps what waits in memory; drawn by the pool's ``retry`` if absent.
    """

    def __init__(self, delay: float | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Busy(Exception):  # noqa: N818
    """What the handler needs is full: wait in this worker, without a slot, and try again after ``delay`` seconds.

    After the pool's ``park_limit_seconds`` it goes back to NSQ, which counts as a try.
    """

    def __init__(self, delay: float | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Reject(Exception):  # noqa: N818
    """Never try again: a dead letter. ``code``: its reason (design, "Data"); ``reason`` says more."""

    def __init__(self, reason: str, code: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Failed(Exception):  # noqa: N818
    """The try ended in an unexpected error: tried again as ``Retry`` is."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Result:
    """The handler's answer: the bytes of one JSON object."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


class Skipped:
    """The handler does not want the request: it is done, without a result."""


#: what ends a try for its worker.
Final = Result | Skipped | Retry | Reject | Failed
Outcome = Final | Busy
