"""Waiting: for a server that is away, and before a request is tried again."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, TypeVar

import structlog
import tenacity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slowjobs import settings

T = TypeVar("T")

log = structlog.get_logger()

#: seconds before a server that is away is asked again, at first and at most.
FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 2.0
#: seconds between two log lines about the same trouble.
_LOG_EVERY_SECONDS = 60.0


def delay_seconds(retry: settings.Retry, attempt: int) -> float:
    """Draw the delay before the next try: full jitter, ``uniform(0, min(cap, base * 2**attempt))``."""
    longest = min(retry.cap_seconds, retry.base_seconds * 2 ** min(attempt, 32))
    return random.uniform(0, longest)  # noqa: S311 - jitter, no secret


def at_least(seconds: float) -> float:
    """Return ``seconds`` and up to a tenth more, so that what was told to wait does not come back all at once."""
    return seconds * random.uniform(1, 1.1)  # noqa: S311 - jitter, no secret


class OnceAMinute:
    """Says when the same trouble may be logged again."""

    def __init__(self) -> None:
        self._next = -math.inf

    def is_due(self) -> bool:
        """Return whether a minute has passed since this was last true."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _LOG_EVERY_SECONDS
        return True


def _wait(state: tenacity.RetryCallState) -> float:
    longest = min(FIRST_WAIT_SECONDS * 2 ** (state.attempt_number - 1), _LONGEST_WAIT_SECONDS)
    # Not all at the same moment.
    return float(longest * random.uniform(0.5, 0.9))  # noqa: S311 - jitter, no secret


def while_away(server: str, *errors: type[BaseException]) -> tenacity.AsyncRetrying:
    """Retry for ever while ``server`` fails with ``errors``, logged once a minute.

    Waits 0.5 s doubling to 2 s, less a random part: what waits for two servers in turn works again within 10 s.
    """
    away = OnceAMinute()

    def _log(state: tenacity.RetryCallState) -> None:
        if away.is_due():
            error = state.outcome.exception() if state.outcome else None
            log.warning("server.away", server=server, error=repr(error), tries=state.attempt_number)

    return tenacity.AsyncRetrying(
        wait=_wait,
        retry=tenacity.retry_if_exception_type(errors),
        before_sleep=_log,
    )


async def outlast(
    server: str,
    errors: type[BaseException] | tuple[type[BaseException], ...],
    ask: Callable[..., Awaitable[T]],
    *arguments: object,
) -> T:
    """Return what ``ask`` answers, asked as ``while_away`` does."""
    async for attempt in while_away(server, *(errors if isinstance(errors, tuple) else (errors,))):
        with attempt:
            return await ask(*arguments)
    raise AssertionError("while_away goes on until it returns")
