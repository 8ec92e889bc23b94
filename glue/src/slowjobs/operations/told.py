"""What workers have told since a moment: which requests they put back, and which they ran more than once."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from slowjobs import documents, kafka, kinds
from slowjobs.operations.gate import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slowjobs import settings

#: seconds; nsqd's --max-req-timeout, which no deferral outlasts, and what clocks may differ.
_LONGEST_DEFERRAL_SECONDS = 15 * 60 + 30


def deferred(config: settings.CliSettings, secrets: settings.Credentials, host: str) -> Figure:
    """Count the requests that are put back on nsqd ``host`` for later.

    ``last_due``: when the last of them comes back, null if there is none.
    """
    due: dict[documents.Position, str] = {}
    for position, event in _since(config, secrets, time.time() - _LONGEST_DEFERRAL_SECONDS):
        due.pop(position, None)
        if event.event == "requeued" and event.nsqd == host and event.until:
            due[position] = event.until
    later = [until for until in due.values() if until > documents.now()]
    return Figure(len(later), {"host": host, "last_due": max(later, default=None)})


def run_twice(config: settings.CliSettings, secrets: settings.Credentials, since: float) -> Figure:
    """Count the requests that came to an end more than once since a moment, in seconds since 1970."""
    ends = Counter(position for position, event in _since(config, secrets, since) if event.event == "done")
    twice = sorted(str(position) for position, count in ends.items() if count > 1)
    return Figure(len(twice), {"since": documents.moment(since), "positions": twice})


def _since(
    config: settings.CliSettings, secrets: settings.Credentials, moment: float
) -> Iterator[tuple[documents.Position, documents.Event]]:
    """Yield what was told of requests of our lanes since a moment."""
    for message in kafka.scan(config.kafka, secrets, kafka.EVENTS, since=moment):
        try:
            event = documents.read_event(message.value() or b"")
        except (kinds.RejectedError, documents.UnknownVersionError):
            continue  # nobody of ours wrote it, or one of another version
        if event.position and event.position.topic in config.lane_of_topic:
            yield event.position, event
