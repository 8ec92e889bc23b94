"""A move of the queue that is broken off everywhere, and one whose old host dies, under load."""

import json
import re
import time
from collections import Counter

from load import (
    DRAINS,
    UNATTENDED,
    Load,
    again_and_again,
    assert_all_work_with,
    begin_move,
    break_off,
    other,
    play,
    publish_by_hand,
    publishes_to,
    run_on,
    status,
    switch,
    wait_until,
)

PLAYS = 8
#: seconds; some kills come at a play's begin, some while it is at work.
INTO_PLAY_SECONDS = (0.0, 1.5, 3.0)
#: when the bridge's configuration is written, and the bridge not restarted yet.
WRITTEN = ("PLAY [6/8 ", "TASK [Tell bridge and command line]", "TASK [Look what they run with]")


def move(host: str, *arguments: str, status: int = 0) -> str:
    """Run a move and return what it said, in one line."""
    return " ".join(play("migrate-nsq-host.yml", f"--extra-vars=nsq_target={host}", *arguments, status=status).split())


def kill_in_play(number: int, host: str) -> None:
    running = begin_move(host, f"PLAY [{number}/{PLAYS} ")
    # Nothing to wait for: it is to be killed somewhere in the play, wherever that is.
    time.sleep(INTO_PLAY_SECONDS[number % 3])
    break_off(running)


def test_killed_in_every_play_it_is_finished_by_one_last_call() -> None:
    load, host = Load(), other(publishes_to())
    with load.flowing():
        for number in range(1, PLAYS + 1):
            kill_in_play(number, host)
        move(host, UNATTENDED)
    load.await_end(120)
    assert load.results() == load.all_once
    assert_all_work_with(host)


def test_what_was_written_and_not_taken_by_the_bridge_is_taken_later() -> None:
    host = other(publishes_to())
    break_off(begin_move(host, *WRITTEN))
    assert status()["services"][0]["nsqd"] == [host, other(host)]
    # As if the two minutes of its lease were over.
    lease = {"holder": "who was killed", "since": 0.0, "until": time.time() - 1}
    run_on("control1", "tee", "/run/slowjobs.lease", text=json.dumps(lease))
    move(host, UNATTENDED)
    assert_all_work_with(host)


def test_who_publishes_to_the_old_host_is_told_and_goes_on_until_it_has_stopped() -> None:
    here = publishes_to()
    host = other(here)
    with again_and_again(lambda: publish_by_hand(here), 0.5):
        said = move(host, UNATTENDED, status=2)
    assert re.search(rf"Messages arrive on {here}: .* got [1-9][0-9]* in 10 s, from nobody who is connected", said)
    assert publishes_to() == here

    assert f"nsqd on {here} still runs, since nobody said yes" in move(host)
    publish_by_hand(here)
    assert f"On {here} were 1 messages more, now in" in move(host, UNATTENDED)
    assert_all_work_with(host)


def test_it_goes_on_when_the_old_host_dies_in_the_middle() -> None:
    load, old = Load(), publishes_to()
    host = other(old)
    with load.flowing():
        running = begin_move(host, DRAINS, patience_seconds=10)
        in_flight = sum(lane["in_flight"] for lane in status()["lanes"])
        switch("kill", old)
        said, _ = running.communicate()
        assert running.returncode == 0, said
    assert "does not answer any more" in said
    load.await_end(240)
    results = load.results()
    assert set(results) == set(load.all_once)
    # At most what ran when it died, or what was put back just then.
    assert Counter(results.values())[1] >= load.sent - in_flight

    switch("start", old)
    run_on(old, "sh", "-c", "systemctl is-system-running --wait || true")
    move(host, UNATTENDED)
    assert_all_work_with(host)


def test_a_lost_host_is_replaced_at_once() -> None:
    load, old = Load(), publishes_to()
    host = other(old)
    with load.flowing():
        wait_until(lambda: status()["lanes"][2]["in_flight"] > 0, "some to run", 30)
        in_flight = sum(lane["in_flight"] for lane in status()["lanes"])
        switch("kill", old)
        play("replace-nsq-host.yml", f"--extra-vars=nsq_target={host}", UNATTENDED)
    load.await_end(240)
    results = load.results()
    assert set(results) == set(load.all_once)
    assert Counter(results.values())[1] >= load.sent - in_flight
    switch("start", old)
