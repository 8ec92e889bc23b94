"""A move of the queue that is broken off everywhere, and one whose old host dies, under load."""

import os
import signal
import threading
from collections import Counter

from load import Load, assert_all_work_with, other, play, playbook, publishes_to, run_on, status, switch, wait_until

PLAYS = 8
#: seconds; some kills come at a play's begin, some while it is at work.
INTO_PLAY_SECONDS = (0.0, 1.5, 3.0)
UNATTENDED = ("--extra-vars=gate_confirm=false", "--extra-vars=nsq_patience_seconds=10")


def kill_in_play(number: int, host: str) -> None:
    running = playbook("migrate-nsq-host.yml", f"--extra-vars=nsq_target={host}", *UNATTENDED)
    assert running.stdout
    said = ""
    for line in running.stdout:
        said += line
        if line.startswith(f"PLAY [{number}/{PLAYS} "):
            break
    else:
        raise AssertionError(f"it ended before play {number}:\n{said}")
    killing = threading.Timer(INTO_PLAY_SECONDS[number % 3], os.killpg, (running.pid, signal.SIGKILL))
    killing.start()
    running.communicate()
    killing.join()
    # Or it would have to end first, after two minutes.
    run_on("control1", "rm", "/run/slowjobs.lease")


def test_killed_in_every_play_it_is_finished_by_one_last_call() -> None:
    load, host = Load(), other(publishes_to())
    with load.flowing():
        for number in range(1, PLAYS + 1):
            kill_in_play(number, host)
        play("migrate-nsq-host.yml", f"--extra-vars=nsq_target={host}", *UNATTENDED)
    load.await_end(120)
    assert load.results() == load.all_once
    assert_all_work_with(host)


def test_it_goes_on_when_the_old_host_dies_in_the_middle() -> None:
    load, old = Load(), publishes_to()
    host = other(old)
    with load.flowing():
        running = playbook("migrate-nsq-host.yml", f"--extra-vars=nsq_target={host}", *UNATTENDED)
        assert running.stdout
        said = ""
        for line in running.stdout:
            said += line
            if "TASK [gate : Wait for requests that" in line:
                in_flight = sum(lane["in_flight"] for lane in status()["lanes"])
                switch("kill", old)
        assert running.wait() == 0, said
    assert "does not answer any more" in said
    load.await_end(240)
    results = load.results()
    assert set(results) == set(load.all_once)
    # At most what ran when it died, or what was put back just then.
    assert Counter(results.values())[1] >= load.sent - in_flight

    switch("start", old)
    wait_until(lambda: run_on(old, "systemctl", "is-system-running", "--wait") != "", "it is back", 60)
    play("migrate-nsq-host.yml", f"--extra-vars=nsq_target={host}", *UNATTENDED)
    assert_all_work_with(host)


def test_a_lost_host_is_replaced_at_once() -> None:
    load, old = Load(), publishes_to()
    host = other(old)
    with load.flowing():
        wait_until(lambda: status()["lanes"][2]["in_flight"] > 0, "some to run", 30)
        in_flight = sum(lane["in_flight"] for lane in status()["lanes"])
        switch("kill", old)
        play("replace-nsq-host.yml", f"--extra-vars=nsq_target={host}", *UNATTENDED)
    load.await_end(240)
    results = load.results()
    assert set(results) == set(load.all_once)
    assert Counter(results.values())[1] >= load.sent - in_flight
    switch("start", old)
