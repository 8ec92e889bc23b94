"""Requests over HTTP: acknowledged means on Kafka, and nobody takes the intake down."""

from __future__ import annotations

import gzip
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.intake import OTHER_TOKEN, TOKEN, Answer, Intake
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

LANES: dict[str, dict[str, object]] = {"lane": {}, "other": {}}
MEBIBYTE = 1024 * 1024


@pytest.fixture
def system(make_system: MakeSystem) -> System:
    made = make_system(lanes=LANES)
    for lane in made.lanes.values():
        made.services.kafka.create_topic(lane, partitions=3)
    return made


@pytest.fixture
def intakes() -> Iterator[list[Intake]]:
    """What is put in here is gone after the test."""
    started: list[Intake] = []
    yield started
    for intake in started:
        intake.discard()


def _started(system: System, intakes: list[Intake], **settings: object) -> Intake:
    intake = Intake(system, **settings)
    intakes.append(intake)
    intake.start()
    return intake


def test_what_is_acknowledged_is_on_kafka_and_comes_to_a_result(system: System, intakes: list[Intake]) -> None:
    intake = _started(system, intakes)
    lines = [request(number, note="\u00e4") for number in range(1500)]
    many = intake.post(
        system.lanes["other"],
        b"\r\n".join([*lines, b""]),
        token=OTHER_TOKEN,
        Content_Type="application/x-ndjson",
    )
    one = intake.post(system.lane, b'{\n  "file_id": "one"\n}\n', Content_Type="application/json; charset=utf-8")
    packed = intake.post(system.lane, gzip.compress(request("packed")), Content_Encoding="gzip")
    assert (many.status, many.document["acknowledged"], one.status, packed.status) == (202, 1500, 202, 202)
    # Each is where the answer says, and as it came.
    assert _sent_at(system, "other", many) == lines
    assert _sent_at(system, "lane", one) + _sent_at(system, "lane", packed) == [
        b'{\n  "file_id": "one"\n}',
        request("packed"),
    ]
    assert intake.metric("slowjobs_intake_requests_total") == 1502
    system.setup()
    system.start()
    system.wait_for_results(["one", "packed"], 60)


def _sent_at(system: System, lane: str, answer: Answer) -> list[bytes | None]:
    sent = system.sent(lane=lane)
    positions = answer.document["positions"]
    assert {topic for topic, _, _ in positions} == {system.lanes[lane]}
    return [sent[partition, offset] for _, partition, offset in positions]


def test_a_body_with_a_mistake_is_not_taken_at_all(system: System, intakes: list[Intake]) -> None:
    intake = _started(system, intakes)
    body = b"\n".join([request(1), b"", b"{", b'{"file": 2}', request(2), b'{"file_id": "\\u0000"}'])
    refused = intake.post(system.lane, body)
    assert refused.status == 400
    assert [(mistake["line"], mistake["reason"]) for mistake in refused.document["mistakes"]] == [
        (3, "not-json"),
        (4, "member-missing"),
        (6, "nul-character"),
    ]
    assert "nothing of the body was taken, for its mistakes: 3" in refused.document["error"]
    assert intake.post(system.lane, request(1, note="x" * MEBIBYTE)).document["mistakes"][0]["reason"] == "too-large"
    assert intake.post(system.lane, b"").status == 400
    assert intake.post(system.lane, b"no gzip", Content_Encoding="gzip").status == 400
    assert system.sent() == {}


def test_a_token_is_good_for_its_own_lane_and_strangers_learn_nothing(system: System, intakes: list[Intake]) -> None:
    intake = _started(system, intakes)
    other = system.lanes["other"]
    assert intake.post(other, request(1), token=OTHER_TOKEN).status == 202
    assert intake.post(system.lane, request(1), token=OTHER_TOKEN).status == 403
    assert intake.post("no-lane", request(1)).status == 404
    assert intake.post(system.lane, b"", method="GET").status == 405
    for wrong in (None, TOKEN[:-1], "", "\u00e9" * 20):
        answers = [intake.post(lane, request(1), token=wrong) for lane in (system.lane, "no-lane")]
        assert [answer.status for answer in answers] == [401, 401]
        assert answers[0].document == answers[1].document
        assert answers[0].headers["WWW-Authenticate"] == "Bearer"
    assert system.sent() == {}
    assert TOKEN not in intake.log_text() + json.dumps(intake.state()) + intake.metrics()


