from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from slowjobs import documents, kafka, settings
from slowjobs.bridge import commit
from slowjobs.bridge.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Iterable

EVENTS = 77
_EVENT_OFFSETS = itertools.count(EVENTS + 100)


def _lane(max_outstanding: int = 1000) -> Lane:
    config = settings.BridgeSettings.model_validate(
        {
            "service": "bridge",
            "host": "control1",
            "state_address": "127.0.0.1:9301",
            "kafka": {"properties": {"bootstrap.servers": "127.0.0.1:9092"}},
            "nsqd": {
                "active": "svc506",
                "hosts": {"svc506": {"tcp_address": "127.0.0.1:4150", "http_address": "127.0.0.1:4151"}},
            },
            "kinds": {"fixity": {"type": "job", "key": ["file_id"]}},
            "pools": {"fixity": {}},
            "lanes": {"check": {"kind": "fixity", "pool": "fixity", "max_outstanding": max_outstanding}},
        }
    )
    return Lane("check", config)


def _at(offset: int, partition: int = 0) -> documents.Position:
    return documents.Position("check", partition, offset)


def _record(offset: int) -> kafka.Record:
    return kafka.Record(_at(offset), b"{}", datetime.now(UTC))


def _began(metadata: str = "", offset: int | None = None) -> Lane:
    lane = _lane()
    lane.begin(kafka.Committed("check", 0, offset, metadata), EVENTS, "first")
    return lane


def _publish(lane: Lane, offsets: Iterable[int]) -> None:
    positions = [_at(offset) for offset in offsets]
    lane.ledger.publish(positions, "svc506")
    lane.ledger.settle(positions, len(positions))


def _done(lane: Lane, offset: int) -> None:
    done = documents.Event("done", "worker1/fixity/1", "check", _at(offset), nsqd="svc506", outcome="result")
    lane.ledger.apply(done, next(_EVENT_OFFSETS))


def test_the_commit_is_the_lowest_that_is_not_done_and_a_restart_goes_on_from_it() -> None:
    lane = _began()
    _publish(lane, range(10))
    for offset in (0, 1, 4, 9):
        _done(lane, offset)
    committed = lane.to_commit(0, EVENTS)
    assert committed.offset == 2
    again = _began(committed.metadata, committed.offset)
    assert list(again.ledger.undone(0)) == [2, 3, 5, 6, 7, 8]
    assert again.ledger.mark(0) == 10
    assert again.to_commit(0, EVENTS) == committed


def test_a_commit_from_before_the_ledger_counts_all_below_it_as_done() -> None:
    lane = _began(offset=41)
    assert (lane.ledger.mark(0), lane.ledger.outstanding) == (41, 0)


def test_metadata_that_only_a_newer_bridge_understands_is_refused() -> None:
    with pytest.raises(documents.UnknownVersionError):
        _began('{"v": 2}', 41)


def test_gaps_in_the_offsets_leave_nothing_that_is_never_done() -> None:
    lane = _began()
    _publish(lane, [3, 7, 20])  # what lies between was aborted, or are the ends of transactions
    for offset in (3, 7, 20):
        _done(lane, offset)
    assert lane.to_commit(0, EVENTS).offset == 21


def test_a_batch_without_an_answer_stands_in_the_commit_until_it_is_settled() -> None:
    lane = _began()
    lane.ledger.publish([_at(0), _at(1)], "svc506")
    lane.unsettled[0] = commit.Batch("svc506", 100, 5, (0, 1))
    committed = lane.to_commit(0, EVENTS)
    again = _began(committed.metadata, committed.offset)
    assert again.unsettled == lane.unsettled
    again.ledger.settle([_at(0), _at(1)], 1)
    assert again.ledger.lost == [_at(1)]


def test_a_list_that_grew_too_long_stays_as_it_was_and_the_rest_is_read_again() -> None:
    lane = _began()
    _publish(lane, range(0, 500_000, 500))
    before = lane.to_commit(0, EVENTS)
    # Far more than any cap allows, scattered, so that no list of them fits.
    _publish(lane, range(500_000, 500_000 + 3_000_000, 1000))
    _done(lane, 500)
    after = lane.to_commit(0, EVENTS)
    assert len(after.metadata) <= commit.MAX_BYTES
    at = commit.read(after.metadata, after.offset or 0)
    assert at.listed == commit.read(before.metadata, 0).listed < at.mark
    again = _began(after.metadata, after.offset)
    _done(again, 500)
    _done(again, 501_000)  # told before Kafka gives the request again
    for offset in (499_999, 500_000, 501_000, 502_000):
        if offset >= at.listed:
            again.add(_record(offset))
    undone = again.ledger.undone(0)
    assert [offset in undone for offset in (500_000, 501_000, 502_000)] == [True, False, True]
    assert not again.backlog  # nothing of it is published again


def test_a_request_that_was_refused_before_the_crash_is_not_refused_again() -> None:
    lane = _began()
    dead = documents.Event("done", "control1/bridge", "check", _at(1), outcome="dead", reason="not-json")
    lane.ledger.apply(dead, EVENTS)
    for offset in range(3):
        lane.add(_record(offset))
    assert lane.ledger.is_done(_at(1))
    assert not lane.ledger.is_done(_at(0))
    # So that the one after the next restart knows it, too.
    assert commit.read(lane.to_commit(0, EVENTS + 10).metadata, 0).events == EVENTS


