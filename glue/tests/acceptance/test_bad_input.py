"""A request that cannot be accepted becomes a dead letter with its reason; everything else goes on."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem

pytestmark = pytest.mark.acceptance

MEBIBYTE = 1024 * 1024


def _deep(levels: int) -> bytes:
    """Return an object that is ``levels`` deep, itself counted."""
    return b'{"file_id": "deep", "a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


#: what is sent -> the reason of its dead letter
MALFORMED: dict[bytes | None, str] = {
    b"neither JSON nor anything": "not-json",
    b"": "not-json",
    None: "not-json",
    b'{"file_id": "cut off"': "not-json",
    b'{"file_id": "NaN", "n": NaN}': "not-json",
    b'{"file_id": "infinity", "n": -Infinity}': "not-json",
    b'{"file_id": "\xff\xfe"}': "not-json",
    '{"file_id": "UTF-16"}'.encode("utf-16"): "not-json",
    b'"a string"': "not-an-object",
    b"[1, 2]": "not-an-object",
    b"null": "not-an-object",
    b'{"path": "/no/key"}': "member-missing",
    b'{"file_id": null, "n": 1}': "member-type",
    b'{"file_id": 1.5}': "member-type",
    b'{"file_id": true}': "member-type",
    b'{"file_id": ["a"]}': "member-type",
    b'{"file_id": {"a": "b"}}': "member-type",
    b'{"file_id": "a\\u0000b"}': "nul-character",
    b'{"file_id": "n1", "deeper": [{"text": "\\u0000"}]}': "nul-character",
    b'{"file_id": "n2", "name\\u0000": 1}': "nul-character",
    _deep(5000): "too-deep",
    _deep(101): "too-deep",
    request("large", text="x" * (MEBIBYTE - 100)): "too-large",
    request("k" * 1997): "key-too-long",
    request("ü" * 999): "key-too-long",
}
#: at the edge, and all right
ACCEPTED = (
    request("plain"),
    b'{"file_id": "raw UTF-8: \xc3\xbc"}',
    b' \n{"file_id": "spaces"}\n',
    b'{"file_id": "escaped: \\ud83d\\ude00"}',
    b'{"file_id": -12345678901234567890123456789}',
    request("k" * 1996),
    _deep(100),
    request("nearly too large", text="x" * (MEBIBYTE - 1000)),
)


def test_each_malformed_request_is_a_dead_letter_with_its_reason_and_the_good_ones_go_on(
    make_system: MakeSystem,
) -> None:
    system = make_system()
    system.setup()
    # In between each other, so that good and bad share batches.
    good = iter(ACCEPTED * (len(MALFORMED) // len(ACCEPTED) + 1))
    sent = [value for malformed in MALFORMED for value in (next(good), malformed)]
    system.send(sent)
    system.start()

    letters = system.wait_for_dead_letters(len(MALFORMED), 40)
    expected = {json.loads(value)["file_id"] for value in ACCEPTED}
    system.wait_for_results(expected, 30)

    originals = system.sent()
    for letter in letters:
        topic, partition, offset = letter["position"]
        assert topic == system.kafka_topic
        original = originals.pop((partition, offset))
        assert letter["reason"] == MALFORMED[original], letter
        assert letter["from"] == "bridge"
        assert letter["v"] == 1
        assert letter["error"]
        if letter["request"] is None:
            assert base64.b64decode(letter["request_base64"]) == (original or b"")
        else:
            assert letter["request"] == json.loads(original or b"")
    assert set(originals.values()) == set(ACCEPTED), "each dead letter has a position of its own"
    buried = {tuple(letter["position"]): letter["reason"] for letter in letters}
    done = {tuple(event["position"]): event["reason"] for event in system.events("done") if event["outcome"] == "dead"}
    assert done == buried, "the ledger is told of each"

    # The persister asks the same questions: it counts and skips what the bridge refused.
    wait_until(lambda: set(system.request_rows()) >= expected, 20, "the good requests' rows")
    persister = system.persisters["requests"]
    wait_until(
        lambda: persister.metric("slowjobs_skipped_requests_total") + len(system.request_rows()),
        10,
        "the persister to be through",
        accept=lambda count: count >= len(MALFORMED) + len(expected),
    )
    assert set(system.request_rows()) - expected == set()
    assert persister.metric("slowjobs_skipped_requests_total") == len(MALFORMED)
    assert len(system.dead_letters()) == len(MALFORMED), "one dead letter each, from the bridge alone"
    assert system.outstanding() == 0


def test_half_a_surrogate_pair_does_not_stop_anything(make_system: MakeSystem) -> None:
    """PostgreSQL's jsonb refuses it, and so does UTF-8; Python's strings hold it all the same."""
    system = make_system()
    system.setup()
    system.start()
    system.send([b'{"file_id": "half", "text": "\\ud800"}', b'{"file_id": "\\udc00"}', request("good")])
    system.wait_for_results(["good"], 30)
    system.wait_for_dead_letters(2, 20)


def test_numbers_and_unknown_members_stay_as_they_were_written(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start()
    digits = "3.14159265358979323846264338327950288"
    system.send([b'{"file_id": "exact", "n": %s, "big": 123456789012345678901234567890}' % digits.encode()])
    system.wait_for_results(["exact"], 30)
    wait_until(system.request_rows, 10, "the request row")
    for table, column in (("job_request", "request"), ("job_result", "result")):
        numbers = f"SELECT {column}->>'n', {column}->>'big' FROM {table}"  # noqa: S608 - the names stand above
        assert system.rows(numbers) == [(digits, "123456789012345678901234567890")]


def test_a_row_that_postgresql_rejects_is_found_and_the_rest_of_its_batch_goes_in(make_system: MakeSystem) -> None:
    """1e200000 is a JSON number, and more than PostgreSQL's numeric holds."""
    system = make_system()
    system.setup()
    ids = [f"file-{number}" for number in range(100)]
    requests = [request(file_id) for file_id in ids]
    for place, bad in ((7, b"first"), (60, b"second")):
        requests.insert(place, b'{"file_id": "%s", "n": 1e200000}' % bad)
    system.send(requests)
    system.start()
    system.wait_for_results(ids, 30)
    wait_until(lambda: set(system.request_rows()), 20, "the other rows", accept=lambda rows: rows == set(ids))

    # Twice each: as a request, and as the result of a handler that gives back what it got.
    letters = system.wait_for_dead_letters(4, 20)
    assert [letter["reason"] for letter in letters] == ["row-rejected"] * 4
    assert [letter["from"] for letter in letters] == ["persister"] * 4
    assert all(letter["error"] for letter in letters)
    assert Counter(letter["key"] for letter in letters) == {'["first"]': 2, '["second"]': 2}


