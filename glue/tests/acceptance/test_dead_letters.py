"""`slowjobs dead`: looking at dead letters, and sending their requests again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from slowjobs import documents
from support.system import DEAD_LETTERS, request

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

EXACT = b'{"file_id": "exact", "n": 1e200000, "request": {"file_id": 3.10}}'


def _letter(system: System, raw: bytes | None, **about: Any) -> bytes:
    """Return a dead letter as our services write it."""
    position = documents.Position(system.kafka_topic, 0, 7)
    common = {"lane": system.lane, "reason": "rejected", "error": "why", "sender": "worker", "position": position}
    return documents.DeadLetter(**{**common, **about}, raw=raw).write(20_000_000)


def _bury(system: System, *letters: bytes) -> list[int]:
    """Put dead letters on their topic; return their ids."""
    system.services.kafka.produce(DEAD_LETTERS, letters)
    tail = system.services.kafka.tail(DEAD_LETTERS)
    try:
        end = len(tail.poll())
    finally:
        tail.close()
    return list(range(end - len(letters), end))


def _listed(system: System, *options: str) -> list[int]:
    said = json.loads(system.run("dead", "list", "--lane", system.lane, "--json", *options).stdout)
    return [letter["id"] for letter in said["dead_letters"]]


def test_replay_puts_requests_on_their_lane_byte_for_byte_and_list_hides_them(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    exact, broken, other = _bury(
        system,
        _letter(system, EXACT, key='["exact"]', attempts=3),
        _letter(system, b"\xff{ no JSON", sender="bridge", reason="not-json"),
        _letter(system, request("other"), reason="attempts-exhausted"),
    )
    system.run("dead", "replay", str(exact), str(broken))
    assert sorted(filter(None, system.sent().values())) == sorted([EXACT, b"\xff{ no JSON"])
    assert _listed(system) == [other]
    assert _listed(system, "--all") == [exact, broken, other]

    again = system.run("dead", "replay", str(exact), expect=1)
    assert "--again" in again.stderr
    assert len(system.sent()) == 2
    system.run("dead", "replay", str(exact), "--again")
    assert len(system.sent()) == 3


def test_replay_of_a_choice_counts_first_and_sends_only_when_told(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    reasons = ("rejected", "attempts-exhausted")
    _bury(system, *(_letter(system, request(number), reason=reasons[number % 2]) for number in range(20)))
    choice = ("dead", "replay", "--lane", system.lane, "--reason", "attempts-exhausted", "--since", "1h")
    said = system.run(*choice, "--dry-run")
    assert f"10 {system.lane}: attempts-exhausted" in said.stdout
    system.run(*choice, expect=4)  # nobody is there to be asked
    system.run("dead", "replay", "1", "--lane", system.lane, expect=2)
    assert system.sent() == {}

    document = json.loads(system.run(*choice, "--yes", "--json").stdout)
    assert len(document["replayed"]) == 10
    assert set(system.sent().values()) == {request(number) for number in range(1, 20, 2)}
    assert system.run(*choice, "--yes").stdout.splitlines()[-1] == "0 sent again"
    assert len(_listed(system)) == 10


def test_what_cannot_be_replayed_says_why_and_the_rest_goes(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    result_row = documents.Position(system.result_topic, 0, 7)
    empty, gone, result, good = _bury(
        system,
        _letter(system, None, reason="too-large"),
        _letter(system, request("gone"), lane="no-such-lane"),
        _letter(system, b'{"status": "success"}', sender="persister", position=result_row),
        _letter(system, request("good")),
    )
    reasons = {
        empty: "carries no request",
        gone: "no lane 'no-such-lane' any more",
        result: "about a result",
        10**9: "no such dead letter",
    }
    said = system.run("dead", "replay", *map(str, reasons), str(good), expect=1)
    for id_, reason in reasons.items():
        [line] = [line for line in said.stderr.splitlines() if f"dead letter {id_} " in line]
        assert reason in line
    assert list(system.sent().values()) == [request("good")]


def test_show_prints_one_dead_letter(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    [id_] = _bury(system, _letter(system, request("shown"), error="the reason in full"))
    assert "the reason in full" in system.run("dead", "show", str(id_)).stdout
    _bury(system, documents.write_replayed(id_))
    letter = json.loads(system.run("dead", "show", str(id_), "--json").stdout)["dead_letter"]
    assert (letter["id"], letter["request"], letter["replayed"]) == (id_, {"file_id": "shown"}, True)
    assert "no dead letter" in system.run("dead", "show", str(10**9), expect=1).stderr
