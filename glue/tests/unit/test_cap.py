from hypothesis import given
from hypothesis import strategies as st

from slowjobs import cap


def test_there_is_no_room_before_two_readings_and_none_after_they_are_forgotten() -> None:
    lane = cap.Cap(10)
    assert lane.room == 0
    lane.end_reading(lane.begin_reading(), 0)
    assert lane.room == 0
    lane.end_reading(lane.begin_reading(), 0)
    assert lane.room == 10
    lane.forget()
    assert lane.room == 0


def test_a_message_that_one_reading_misses_leaves_no_room() -> None:
    lane = cap.Cap(10)
    for outstanding in (10, 10, 9):
        lane.end_reading(lane.begin_reading(), outstanding)
    assert lane.room == 0


def test_what_was_published_while_a_reading_was_under_way_counts_beside_it() -> None:
    lane = cap.Cap(10)
    lane.end_reading(lane.begin_reading(), 0)
    mark = lane.begin_reading()
    lane.publishing(4)
    lane.end_reading(mark, 0)
    assert lane.outstanding == 4
    lane.end_reading(lane.begin_reading(), 4)
    lane.end_reading(lane.begin_reading(), 4)
    assert lane.outstanding == 4


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=60), st.integers(1, 40))
def test_the_cap_holds_whatever_workers_finish_and_whichever_single_reading_misses_one(
    steps: list[tuple[int, int, bool]], limit: int
) -> None:
    """Each step: a reading begins, up to ``wanted`` are published, some finish, the reading ends (and may miss one)."""
    lane = cap.Cap(limit)
    held, missed = 0, False
    for wanted, finished, may_miss in steps:
        mark = lane.begin_reading()
        misses = may_miss and held > 0 and not missed
        seen = held - 1 if misses else held
        count = min(wanted, lane.room)
        lane.publishing(count)
        held += count
        assert held <= limit
        lane.end_reading(mark, seen)
        held -= min(finished, held)
        missed = misses