def test_what_is_too_large_even_for_a_dead_letter_does_not_stop_the_lane(make_system: MakeSystem) -> None:
    """In base64 a request grows by a third, and may then be more than the dead letters' topic takes."""
    system = make_system()
    services = system.services
    services.kafka.create_topic(system.kafka_topic, config={"max.message.bytes": str(30 * MEBIBYTE)})
    system.setup()
    system.start()
    system.send([b"\xff" * (20 * MEBIBYTE), request("good")])
    system.wait_for_results(["good"], 40)
    [letter] = system.wait_for_dead_letters(1, 30)
    assert letter["reason"] in {"not-json", "too-large"}


def test_large_requests_go_through_although_nsqd_takes_no_batch_of_them(make_system: MakeSystem) -> None:
    """Each is below nsqd's max-msg-size, and six of them are above its max-body-size."""
    system = make_system()
    system.setup()
    ids = [f"large-{number}" for number in range(20)]
    system.send_requests(ids, text="x" * 900_000)
    system.start()
    system.wait_for_results(ids, 40)


def test_a_message_published_to_nsqd_by_hand_is_worked_on(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start(system.worker, system.persisters["results"])
    for body in (request("by hand"), b"no JSON", b'{"path": "no key"}', request("also by hand")):
        system.services.nsqd.publish(system.lane, body)
    system.wait_for_results(["by hand", "also by hand"], 30)
    letters = system.wait_for_dead_letters(2, 20)
    assert {(letter["reason"], letter["from"]) for letter in letters} == {
        ("not-json", "worker"),
        ("member-missing", "worker"),
    }
    wait_until(system.outstanding, 10, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert {result["_slowjobs"]["position"] for result in system.results()} == {None}


def test_a_message_that_nsqd_made_of_two_is_dropped_and_the_request_that_it_was_runs(make_system: MakeSystem) -> None:
    """A full disk leaves such messages in nsqd's queue: here it is published by hand, and the right one taken away."""
    system = make_system()
    system.setup()
    nsqd = system.services.nsqd
    system.send_requests([1])
    system.start(system.bridge)
    wait_until(system.outstanding, 30, "the request to wait", accept=lambda count: count == 1)
    nsqd.post(f"/channel/empty?topic={quote(system.lane)}&channel={quote(system.pool)}")
    position = json.dumps([system.kafka_topic, *next(iter(system.sent()))])
    torn = b'{"file_id": 2, "_slowjobs": {"v": 1, "position": %s, "key": "[1]", "crc32": 1}}' % position.encode()
    nsqd.publish(system.lane, torn)
    system.start(system.worker, system.persisters["results"])
    system.wait_for_results([1], 40)
    assert [result["file_id"] for result in system.results()] == [1]
    assert "worker.torn_message" in system.worker.log_text()
    assert not system.dead_letters()
