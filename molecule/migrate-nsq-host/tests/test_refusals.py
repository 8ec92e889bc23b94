"""What a move refuses before it has changed anything, and what it only tells."""

import json
from collections.abc import Iterator

import pytest
from load import LANE, Load, other, play, publish_by_hand, publishes_to, run_on, status, switch, wait_until

MOVE = "migrate-nsq-host.yml"


def target() -> str:
    return f"--extra-vars=nsq_target={other(publishes_to())}"


def refused(*arguments: str) -> str:
    """Have a move refused, and return why in one line."""
    before = how_it_is()
    said = " ".join(play(MOVE, *arguments, status=2).split())
    assert how_it_is() == before
    return said


def how_it_is() -> list[str]:
    """Return what a move would change: who works with which nsqd, what is written and what is paused."""
    said = status()
    written = run_on("control1", "sha256sum", "/etc/slowjobs/bridge.toml", "/etc/slowjobs/slowjobs.toml")
    works = [(each["host"], each["nsqd"]) for each in (*said["services"], *said["workers"])]
    return [written, json.dumps(works), json.dumps([lane["paused"] for lane in said["lanes"]])]


@pytest.fixture
def spare() -> Iterator[str]:
    """The other nsqd host, with its nsqd running."""
    host = other(publishes_to())
    run_on(host, "systemctl", "start", "nsqd")
    yield host
    run_on(host, "systemctl", "stop", "nsqd")


def test_nobody_moves_to_nowhere_or_in_part() -> None:
    assert "Got nsq_target nothing and no --limit, wanted -e nsq_target=HOST, one of svc506, svc507" in refused()
    assert "Got nsq_target svc505 and" in refused("--extra-vars=nsq_target=svc505")
    assert "Got nsq_target svc507 and --limit worker1" in refused("--extra-vars=nsq_target=svc507", "--limit=worker1")


def test_a_lane_that_would_never_drain_is_named() -> None:
    load = Load()
    run_on("control1", "slowjobs", "pause", LANE)
    load.send(1)
    wait_until(lambda: status()["lanes"][2]["waiting"] == 1, "it to be on NSQ", 20)
    said = refused(target())
    run_on("control1", "slowjobs", "unpause", LANE)
    assert f"Got paused lanes with requests on {publishes_to()}, {LANE} (1)" in said
    load.await_end(20)


def test_a_host_with_requests_of_its_own_is_no_target(spare: str) -> None:
    publish_by_hand(spare)
    said = refused(target())
    assert f"Got 1 requests on {spare}, which nothing works with" in said


def test_a_host_that_takes_less_is_no_target() -> None:
    said = refused(target(), "--extra-vars=nsqd_max_msg_size_bytes=65536")
    assert "Got nsqd_max_msg_size_bytes of 65536" in said


def test_a_host_that_does_not_answer_is_named() -> None:
    host = other(publishes_to())
    switch("kill", host)
    said = refused(target())
    switch("start", host)
    assert f"Got no answer from {host}, wanted the new nsqd host" in said


def test_check_tells_what_it_would_do_and_touches_nothing() -> None:
    before = how_it_is()
    said = " ".join(play(MOVE, target(), "--check").split())
    assert how_it_is() == before
    host = other(publishes_to())
    assert f"The queue moves from {publishes_to()} to {host}" in said
    assert f"would wait for the nsqd host that the bridge publishes to: got {publishes_to()}, expected {host}" in said
    assert run_on(host, "sh", "-c", "systemctl is-active nsqd || true").strip() == "inactive"
    assert run_on("control1", "slowjobs", "lease") == ""
