"""Whose turn it is: shares follow the weights, and nobody saves up turns."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from slowjobs.worker.fair import FairQueue

WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 50), min_size=1)


def _starts(queue: FairQueue, claims: dict[str, float], count: int) -> Counter[str]:
    started: Counter[str] = Counter()
    for _ in range(count):
        (lane,) = queue.turns(claims, 1)
        queue.started(lane)
        started[lane] += 1
    return started


@given(WEIGHTS, st.integers(1, 500))
def test_starts_follow_the_weights_while_all_have_work(weights: dict[str, int], count: int) -> None:
    started = _starts(FairQueue(weights), dict.fromkeys(weights, math.inf), count)
    for lane, weight in weights.items():
        share = count * weight / sum(weights.values())
        assert abs(started[lane] - share) <= len(weights)


@given(WEIGHTS, st.integers(0, 50))
def test_turns_foretell_the_starts(weights: dict[str, int], count: int) -> None:
    queue = FairQueue(weights)
    claims = dict.fromkeys(weights, math.inf)
    foretold = list(queue.turns(claims, count))
    for lane in foretold:
        assert list(queue.turns(claims, 1)) == [lane]
        queue.started(lane)


def test_a_lane_that_had_nothing_to_do_comes_first_and_saves_up_no_turns() -> None:
    queue = FairQueue({"light": 1, "idle": 1})
    _starts(queue, {"light": math.inf}, 100)
    assert list(islice(queue.turns({"light": math.inf, "idle": math.inf}, 4), 4)) == ["idle", "light", "idle", "light"]


def test_a_lane_gets_no_more_turns_than_it_claims() -> None:
    assert Counter(FairQueue({"a": 9, "b": 1}).turns({"a": 2, "b": 1}, 10)) == {"a": 2, "b": 1}
