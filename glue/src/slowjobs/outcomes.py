"""What can come of one try of a request: the words between a handler and the worker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """The handler's answer: the bytes of one JSON object."""

    raw: bytes


@dataclass(frozen=True)
class Retry:
    """Try again later, as often as the pool's ``max_attempts`` allows. ``error`` says why."""

    error: str


@dataclass(frozen=True)
class Reject:
    """Never try again: a dead letter of this ``reason`` (design, "Data")."""

    reason: str
    error: str


Outcome = Result | Retry | Reject
