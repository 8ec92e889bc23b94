from hypothesis import given
from hypothesis import strategies as st

from slowjobs.bridge import cap


def read(lane: cap.Cap, held: int, *, copying: bool = False) -> None:
    lane.end_reading(lane.begin_reading(), held, copying=copying)


def test_there_is_no_room_before_two_readings_and_none_after_they_are_forgotten() -> None:
    lane = cap.Cap(10)
    assert lane.room == 0
    read(lane, 0)
    assert lane.room == 0
    read(lane, 0)
    assert lane.room == 10
    lane.forget()
    assert lane.room == 0


def test_a_message_that_one_reading_misses_leaves_no_room() -> None:
    lane = cap.Cap(10)
    for held in (10, 10, 9):
        read(lane, held)
    assert lane.room == 0


def test_a_message_between_topic_and_channel_leaves_no_room() -> None:
    lane = cap.Cap(10)
    for held in (9, 9):
        read(lane, held, copying=True)
    assert lane.room == 0
    read(lane, 9)
    read(lane, 9)
    assert lane.room == 1


def test_a_lane_that_may_hold_one_request_gets_one_after_another() -> None:
    lane = cap.Cap(1)
    for _ in range(3):
        read(lane, 0)
        read(lane, 0)
        assert lane.room == 1
        lane.send(1)
        assert lane.room == 0
        lane.settle(1)
        read(lane, 1)
        read(lane, 1)
        assert lane.room == 0


def test_what_was_published_while_a_reading_was_under_way_counts_beside_it() -> None:
    lane = cap.Cap(10)
    read(lane, 0)
    mark = lane.begin_reading()
    lane.send(4)
    lane.settle(4)
    lane.end_reading(mark, 0, copying=False)
    assert lane.outstanding == 5  # and one that may be between topic and channel
    read(lane, 4)
    read(lane, 4)
    assert lane.outstanding == 4


def test_a_batch_that_nsqd_is_still_storing_counts_whole() -> None:
    lane = cap.Cap(10)
    read(lane, 0)
    read(lane, 0)
    lane.send(10)
    for stored in (3, 7):
        read(lane, stored)
        assert lane.room == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans(), st.integers(1, 3), st.integers(0, 30)),
        max_size=60,
    ),
    st.integers(1, 40),
)
def test_the_cap_holds_whatever_workers_finish_and_whatever_readings_miss(
    steps: list[tuple[int, int, bool, int, int]], limit: int
) -> None:
    """In each step a batch is sent, readings see part of it stored and miss one that moves, some requests finish.

    ``uncopied`` requests wait in the topic: while there are any, each reading misses one more, on its way.
    """
    lane = cap.Cap(limit)
    held, missed = 0, False
    for wanted, finished, may_miss, readings, uncopied in steps:
        count = min(wanted, lane.room)
        lane.send(count)
        held += count
        assert held <= limit
        for _ in range(readings):
            mark = lane.begin_reading()
            seen = held - count // 2
            copying = 0 < uncopied <= seen
            seen -= copying
            misses = may_miss and seen > 0 and not missed and not copying
            lane.end_reading(mark, seen - misses, copying=copying)
            missed = misses
        lane.settle(count)
        held -= min(finished, held)
