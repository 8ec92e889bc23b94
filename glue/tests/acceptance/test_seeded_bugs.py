"""The fault harness notices the bugs that its rules are there for. Without them the same faults pass (test_chaos)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.bugs import BUGS
from chaos.rounds import Round

if TYPE_CHECKING:
    from chaos.theatre import Theatre

pytestmark = pytest.mark.acceptance

#: bug -> the faults that bring it to light, and what is complained about
CAUGHT = {
    "commit-before-done": ("nsqd-killed", "lost"),
    "metadata-after-publishing": ("lanes-paused+bridge-killed-at-a-step:after-publish", "published_again"),
    "finish-before-result": ("worker-killed-at-a-step:before-result", "published_again"),
    "finish-before-done": ("worker-killed-at-a-step:before-done", "published_again"),
    "done-before-result": ("worker-killed+nsqd-killed", "lost"),
    "no-touch-while-draining": ("worker-restarted", "run_again"),
    "again-without-answer": ("lanes-paused+bridge-killed-at-a-step:after-publish", "published_again"),
    "no-conclusion": ("nsqd-killed", "lost"),
}


#: a fault strikes at a moment of its own in each round, and not every moment shows a bug.
_SEEDS = (1, 2, 3, 4)


@pytest.mark.parametrize("bug", BUGS)
def test_the_harness_notices(bug: str, theatre: Theatre) -> None:
    faults, complaint = CAUGHT[bug]
    complaints: list[str] = []
    for seed in _SEEDS:
        round_ = Round(
            seed=seed,
            faults=tuple(faults.split("+")),
            requests=80,
            # For a drain that takes longer than msg-timeout.
            long=1000 if bug == "no-touch-while-draining" else 0,
            # What is published still waits when the bridge is back.
            fault_seconds=6 if "lanes-paused" in faults else 0,
            patience_seconds=15,
        )
        complaints += theatre.play(round_, bug=bug).complaints
        if any(each.startswith(f"{complaint}: ") for each in complaints):
            return
    pytest.fail(f"{bug} went unnoticed in {len(_SEEDS)} rounds: {complaints}")
