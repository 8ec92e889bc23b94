import base64
import json
import time
import zlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slowjobs import documents, kinds, settings

KIND = settings.JobKind(type="job", key=("file_id",))
POSITION = documents.Position("fixity-check", 3, 41207)


@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=4),
    st.sampled_from([None, 2]),
    st.text(),
)
def test_a_request_comes_back_from_nsq_as_it_was_sent(
    members: dict[str, object], indent: int | None, tail: str
) -> None:
    raw = json.dumps({**members, '"_slowjobs": ': tail, "file_id": "a"}, indent=indent).encode()
    assume("\\u0000" not in raw.decode())
    _, body = documents.write_assignment(raw, POSITION, KIND, 10_000)
    ours = json.loads(body)["_slowjobs"]
    assert ours.pop("crc32") == zlib.crc32(raw.rstrip()[:-1].rstrip())
    assert ours == {"v": 1, "position": ["fixity-check", 3, 41207], "key": '["a"]'}
    back = documents.read_assignment(body, KIND)
    assert back.position == POSITION
    assert back.request.key == '["a"]'
    assert json.loads(back.request.raw) == json.loads(raw)


def test_a_request_that_grows_over_nsqds_limit_on_its_way_is_too_large() -> None:
    raw = b'{"file_id": "a"}'
    with pytest.raises(kinds.RejectedError, match="too-large"):
        documents.write_assignment(raw, POSITION, KIND, len(raw) + 10)


def test_a_message_that_nsqd_made_of_two_is_no_request() -> None:
    one, other = (
        documents.write_assignment(b'{"file_id": "a", "size": %d}' % size, POSITION, KIND, 10_000)[1] for size in (1, 2)
    )
    half = one.index(b'"_slowjobs"')
    with pytest.raises(documents.TornError):
        documents.read_assignment(one[:half] + other[half:], KIND)


@pytest.mark.parametrize("crc32", [b"", b'"crc32": null, ', b'"other": [], '])
def test_a_request_of_an_older_bridge_has_no_check_sum(crc32: bytes) -> None:
    body = b'{"file_id": "a", "_slowjobs": {"v": 1, %s"position": ["t", 0, 1], "key": "k"}}' % crc32
    assert documents.read_assignment(body, KIND).position is not None


def test_numbers_keep_every_digit_on_their_way() -> None:
    raw = b'{"file_id": "a", "n": 1.00000000000000000001, "big": 1e200000}'
    _, body = documents.write_assignment(raw, POSITION, KIND, 10_000)
    assert documents.read_assignment(body, KIND).request.raw == raw


def test_an_empty_object_gets_no_comma() -> None:
    assert json.loads(documents.splice(b"{ }", {"v": 1})) == {"_slowjobs": {"v": 1}}


def test_an_object_published_by_hand_is_an_assignment_without_position() -> None:
    back = documents.read_assignment(b'{"file_id": "a"}', KIND)
    assert back.position is None
    assert back.request.key == '["a"]'


@pytest.mark.parametrize("version", ["2", '"1"', "null"])
def test_a_document_of_another_version_is_refused_by_name(version: str) -> None:
    body = b'{"file_id": "a", "_slowjobs": {"v": %s}}' % version.encode()
    with pytest.raises(documents.UnknownVersionError, match="expected version 1"):
        documents.read_assignment(body, KIND)
    with pytest.raises(documents.UnknownVersionError, match="expected version 1"):
        documents.read_result(body)


@pytest.mark.parametrize(
    "ours",
    [
        b'{"v": 1}',
        b'{"v": 1, "key": "k"}',
        b'{"v": 1, "key": "k", "position": 3}',
        b'{"v": 1, "key": "k", "position": "abc"}',
        b'{"v": 1, "key": "k", "position": ["topic", "0", 0]}',
    ],
)
def test_a_message_whose_member_of_ours_is_broken_is_refused(ours: bytes) -> None:
    with pytest.raises(kinds.RejectedError, match="member-type"):
        documents.read_assignment(b'{"file_id": "a", "_slowjobs": %s}' % ours, KIND)


def test_a_dead_letter_carries_an_object_as_it_is_and_anything_else_in_base64() -> None:
    letter = documents.DeadLetter("lane", "rejected", "no", "worker", b'{"n": 1e200000}', POSITION)
    written = letter.write(1000)
    assert b'"request": {"n": 1e200000}' in written
    assert kinds.parse_object(written)["position"] == ["fixity-check", 3, 41207]
    broken = documents.DeadLetter("lane", "not-json", "no", "bridge", b"\xff{", POSITION).write(1000)
    assert json.loads(broken)["request"] is None
    assert base64.b64decode(json.loads(broken)["request_base64"]) == b"\xff{"


