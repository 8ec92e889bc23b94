"""A move of the queue under load: back from the middle, all the way, and once more."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from load import (
    DRAINS,
    UNATTENDED,
    Load,
    assert_all_work_with,
    begin_move,
    break_off,
    busy_share,
    other,
    play,
    publishes_to,
    status,
    wait_until,
)

#: of the lane's pool, on both hosts.
SLOTS = 20


@dataclass
class Moves:
    """What was done under one load, and what it said. ``begin``, ``end``: of all of it; ``host``: where it ends."""

    host: str
    load: Load
    begin: float
    second: str
    site: str
    back: str
    there: str
    again: str
    end: float


@pytest.fixture(scope="module")
def moves() -> Iterator[Moves]:
    load, here = Load(), publishes_to()
    there = other(here)
    with load.flowing():
        wait_until(lambda: running() == SLOTS, "all slots in use", 60)
        begin = time.time()
        told_second = break_off_in_play_5(there)
        told_site = play("preflight.yml", "--extra-vars=preflight_before_deployment=true", status=2)
        assert publishes_to() == there
        said_back = move(here)
        assert publishes_to() == here
        said_there = move(there)
        end = time.time()
        said_again = move(there)
    load.await_end(90)
    return Moves(there, load, begin, told_second, told_site, said_back, said_there, said_again, end)


def running() -> int:
    return sum(worker["running"] or 0 for worker in status()["workers"] if worker["pool"] == "digest")


def move(target: str) -> str:
    return play("migrate-nsq-host.yml", f"--extra-vars=nsq_target={target}", UNATTENDED)


def break_off_in_play_5(target: str) -> str:
    """Kill a move while it waits; return what another run was told before."""
    running = begin_move(target, DRAINS)
    second = play("migrate-nsq-host.yml", f"--extra-vars=nsq_target={other(target)}", status=2)
    break_off(running)
    return second


def test_a_second_run_is_told_who_runs_the_first_and_since_when(moves: Moves) -> None:
    assert re.search(
        r"under way: migrate-nsq-host to\s+svc50\d by \S+ on \S+ \(process \d+,\s+begun\s+at\s+[\d:]+Z\),\s+since\s+20",
        moves.second,
    )


def test_site_yml_refuses_while_the_queue_is_on_two_hosts(moves: Moves) -> None:
    assert re.search(
        r"Got a move of the queue under way: begun and not finished, with\s+svc50\d\s+to be emptied", moves.site
    )


def test_nothing_is_lost_and_nothing_comes_twice(moves: Moves) -> None:
    assert moves.load.sent >= 1500
    assert moves.load.results() == moves.load.all_once
    for said in (moves.back, moves.there):
        [account] = re.findall(r"(?:Lost|Missing): .*", said)
        assert account.startswith("Lost: 0. Published again: 0. Run twice: 0.")


def test_the_slots_are_in_use_all_the_time(moves: Moves) -> None:
    assert busy_share(SLOTS, moves.begin, moves.end) >= 0.9


def test_the_second_run_changes_nothing(moves: Moves) -> None:
    assert set(re.findall(r"changed=(\d+)", moves.again)) == {"0"}


def test_all_works_with_the_new_host_alone(moves: Moves) -> None:
    assert_all_work_with(moves.host)
