"""How far the bridge has come, by its commits alone."""

import pytest

from slowjobs import documents, kafka
from slowjobs.bridge import commit
from slowjobs.operations import progress

UNDONE = {3: "svc506", 7: "svc507"}


def _read(offset: int, end: int, mark: int, listed: int) -> progress.Progress:
    metadata = commit.Commit(mark, UNDONE, events=0, batch=None, listed=listed).write()
    return progress.Progress.of(kafka.Reach(offset, end, metadata))


def test_what_is_not_done_is_above_the_mark_or_listed_below_it() -> None:
    reached = _read(offset=3, end=12, mark=10, listed=10)
    assert (reached.unpublished, reached.outstanding) == (2, 2)
    assert [offset for offset in range(12) if not reached.is_done(offset)] == [3, 7, 10, 11]
    # A list that had become too long: what lies between it and the mark was handed to NSQ.
    reached = _read(offset=3, end=12, mark=10, listed=8)
    assert (reached.unpublished, reached.outstanding) == (2, 4)
    assert [offset for offset in range(12) if not reached.is_done(offset)] == [3, 7, 8, 9, 10, 11]


def test_a_commit_from_before_the_ledger_says_no_more_than_its_offset() -> None:
    reached = progress.Progress.of(kafka.Reach(5, 12, ""))
    assert (reached.unpublished, reached.outstanding, reached.is_done(4), reached.is_done(5)) == (7, 0, True, False)


@pytest.mark.parametrize("offset", [3, 9])
def test_a_topic_that_was_made_anew_begins_anew(offset: int) -> None:
    reached = _read(offset=offset, end=5, mark=10, listed=10)
    assert (reached.unpublished, reached.outstanding, reached.is_done(0)) == (5, 0, False)


def test_a_commit_of_another_version_is_refused() -> None:
    with pytest.raises(documents.UnknownVersionError):
        progress.Progress.of(kafka.Reach(0, 5, '{"v": 2}'))