def test_a_dead_letter_that_would_be_too_large_says_so_and_goes_without_its_request() -> None:
    letter = documents.DeadLetter("lane", "too-large", "no", "bridge", b'{"a": "%s"}' % (b"x" * 2000), POSITION)
    written = json.loads(letter.write(1000))
    assert written["request"] is None
    assert "2009 bytes" in written["error"]


@given(
    st.binary(max_size=50)
    | st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False)).map(json.dumps).map(str.encode)
)
def test_a_request_comes_back_from_its_dead_letter_byte_for_byte(raw: bytes) -> None:
    letter = documents.DeadLetter("lane", "rejected", 'it said "request": {}', "worker", raw, POSITION)
    assert documents.dead_request(letter.write(10_000)) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b' {"request": {"request": 1e200000}, "n": 1.50}\n',
        b'{"file_id": "a", "deep": ' + b"[" * 99 + b"]" * 99 + b"}",
    ],
)
def test_no_request_is_too_strange_for_its_dead_letter(raw: bytes) -> None:
    assert documents.dead_request(documents.DeadLetter("lane", "rejected", "no", "worker", raw).write(10_000)) == raw


def test_a_dead_letter_that_was_too_large_for_its_request_gives_none() -> None:
    letter = documents.DeadLetter("lane", "too-large", "no", "bridge", b'{"a": "%s"}' % (b"x" * 2000), POSITION)
    assert documents.dead_request(letter.write(1000)) is None


def test_a_marker_names_the_dead_letter_that_was_replayed() -> None:
    assert documents.replayed_id(documents.read_dead_letter(documents.write_replayed(7))) == 7
    letter = documents.DeadLetter("lane", "rejected", "no", "worker", b"{}").write(1000)
    assert documents.replayed_id(documents.read_dead_letter(letter)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"lane": None},
        {"reason": 5},
        {"position": "abc"},
        {"position": [1, 2, 3]},
        {"at": None},
        {"replayed": True, "lane": 1},
    ],
)
def test_a_dead_letter_that_nobody_of_ours_wrote_is_refused(change: dict[str, object]) -> None:
    letter = json.loads(documents.DeadLetter("lane", "rejected", "no", "worker", b"{}", POSITION).write(1000))
    with pytest.raises(kinds.RejectedError, match="member-type"):
        documents.read_dead_letter(json.dumps({**letter, **change}).encode())


STARTED = documents.Event("started", "host/pool/1", lane="lane", position=POSITION, attempt=1, nsqd="nsqd1")


@pytest.mark.parametrize(
    "event",
    [
        STARTED,
        documents.Event("requeued", "host/pool/1", "lane", POSITION, 2, "nsqd1", until=documents.now(30), reason="no"),
        documents.Event("done", "host/bridge", "lane", POSITION, outcome="dead", reason="not-json"),
        documents.Event("abandoned", "host/pool/1", "lane", POSITION, 2, "nsqd1"),
        documents.Event("up", "host/pool/1"),
    ],
)
def test_an_event_comes_back_as_it_was_told(event: documents.Event) -> None:
    assert documents.read_event(event.write()) == event


@pytest.mark.parametrize(
    "change",
    [
        {"event": "ended"},
        {"event": ["up"]},
        {"worker": None},
        {"position": None},
        {"position": ["topic", "0", 0]},
        {"nsqd": None},
        {"nsqd": 1},
        {"attempt": "1"},
        {"at": None},
        {"at": "yesterday"},
        {"at": "2026-01-01T00:00:00"},
        {"event": "requeued"},
        {"event": "requeued", "until": "2026-01-32T00:00:00Z"},
        {"event": "done"},
        {"event": "done", "outcome": "undone"},
        {"event": "done", "outcome": ["dead"]},
    ],
)
def test_an_event_that_nobody_of_ours_wrote_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(kinds.RejectedError, match="member-"):
        documents.read_event(json.dumps({**json.loads(STARTED.write()), **change}).encode())


def test_an_event_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(documents.UnknownVersionError, match="expected version 1"):
        documents.read_event(b'{"v": 2, "event": "up", "worker": "host/pool/1", "at": "2026-01-01T00:00:00Z"}')


def test_a_time_that_is_written_is_read_as_the_same_moment() -> None:
    assert abs(documents.seconds(documents.now(3600)) - (time.time() + 3600)) < 1
    assert documents.seconds("1970-01-02T00:00:00.250000Z") == 86400.25
