"""What the ledger takes for lost, and what not: each rule by itself. ``test_ledger_world`` mixes them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slowjobs import documents
from slowjobs.bridge import ledger
from slowjobs.bridge.ledger import CLOCK_SECONDS, DEFERRED_MARGIN_SECONDS, EMPTY_MARGIN_SECONDS, Figures, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: when nsqd was started; all times below are seconds since then.
START = 1_800_000_000
RUN_LIMIT = 330.0
MSG_TIMEOUT = 30.0
READING = 2.0


def position(offset: int, partition: int = 0) -> documents.Position:
    return documents.Position("requests", partition, offset)


def new_ledger(mark: int = 0, listed: int = 0) -> Ledger:
    made = Ledger(run_limit_seconds=RUN_LIMIT, msg_timeout_seconds=MSG_TIMEOUT)
    made.begin(0, mark, listed, 0)
    return made


@dataclass
class Story:
    """A ledger, what it is told, and a clock that goes on with each reading."""

    ledger: Ledger = field(default_factory=new_ledger)
    now: float = 100.0
    events: list[documents.Event] = field(default_factory=list)

    def publish(self, *offsets: int, host: str = "svc506") -> None:
        """Publish, and hear that nsqd has all."""
        positions = [position(offset) for offset in offsets]
        self.ledger.publish(positions, host)
        self.ledger.settle(positions, len(positions))

    def tell(
        self,
        event: Literal["started", "requeued", "done", "abandoned", "up"],
        offset: int | None = None,
        worker: str = "worker1/pool/1",
        host: str = "svc506",
        *,
        delay: float = 0.0,
    ) -> None:
        self.events.append(
            documents.Event(
                event,
                worker,
                position=None if offset is None else position(offset),
                nsqd=host,
                until=documents.moment(START + self.now + delay),
                at=documents.moment(START + self.now),
            )
        )
        self.ledger.apply(self.events[-1], len(self.events) - 1)

    def read(
        self, queued: int, in_flight: int = 0, deferred: int = 0, *, times: int = 1, started_at: float = 0
    ) -> list[int]:
        """Read one nsqd so many times, two seconds apart; return what is lost then."""
        for _ in range(times):
            self.read_hosts({"svc506": Figures(int(START + started_at), queued, in_flight, deferred)})
        return self.lost

    def read_hosts(self, hosts: Mapping[str, Figures]) -> list[int]:
        self.now += READING
        self.ledger.begin_reading(START + self.now)
        self.ledger.end_reading(hosts, START + self.now)
        return self.lost

    @property
    def lost(self) -> list[int]:
        return [each.offset for each in self.ledger.lost]


@pytest.fixture
def story() -> Story:
    return Story()


# (a) as many without evidence as are missing


def test_what_nobody_has_started_is_lost_when_as_many_are_missing_in_three_readings(story: Story) -> None:
    story.publish(1, 2, 3)
    story.tell("started", 2)
    assert story.read(0, 1, times=2) == []
    assert story.read(0, 1) == [1, 3]
    assert story.ledger.missing == 2


def test_nothing_is_concluded_while_more_could_be_missing_than_are(story: Story) -> None:
    story.publish(1, 2, 3)
    assert story.read(2, times=10) == []
    story.tell("started", 1)
    story.tell("started", 3)
    assert story.read(0, 2, times=3) == [2]


@pytest.mark.parametrize("between", ["a reading in which nothing is missing", "a host that does not answer"])
def test_three_readings_that_agree_are_three_in_a_row(story: Story, between: str) -> None:
    story.publish(1)
    story.read(0, times=2)
    if between == "a host that does not answer":
        story.ledger.miss_reading()
    else:
        story.read(1)
    assert story.read(0, times=2) == []
    assert story.read(0) == [1]


def test_only_what_was_suspected_in_all_three_readings_is_lost(story: Story) -> None:
    story.publish(1, 2)
    story.tell("started", 2)
    story.read(0, 1, times=2)
    story.tell("requeued", 2, delay=-DEFERRED_MARGIN_SECONDS - 1)
    assert story.read(0) == [1]


def test_what_is_published_after_a_reading_has_begun_is_not_missing_in_it(story: Story) -> None:
    for offset in range(10):
        story.ledger.begin_reading(START + story.now)
        story.publish(offset)
        story.ledger.end_reading({"svc506": Figures(START, offset, 0, 0)}, START + story.now)
    assert (story.lost, story.ledger.holding) == ([], False)


def test_a_batch_whose_answer_is_missing_is_not_counted_before_it_is_settled(story: Story) -> None:
    story.ledger.publish([position(1), position(2)], "svc506")
    assert story.read(0, times=20) == []
    assert not story.ledger.holding


# (b) NSQ is seen empty


def empty_readings() -> int:
    return int((MSG_TIMEOUT + EMPTY_MARGIN_SECONDS) / READING) + 2


def test_an_empty_nsq_is_believed_whatever_a_message_by_hand_makes_of_the_sum(story: Story) -> None:
    story.publish(1)
    assert story.read(0, 0, 1, times=empty_readings() - 1) == []
    assert story.read(0, 0, 1) == [1]


def test_an_empty_nsq_is_not_believed_while_something_is_in_flight_that_nobody_has_told_of(story: Story) -> None:
    story.publish(1)
    assert story.read(0, 1, times=3 * empty_readings()) == []


def test_the_time_of_an_empty_nsq_begins_anew_when_something_waits(story: Story) -> None:
    story.publish(1)
    story.read(0, 0, 1, times=empty_readings() - 1)
    story.read(1)
    assert story.read(0, 0, 1, times=empty_readings() - 1) == []
    assert story.read(0, 0, 1) == [1]


# Evidence, and its end


def test_what_runs_on_a_live_worker_is_left_alone_until_its_time_is_over(story: Story) -> None:
    story.publish(1)
    story.tell("started", 1)
    begun = story.now
    while story.now < begun + RUN_LIMIT:
        assert story.read(0, started_at=150) == []  # nsqd was killed, and knows nothing of it
    assert story.read(0, started_at=150, times=3) == [1]


def test_a_deferral_is_no_evidence_any_more_when_nsqd_was_started_anew(story: Story) -> None:
    story.publish(1)
    story.tell("requeued", 1, delay=900)
    assert story.read(0, started_at=100 + CLOCK_SECONDS + 1, times=3) == [1]


def test_a_deferral_counts_when_clocks_may_have_put_it_before_nsqds_start(story: Story) -> None:
    story.publish(1)
    story.tell("requeued", 1, delay=900)
    assert story.read(0, 0, 1, started_at=100 + CLOCK_SECONDS, times=2 * empty_readings()) == []


def test_what_nobody_has_started_and_what_was_deferred_just_before_nsqds_start_are_lost_together(story: Story) -> None:
    story.publish(1, 2)
    story.tell("requeued", 1, delay=900)
    assert story.read(0, started_at=story.now + 1, times=3) == [2, 1]


def test_a_deferral_is_evidence_until_it_has_surely_come_back(story: Story) -> None:
    story.publish(1)
    story.tell("requeued", 1, delay=60)
    due = story.now + 60
    while story.now < due + DEFERRED_MARGIN_SECONDS:
        assert story.read(0) == []
    assert story.read(0, times=3) == [1]


@pytest.mark.parametrize("event", ["abandoned", "up"])
def test_a_run_that_ended_without_an_answer_is_in_flight_until_nsqd_has_noticed(story: Story, event: str) -> None:
    story.publish(1, 2)
    story.tell("started", 2)  # and the channel was emptied: it runs on, nsqd does not know it
    story.tell("started", 1, "worker2/pool/1")
    if event == "up":
        story.tell("up", None, "worker2/pool/2")
    else:
        story.tell("abandoned", 1, "worker2/pool/1")
    ended = story.now
    while story.now < ended + MSG_TIMEOUT + DEFERRED_MARGIN_SECONDS:
        assert story.read(0, 1) == []


@pytest.mark.parametrize("event", ["abandoned", "up"])
def test_a_run_that_ended_is_not_waited_for_when_nsqd_was_started_anew(story: Story, event: str) -> None:
    story.publish(1)
    story.tell("started", 1)
    assert story.read(0, started_at=150, times=3) == []
    if event == "up":
        story.tell("up", None, "worker1/pool/2")
    else:
        story.tell("abandoned", 1)
    assert story.read(0, started_at=150, times=3) == [1]


def test_an_up_ends_no_run_of_another_place(story: Story) -> None:
    story.publish(1, 2)
    story.tell("started", 1, "worker1/pool/1")
    story.tell("started", 2, "worker1/other/1")
    story.tell("up", None, "worker1/other/2")
    story.tell("up", None, "worker2/pool/2")
    assert story.read(0, started_at=150, times=3) == [2]


@pytest.mark.parametrize("event", ["requeued", "abandoned"])
def test_what_a_worker_says_late_of_a_request_that_another_has_begun_ends_nothing(
    story: Story, event: Literal["requeued", "abandoned"]
) -> None:
    story.publish(1)
    story.tell("started", 1, "worker1/pool/1")
    story.tell("started", 1, "worker2/pool/1")
    story.tell(event, 1, "worker1/pool/1", delay=-100)
    story.now += MSG_TIMEOUT + DEFERRED_MARGIN_SECONDS
    assert story.read(0, started_at=150, times=10) == []


def test_evidence_ends_between_two_readings_and_not_within_one(story: Story) -> None:
    story.publish(1, 2)
    story.tell("started", 1)  # nsqd has forgotten it
    story.tell("requeued", 2, delay=0)
    for seconds in (0.0, 2.0, 4.0, DEFERRED_MARGIN_SECONDS - 0.5):
        story.ledger.begin_reading(START + story.now + seconds)
        story.ledger.end_reading({"svc506": Figures(START, 0, 0, 1)}, START + story.now + seconds + 1)
    assert (story.lost, story.ledger.unaccounted) == ([], 0)


def test_done_is_final(story: Story) -> None:
    story.publish(1)
    story.tell("done", 1)
    story.tell("started", 1)
    story.tell("requeued", 1, delay=60)
    assert story.read(0, times=empty_readings()) == []
    assert story.ledger.lowest(0) == story.ledger.mark(0) == 2


def test_a_lost_one_of_which_a_worker_tells_is_not_lost(story: Story) -> None:
    story.publish(1)
    assert story.read(0, times=3) == [1]
    story.tell("started", 1)
    assert story.lost == []
    story.tell("done", 1)
    assert story.read(0, times=empty_readings()) == []


def test_a_lost_one_that_is_published_again_is_as_any_other(story: Story) -> None:
    story.publish(1)
    story.read(0, times=3)
    story.publish(1)
    assert story.read(1, times=3) == []
    assert story.read(0, times=3) == [1]


# The balance


def test_what_runs_and_is_not_in_flight_is_not_missing_among_the_waiting(story: Story) -> None:
    story.publish(1, 2)
    story.tell("started", 1)
    # One is missing. It is the one that runs: the channel was emptied before 2 was published.
    assert story.read(1, times=empty_readings()) == []


def test_what_is_deferred_by_a_workers_word_and_not_by_nsqds_is_not_missing_among_the_waiting(story: Story) -> None:
    story.publish(1, 2)
    story.tell("requeued", 1, delay=900)
    assert story.read(1, times=empty_readings()) == []


# The hold


def test_nothing_new_is_published_while_some_are_missing_and_all_may_be_when_none_is(story: Story) -> None:
    story.publish(1, 2)
    story.read(1, times=2)
    assert not story.ledger.holding
    story.read(1)
    assert story.ledger.holding
    assert (story.ledger.missing, story.ledger.unaccounted) == (1, 2)
    assert story.ledger.missing_since is not None
    story.read(2)
    assert not story.ledger.holding
    assert (story.ledger.missing, story.ledger.unaccounted, story.ledger.missing_since) == (0, 0, None)


def test_a_request_that_later_ones_have_overtaken_long_ago_holds_the_lane(story: Story) -> None:
    story.publish(1)
    story.publish(2)
    story.tell("started", 2)
    story.tell("done", 2)
    overtaken = story.now + MSG_TIMEOUT + ledger.OVERDUE_MARGIN_SECONDS
    # A message by hand hides that the first is lost.
    while story.now < overtaken:
        story.read(1)
        assert not story.ledger.holding
    story.read(1, times=2)
    assert story.ledger.holding
    story.tell("started", 1)
    story.read(1, 1)
    assert not story.ledger.holding


# Hosts


def test_what_a_host_held_that_was_taken_out_is_lost_and_what_still_runs_is_left_alone(story: Story) -> None:
    story.publish(1, 2, 3, host="svc506")
    story.publish(4, host="svc507")
    story.tell("started", 1)
    story.tell("requeued", 2, delay=900)
    new = {"svc507": Figures(START, 1, 0, 0)}
    for _ in range(10):
        assert story.read_hosts(new) == []  # more may be missing than are
    story.tell("started", 4, "worker2/pool/1", "svc507")
    for _ in range(3):
        story.read_hosts({"svc507": Figures(START, 0, 1, 0)})
    assert story.lost == [2, 3]


def test_the_sum_is_over_all_hosts(story: Story) -> None:
    story.publish(1, host="svc506")
    story.publish(2, host="svc507")
    for _ in range(empty_readings()):
        story.read_hosts({"svc506": Figures(START, 0, 0, 0), "svc507": Figures(START, 2, 0, 0)})
    assert (story.lost, story.ledger.holding) == ([], False)


# Settling


def test_what_lies_behind_what_nsqd_has_stored_is_published_again_at_once(story: Story) -> None:
    batch = [position(offset) for offset in (1, 2, 4)]
    story.ledger.publish(batch, "svc506")
    story.ledger.settle(batch, 1)
    assert story.lost == [2, 4]
    assert story.read(1, times=3) == [2, 4]
    assert story.ledger.outstanding == 3


def test_what_was_done_or_is_told_of_before_its_batch_is_settled_was_stored(story: Story) -> None:
    batch = [position(offset) for offset in (1, 2, 3)]
    story.ledger.publish(batch, "svc506")
    story.tell("done", 1)
    story.tell("started", 2)
    story.ledger.settle(batch, 0)
    assert story.lost == [3]


# The commit, and a restart


def test_the_commit_is_the_lowest_that_is_not_done_and_gaps_in_the_offsets_are_none(story: Story) -> None:
    story.publish(3, 7, 8)
    assert (story.ledger.lowest(0), story.ledger.mark(0)) == (3, 9)
    story.tell("done", 7)
    assert story.ledger.undone(0) == {3: "svc506", 8: "svc506"}
    story.tell("done", 3)
    assert story.ledger.lowest(0) == 8
    story.tell("done", 8)
    assert story.ledger.lowest(0) == 9


def test_what_is_told_done_before_it_is_published_is_known_after_a_restart(story: Story) -> None:
    story.publish(1)
    story.tell("done", 5)
    assert story.ledger.is_done(position(5))
    again = restart(story)
    assert again.is_done(position(5))


def test_what_was_discarded_is_not_missing_and_lost_no_more(story: Story) -> None:
    story.publish(1, 2)
    assert story.read(0, times=3) == [1, 2]
    story.ledger.finish_all(0, 9)
    assert story.read(0, times=3) == []
    assert (story.ledger.holding, story.ledger.missing, story.ledger.mark(0)) == (False, 0, 9)


def test_what_kafka_has_lost_and_nsq_was_never_given_is_not_discarded(story: Story) -> None:
    story.publish(1)
    assert list(story.ledger.not_done(0, range(7, 9))) == [1, 7, 8]


def test_a_partition_that_went_takes_its_lost_ones_along(story: Story) -> None:
    story.publish(1)
    story.read(0, times=3)
    story.ledger.forget(0)
    story.tell("done", 1)
    assert (story.lost, story.ledger.outstanding) == ([], 0)


def restart(story: Story) -> Ledger:
    """Return the ledger of the next bridge, from what this one commits now and the events from there on."""
    was = story.ledger
    again = new_ledger(was.mark(0), was.listed(0))
    for offset, host in was.undone(0).items():
        again.restore(position(offset), host)
    for offset in range(was.events_needed(0, len(story.events)), len(story.events)):
        again.apply(story.events[offset], offset)
    return again


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish", "started", "started", "requeued", "abandoned", "done", "done", "up"]),
        st.integers(0, 12),
        st.sampled_from(["worker1/pool/1", "worker2/pool/1"]),
    ),
    max_size=60,
)


def play(steps: Iterable[tuple[str, int, str]]) -> tuple[Story, set[int], set[int]]:
    """Return the story, what was published in it and what was told to be done."""
    story = Story()
    published: set[int] = set()
    done: set[int] = set()
    for step, offset, worker in steps:
        if step != "publish":
            story.tell(step, None if step == "up" else offset, worker, delay=offset)  # type: ignore[arg-type]
            done |= {offset} if step == "done" else set()
        elif offset not in done and offset > max(published, default=-1):
            story.publish(offset)
            published.add(offset)
        story.now += 1
    return story, published, done


@given(STEPS)
def test_the_books_are_right_whatever_is_told_in_whatever_order(steps: list[tuple[str, int, str]]) -> None:
    story, published, done = play(steps)
    assert list(story.ledger.undone(0)) == sorted(published - done)
    assert story.ledger.outstanding == story.ledger.count(0) == len(published - done)
    assert story.ledger.mark(0) == max(published, default=-1) + 1
    assert story.ledger.lowest(0) == min(published - done, default=story.ledger.mark(0))
    backlog = range(story.ledger.mark(0), 13)
    assert all(story.ledger.is_done(position(offset)) == (offset in done) for offset in backlog)
    assert list(story.ledger.not_done(0, range(13))) == sorted(published.union(backlog) - done)


@settings(deadline=None)
@given(STEPS, st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
def test_a_restart_concludes_the_same_from_the_commit_and_the_events(
    steps: list[tuple[str, int, str]], queued: int, in_flight: int, deferred: int
) -> None:
    story, _, _ = play(steps)
    again = Story(restart(story), story.now)
    for _ in range(empty_readings() + 5):
        assert again.read(queued, in_flight, deferred) == story.read(queued, in_flight, deferred)
        assert again.ledger.unaccounted == story.ledger.unaccounted
