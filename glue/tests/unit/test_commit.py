import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slowjobs import documents
from slowjobs.bridge import commit

NUMBERS = st.integers(0, 2**63 - 1)
#: small ones, for rows of neighbours.
OFFSETS = st.integers(0, 40) | NUMBERS
HOSTS = st.sampled_from(["nsqd1", "nsqd2", "nsqd3.example.org"])
BATCHES = st.builds(commit.Batch, HOSTS, NUMBERS, NUMBERS, st.sets(OFFSETS).map(lambda offsets: tuple(sorted(offsets))))
COMMITS = st.builds(
    commit.Commit,
    mark=NUMBERS,
    undone=st.dictionaries(OFFSETS, HOSTS).map(lambda undone: dict(sorted(undone.items()))),
    events=st.none() | NUMBERS,
    batch=st.none() | BATCHES,
    listed=NUMBERS,
)


def _listing(undone: dict[int, str], batch: commit.Batch | None = None) -> commit.Commit:
    return commit.Commit(mark=10**12, undone=undone, events=10**12, batch=batch, listed=10**12)


@given(COMMITS)
def test_a_restart_knows_what_was_committed(written: commit.Commit) -> None:
    read = commit.read(written.write(), 0)
    assert read == written
    assert list(read.undone) == list(written.undone)


@pytest.mark.parametrize(("count", "most_bytes"), [(1000, 3000), (1240, 3600)])
def test_a_full_lane_of_old_and_new_requests_has_room_beside_an_offset(count: int, most_bytes: int) -> None:
    offsets = sorted(random.Random(1).sample(range(10**11, 10**11 + 10_000_000), count))
    batch = commit.Batch("nsqd1", 10**9, 10**12, tuple(range(10**12, 10**12 + 100)))
    assert len(_listing(dict.fromkeys(offsets, "nsqd1"), batch).write()) < most_bytes


def test_neighbours_take_no_room() -> None:
    begun = len(_listing({5: "nsqd1"}).write())
    assert len(_listing(dict.fromkeys(range(5, 200_005), "nsqd1")).write()) <= begun + 5


def test_a_list_that_kafka_would_refuse_is_an_error() -> None:
    with pytest.raises(commit.TooLongError, match="2000 positions"):
        _listing(dict.fromkeys(range(0, 2_000_000_000, 1_000_000), "nsqd1")).write()


def test_an_offset_alone_is_from_before_the_ledger() -> None:
    assert commit.read("", 41) == commit.Commit(mark=41, undone={}, events=None, batch=None, listed=41)


@pytest.mark.parametrize(
    "text",
    [
        '{"v":2,"mark":7}',
        '{"v":1,"mark":7}',
        '{"v":1,"mark":7,"listed":7,"events":null,"batch":null,"undone":{"nsqd1":"\\u00e9"}}',
        '{"v":1,"mark":7,"listed":7,"events":null,"batch":null,"undone":[]}',
        "[" * 4000,
        "consumed by hand",
        "7",
    ],
)
def test_what_no_bridge_of_this_version_committed_is_refused_and_not_begun_anew(text: str) -> None:
    with pytest.raises(documents.UnknownVersionError):
        commit.read(text, 7)
