"""``slowjobs try``: a pool's handler on a file of requests, without any queue."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slowjobs import documents, kinds, outcomes
from slowjobs.worker import answers, handler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from slowjobs import settings


@dataclass(frozen=True)
class Try:
    """What came of one request. ``key``: None for one that its kind does not accept; ``seconds``: in the handler."""

    key: str | None
    outcome: outcomes.Outcome
    seconds: float

    @property
    def name(self) -> str:
        """Return ``result``, ``skipped``, ``retry``, ``busy``, ``reject`` or ``failed``."""
        return type(self.outcome).__name__.lower()

    @property
    def good(self) -> bool:
        """A worker would be done with it, and no dead letter."""
        return isinstance(self.outcome, outcomes.Result | outcomes.Skipped)

    def as_json(self) -> dict[str, Any]:
        """Return ``key``, ``outcome`` and ``seconds``, and ``result`` or ``reason``."""
        about: dict[str, Any] = {"key": self.key, "outcome": self.name, "seconds": round(self.seconds, 3)}
        if isinstance(self.outcome, outcomes.Result):
            about["result"] = json.loads(self.outcome.raw)
        elif not isinstance(self.outcome, outcomes.Skipped):
            about["reason"] = self.outcome.reason
        return about


async def run(config: settings.WorkerSettings, lane: str, lines: Iterable[bytes]) -> AsyncIterator[Try]:
    """Yield what comes of each line, one after the other: each is one try, and is judged as the worker would.

    Empty lines are passed over. Raises settings.ConfigurationError for a handler that cannot be loaded, and OSError
    when its processes cannot be started.
    """
    pool = config.pool.model_copy(update={"slots": 1})
    tried = handler.make(pool)
    try:
        await tried.start()
        for line in lines:
            if line.strip():
                yield await _try(tried, config, lane, line.strip())
    finally:
        await tried.close()


async def _try(tried: handler.Handler, config: settings.WorkerSettings, lane: str, line: bytes) -> Try:
    kind = config.kind_of(lane)
    # The longest position there is: what passes here passes the bridge.
    position = documents.longest_position(config.kafka_topic(lane))
    try:
        request, _ = documents.write_assignment(line, position, kind, config.nsqd.max_message_bytes)
    except kinds.RejectedError as error:
        return Try(None, outcomes.Reject(str(error), error.reason), 0)
    start = time.monotonic()
    outcome = await tried.process(request)
    return Try(request.key, answers.judge(outcome, config.pool, kind), time.monotonic() - start)
