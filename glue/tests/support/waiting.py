"""Waiting for a condition, with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Seen = TypeVar("Seen")

#: seconds between two looks.
INTERVAL_SECONDS = 0.05


def wait_until(
    look: Callable[[], Seen],
    seconds: float,
    what: str,
    *,
    accept: Callable[[Seen], bool] = bool,
    while_true: Callable[[], str | None] = lambda: None,
) -> Seen:
    """Look again and again until ``accept`` takes what was seen, and return that.

    AssertionError with what was seen last after ``seconds``, or at once with what ``while_true`` says
    (a process that ended makes any waiting for it pointless).
    OSError while looking counts as nothing seen: what is being waited for may not answer yet.
    """
    deadline = time.monotonic() + seconds
    seen: object = "nothing"
    while True:
        try:
            value = look()
        except OSError as error:
            seen = error
        else:
            if accept(value):
                return value
            seen = value
        trouble = while_true()
        assert trouble is None, f"waited for {what}, but {trouble}"
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}; last seen: {shorten(seen)}"
        time.sleep(INTERVAL_SECONDS)


def shorten(seen: object, characters: int = 2000) -> str:
    text = repr(seen)
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text)} characters)"
