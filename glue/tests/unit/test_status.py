"""What `slowjobs status` shows a person, beside the document itself."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rich.console

from slowjobs.operations import status

LANE = {
    "name": "ingest-bulk", "unfinished": 512, "unpublished": 0, "waiting": 300, "in_flight": 40, "deferred": 160,
    "outstanding": 512, "max_outstanding": 1000, "paused": False, "missing": 12, "missing_since": None,
    "unaccounted": 118, "holding": True, "oldest_seconds": 7300.5,
}  # fmt: skip


def _shown(**members: Any) -> str:
    console = rich.console.Console(width=120)
    with console.capture() as capture:
        document = {"lanes": [{**LANE, **members}], "nsqd": [], "services": [], "workers": [], "errors": []}
        console.print(*status.picture(document))
    return capture.get()


def _two_minutes_past_two(*, days_ago: int) -> datetime:
    """Return that time of a day, where the reader is."""
    return datetime.now().astimezone().replace(hour=14, minute=2) - timedelta(days=days_ago)


def test_what_a_lane_misses_is_told_in_words() -> None:
    today, earlier = _two_minutes_past_two(days_ago=0), _two_minutes_past_two(days_ago=3)
    for moment, since in ((today, "14:02"), (earlier, f"{earlier:%Y-%m-%d} 14:02")):
        at = moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
        shown = _shown(missing_since=at)
        assert f"12 missing on ingest-bulk since {since}, holding new ones, 118 unaccounted\n" in shown
    # Before the third reading it is no more than a figure.
    assert "12 missing on ingest-bulk, 118 unaccounted\n" in _shown(holding=False)


@pytest.mark.parametrize("nothing", [{"missing": 0, "holding": False}, {"missing": None, "holding": None}])
def test_a_lane_that_misses_nothing_is_not_spoken_of(nothing: dict[str, object]) -> None:
    assert "missing" not in _shown(**nothing)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, " 0s "), (119, "119s"), (120, " 2m "), (7300.5, " 2h "), (200_000, " 2d ")]
)
def test_the_age_of_the_oldest_is_short_enough_to_read(seconds: float, shown: str) -> None:
    assert shown in f"{_shown(oldest_seconds=seconds)} "
