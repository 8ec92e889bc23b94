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
    lane.send(4)
    lane.settle(4)
    lane.end_reading(mark, 0)
    assert lane.outstanding == 4
    lane.end_reading(lane.begin_reading(), 4)
    lane.end_reading(lane.begin_reading(), 4)
    assert lane.outstanding == 4


def test_a_batch_that_nsqd_is_still_storing_counts_whole() -> None:
    lane = cap.Cap(10)
    lane.end_reading(lane.begin_reading(), 0)
    lane.end_reading(lane.begin_reading(), 0)
    lane.send(10)
    for stored in (3, 7):
        lane.end_reading(lane.begin_reading(), stored)
        assert lane.room == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=60), st.integers(1, 40))
def test_the_cap_holds_whatever_workers_finish_and_whichever_single_reading_misses_one(
    steps: list[tuple[int, int, bool]], limit: int
) -> None:
    """Each step: a batch is sent, a reading sees half of it stored (and may miss one more), some requests finish."""
    lane = cap.Cap(limit)
    held, missed = 0, False
    for wanted, finished, may_miss in steps:
        count = min(wanted, lane.room)
        lane.send(count)
        held += count
        assert held <= limit
        mark, seen = lane.begin_reading(), held - count // 2
        misses = may_miss and seen > 0 and not missed
        lane.end_reading(mark, seen - misses)
        lane.settle(count)
        held -= min(finished, held)
        missed = misses