def test_no_body_is_too_large_for_the_intake(system: System, intakes: list[Intake]) -> None:
    intake = _started(system, intakes, max_body_bytes=4 * MEBIBYTE, max_unacknowledged_bytes=8 * MEBIBYTE)
    assert intake.post(system.lane, request(1)).status == 202
    before = _peak_mebibytes(intake)
    plain = b"x" * 5 * MEBIBYTE
    bomb = gzip.compress(b" " * 200 * MEBIBYTE)
    assert len(bomb) < MEBIBYTE
    for answer in (
        intake.post(system.lane, plain),
        intake.post(system.lane, (plain[:65536] for _ in range(100))),
        intake.post(system.lane, bomb, Content_Encoding="gzip"),
        intake.post(system.lane, b"\n" * 3 * MEBIBYTE),  # few bytes, and very many lines
    ):
        assert answer.status == 413, answer
    assert _peak_mebibytes(intake) - before < 50
    assert intake.post(system.lane, request(2)).status == 202


def _peak_mebibytes(intake: Intake) -> float:
    status = Path(f"/proc/{intake.pid}/status").read_text(encoding="ascii")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak) / 1024


def test_slow_clients_are_sent_away(system: System, intakes: list[Intake]) -> None:
    intake = _started(system, intakes, client_timeout_seconds=1.5)
    head = f"POST /lanes/{system.lane}/requests HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n".encode()
    authorization = f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
    with ThreadPoolExecutor() as clients:
        waits = [
            clients.submit(intake.seconds_until_closed, *sent)
            for sent in ((), (head,), (head, authorization), (head, authorization, b"{"))
        ]
        # Half a body is answered (408) before its connection is closed.
        assert all(wait.result() < 20 for wait in waits)
    assert intake.post(system.lane, request(1)).status == 202


def test_kafka_away_is_told_and_needs_no_restart(system: System, intakes: list[Intake]) -> None:
    intake = _started(system, intakes, kafka_timeout_seconds=3, max_body_bytes=1000, max_unacknowledged_bytes=1000)
    assert intake.post(system.lane, request(1)).status == 202
    system.services.kafka.freeze()
    with ThreadPoolExecutor() as clients:
        waiting = clients.submit(intake.post, system.lane, request(2))
        wait_until(lambda: intake.state()["unacknowledged_bytes"], 5, "a request that waits for Kafka")
        full = intake.post(system.lane, request(3))
        away = waiting.result()
    assert (full.status, full.headers["Retry-After"]) == (429, "5")
    assert (away.status, away.headers["Retry-After"]) == (503, "5")
    assert (away.document["acknowledged"], away.document["positions"]) == (0, [None])
    system.services.kafka.thaw()
    wait_until(lambda: intake.post(system.lane, request(4)).status, 60, "202", accept=lambda status: status == 202)
    assert intake.state()["unacknowledged_bytes"] == 0
    # The one that was told to be sent again may be there; the one that was refused is not.
    assert {json.loads(value or b"")["file_id"] for value in system.sent().values()} - {2} == {1, 4}


def test_a_stop_answers_what_is_under_way(system: System, intakes: list[Intake]) -> None:
    intake = _started(system, intakes)
    assert intake.post(system.lane, request(1)).status == 202
    system.services.kafka.freeze()
    with ThreadPoolExecutor() as clients:
        waiting = clients.submit(intake.post, system.lane, request(2))
        wait_until(lambda: intake.state()["unacknowledged_bytes"], 5, "a request that waits for Kafka")
        intake.signal(signal.SIGTERM)
        wait_until(lambda: _refuses(intake, system), 5, "no new connections")
        system.services.kafka.thaw()
        assert waiting.result().status == 202
    assert intake.wait(30) == 0


def _refuses(intake: Intake, system: System) -> bool:
    try:
        intake.post(system.lane, request(3), seconds=1)
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("tokens", [{}, {"no-lane": [TOKEN]}])
def test_tokens_for_no_lane_of_its_own_end_the_start(
    system: System, intakes: list[Intake], tokens: dict[str, list[str]]
) -> None:
    intake = Intake(system, tokens)
    intakes.append(intake)
    intake.start(ready=False)
    assert intake.wait(20) == 2
    assert "intake_tokens.json: got tokens for" in intake.log_text()
    assert TOKEN not in intake.log_text()
