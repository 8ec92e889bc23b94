import contextlib
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slowjobs import kinds, settings

FIXITY = settings.JobKind(type="job", key=("file_id",))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def reason_of(raw: bytes) -> str:
    with pytest.raises(kinds.RejectedError) as caught:
        kinds.parse(raw, FIXITY)
    return caught.value.reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not-json"),
        (b"no JSON", "not-json"),
        (b'{"file_id": "a"', "not-json"),
        (b'{"file_id": "\xff"}', "not-json"),
        (b'{"file_id": NaN}', "not-json"),
        (b'{"file_id": "\\ud800"}', "not-json"),
        (b'{"file_id": ' + b"9" * 5000 + b"}", "member-type"),
        (b'\xef\xbb\xbf{"file_id": "a"}', "not-json"),
        (b'"file_id"', "not-an-object"),
        (b"null", "not-an-object"),
        (b'[{"file_id": "a"}]', "not-an-object"),
        (b'{"path": "/etc/hosts"}', "member-missing"),
        (b'{"file_id": null}', "member-type"),
        (b'{"file_id": true}', "member-type"),
        (b'{"file_id": 1.5}', "member-type"),
        (b'{"file_id": ["a"]}', "member-type"),
        (b'{"file_id": "a\\u0000b"}', "nul-character"),
        (b'{"file_id": "a", "deep": {"er": ["\\u0000"]}}', "nul-character"),
        (b'{"file_id": "a", "\\u0000": 1}', "nul-character"),
        (b'{"file_id": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "too-deep"),
        (b'{"file_id": "a", "x": ' + b"[" * 100 + b"]" * 100 + b"}", "too-deep"),
        (b'{"file_id": "' + b"a" * 2000 + b'"}', "key-too-long"),
    ],
)
def test_a_request_that_cannot_be_accepted_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    assert reason_of(raw) == reason


def test_a_hundred_levels_are_accepted() -> None:
    assert kinds.parse(b'{"file_id": "a", "x": ' + b"[" * 99 + b"]" * 99 + b"}", FIXITY).key == '["a"]'


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert kinds.parse(b'{"file_id": "a\\\\u0000"}', FIXITY).members["file_id"] == "a\\u0000"


def test_the_key_is_the_array_of_its_members_with_a_space_after_each_comma() -> None:
    kind = settings.JobKind(type="job", key=("a", "b"))
    assert kinds.parse('{"b": 7, "a": "ü\\"", "c": null}'.encode(), kind).key == '["ü\\"", 7]'


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused_with_a_reason(raw: bytes) -> None:
    with contextlib.suppress(kinds.RejectedError):
        kinds.parse(raw, FIXITY)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.integers() | st.text(max_size=50))
def test_what_is_accepted_is_exactly_what_was_sent(members: dict[str, object], file_id: int | str) -> None:
    sent = {**members, "file_id": file_id}
    raw = json.dumps(sent).encode()
    assume("\\u0000" not in raw.decode())
    request = kinds.parse(raw, FIXITY)
    assert request.raw == raw
    assert request.members == sent
    assert request.key == json.dumps([file_id], ensure_ascii=False)


@pytest.mark.parametrize("result", [{"status": 3}, {"status": None}, {"hit": "yes"}, {"hit": None}])
def test_a_result_with_a_wrong_status_or_hit_is_refused(result: dict[str, object]) -> None:
    with pytest.raises(kinds.RejectedError, match="member-type"):
        kinds.outcome(result, FIXITY)


def test_a_result_without_status_and_hit_is_a_successful_hit() -> None:
    assert kinds.outcome({}, FIXITY) == kinds.Outcome("success", True)


INGEST = settings.IngestKind(type="ingest")
INGEST_REQUEST = {
    "link_source": "doi",
    "link_source_id": "10.123/abc",
    "ingest_type": "pdf",
    "base_url": "https://example.org/paper",
}
INGEST_RESULT = {"request": INGEST_REQUEST, "hit": False, "status": "no-pdf-link"}


def test_an_ingest_request_has_two_keys_and_requests_can_share_a_result() -> None:
    request = kinds.parse(json.dumps({**INGEST_REQUEST, "ext_ids": {"doi": "10.123/abc"}}).encode(), INGEST)
    assert request.key == '["doi", "10.123/abc", "pdf", "https://example.org/paper"]'
    assert request.result_key == '["pdf", "https://example.org/paper"]'


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("link_source", 5),
        ("link_source", ""),
        ("link_source_id", 5),
        ("link_source_id", ""),
        ("ingest_type", "movie"),
        ("ingest_type", 3),
        ("base_url", "example.org/paper"),
        ("base_url", ""),
        ("base_url", 7),
    ],
)
def test_an_ingest_request_that_its_table_or_a_handler_could_not_use_is_refused(member: str, value: object) -> None:
    with pytest.raises(kinds.RejectedError, match=f"member-type: '{member}': expected"):
        kinds.parse(json.dumps({**INGEST_REQUEST, member: value}).encode(), INGEST)


@pytest.mark.parametrize("member", INGEST_REQUEST)
def test_an_ingest_request_without_a_member_of_its_key_is_refused(member: str) -> None:
    rest = {name: value for name, value in INGEST_REQUEST.items() if name != member}
    with pytest.raises(kinds.RejectedError, match=f"member-missing: '{member}'"):
        kinds.parse(json.dumps(rest).encode(), INGEST)


def test_an_ingest_result_says_what_its_table_holds() -> None:
    terminal = {
        "terminal_url": "https://example.org/paper.pdf",
        "terminal_dt": "20261122103000",
        "terminal_status_code": 200,
        "terminal_sha1hex": "a" * 40,
    }
    result = {**INGEST_RESULT, "hit": True, "status": "success", "terminal": terminal}
    assert kinds.outcome(result, INGEST) == kinds.IngestOutcome("success", True, *terminal.values())
    assert kinds.outcome(INGEST_RESULT, INGEST) == kinds.IngestOutcome("no-pdf-link", False, None, None, None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"request": None},
        {"request": {}},
        {"hit": None},
        {"hit": 1},
        {"status": None},
        {"terminal": "x"},
        {"terminal": {"terminal_url": 3}},
        {"terminal": {"terminal_dt": "2026-11-22"}},
        {"terminal": {"terminal_status_code": True}},
        {"terminal": {"terminal_sha1hex": "A" * 40}},
    ],
)
def test_an_ingest_result_that_its_table_could_not_hold_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(kinds.RejectedError, match="member-"):
        kinds.outcome({**INGEST_RESULT, **change}, INGEST)