def test_what_is_deferred_and_told_before_the_commit_is_known_after_a_restart() -> None:
    lane = _began()
    _publish(lane, [0])
    event = documents.Event("requeued", "worker1/fixity/1", "check", _at(0), nsqd="svc506", until=documents.now(600))
    lane.ledger.apply(event, EVENTS + 3)
    assert commit.read(lane.to_commit(0, EVENTS + 9).metadata, 0).events == EVENTS + 3
    _done(lane, 0)
    assert commit.read(lane.to_commit(0, EVENTS + 9).metadata, 0).events == EVENTS + 9


def test_the_room_is_what_neither_ledger_nor_nsqd_take() -> None:
    lane = _lane(max_outstanding=10)
    lane.begin(kafka.Committed("check", 0, None, ""), EVENTS, "first")
    for _ in range(2):
        lane.cap.end_reading(lane.cap.begin_reading(), 3, copying=False)
    assert lane.room == 7
    _publish(lane, range(8))
    assert lane.room == 2


def test_a_full_list_of_one_lane_fits_beside_its_offset() -> None:
    lane = _began()
    _publish(lane, range(0, 10_000_000, 10_000_000 // settings.MAX_OUTSTANDING_LIMIT))
    committed = lane.to_commit(0, EVENTS)
    assert len(commit.read(committed.metadata, 0).undone) == settings.MAX_OUTSTANDING_LIMIT


def test_a_topic_that_was_made_anew_begins_anew() -> None:
    lane = _lane()
    lane.begin(kafka.Committed("check", 0, None, ""), EVENTS, "first")
    _publish(lane, range(10))
    committed = lane.to_commit(0, EVENTS)
    again = _lane()
    assert again.begin(committed, EVENTS + 9, "second") == EVENTS + 9
    assert (again.ledger.mark(0), again.ledger.outstanding) == (0, 0)


def test_what_kafka_gives_again_is_not_published_again() -> None:
    lane = _began()
    for offset in range(3):
        lane.add(_record(offset))
    lane.backlog.remove(0, 2)
    _publish(lane, [0, 1])
    for offset in range(4):
        lane.add(_record(offset))
    assert [record.position.offset for record in lane.backlog.head(10, 1000)] == [2, 3]


def test_events_about_a_topic_that_is_gone_are_not_taken_for_the_new_one() -> None:
    lane = _lane()
    lane.begin(kafka.Committed("check", 0, None, ""), EVENTS, "second")
    done = documents.Event("done", "worker1/fixity/1", "check", _at(5), nsqd="svc506", outcome="result")
    lane.ledger.apply(done, EVENTS - 1)  # read again for the sake of another lane
    assert not lane.ledger.is_done(_at(5))


def test_a_request_that_was_refused_between_others_is_remembered_no_longer_than_needed() -> None:
    lane = _began()
    dead = documents.Event("done", "control1/bridge", "check", _at(1), outcome="dead", reason="not-json")
    lane.ledger.apply(dead, EVENTS)
    _publish(lane, [0, 2])
    lane.ledger.finish(_at(1))
    assert lane.ledger.events_needed(0, EVENTS + 9) == EVENTS + 9


@pytest.mark.parametrize(("then", "now"), [("", "first"), ("first", "")])
def test_an_id_that_is_not_known_does_not_make_a_topic_another(then: str, now: str) -> None:
    lane = _lane()
    lane.begin(kafka.Committed("check", 0, None, ""), EVENTS, then)
    _publish(lane, range(10))
    again = _lane()
    again.begin(lane.to_commit(0, EVENTS), EVENTS, now)
    assert again.ledger.mark(0) == 10


def test_a_commit_that_kafka_did_not_take_is_made_again() -> None:
    lane = _began()
    _publish(lane, [0])
    _done(lane, 0)
    lane.to_commit(0, EVENTS)
    assert lane.has_changed(0, EVENTS)
    lane.confirm([0])
    assert not lane.has_changed(0, EVENTS)


def test_what_was_told_before_is_not_told_again() -> None:
    lane = _began()
    _publish(lane, [0])
    started = documents.Event("started", "worker1/fixity/1", "check", _at(0), nsqd="svc506")
    up = documents.Event("up", "worker1/fixity/2")
    again = documents.Event("started", "worker1/fixity/2", "check", _at(0), nsqd="svc506")
    for number, event in enumerate((started, up, again)):
        lane.ledger.apply(event, EVENTS + number)
    lane.ledger.apply(started, EVENTS)
    lane.ledger.apply(up, EVENTS + 1)
    assert lane.ledger.events_needed(0, EVENTS + 9) == EVENTS + 2


def test_a_large_backlog_that_was_discarded_takes_next_to_nothing_in_memory_and_commit() -> None:
    lane = _began()
    _publish(lane, range(10))
    for offset in range(10, 20):
        lane.add(_record(offset))
    lane.finish_all(0, 50_000)
    for offset in range(50_000):
        _done(lane, offset)  # the bridge reads its own words
    for offset in range(20, 50_002):
        lane.add(_record(offset))  # Kafka has sent some of it meanwhile
    committed = lane.to_commit(0, EVENTS)
    assert (committed.offset, lane.ledger.outstanding, lane.ledger.events_needed(0, EVENTS)) == (50_000, 0, EVENTS)
    assert len(committed.metadata) < 200
    assert [record.position.offset for record in lane.backlog.head(10, 1000)] == [50_000, 50_001]


def test_what_was_discarded_before_a_crash_is_neither_published_nor_discarded_again() -> None:
    lane = _began()
    _publish(lane, range(10))
    lane.finish_all(0, 2000)
    committed = lane.to_commit(0, EVENTS)
    again = _began(committed.metadata, committed.offset)
    for offset in range(2000, 3000):
        _done(again, offset)
    assert list(again.ledger.not_done(0, range(5000))) == list(range(3000, 5000))
    assert all(again.ledger.is_done(_at(offset)) for offset in range(2000, 3000))
