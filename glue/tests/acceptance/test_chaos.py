"""Each fault once, and some at the same time, in the middle of work: nothing is lost, and twice only what may be.

`make chaos` plays many more rounds of the same.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from chaos.faults import names, pair
from chaos.on_processes import Processes
from chaos.rounds import Round

if TYPE_CHECKING:
    from chaos.theatre import Theatre

pytestmark = pytest.mark.acceptance

#: of pairs; each draws its two faults, and when they happen.
PAIRS = ["+".join(pair(Random(seed))) for seed in range(1, 6)]


@pytest.mark.parametrize("faults", [*names(Processes), *PAIRS])
def test_every_request_comes_to_its_end(faults: str, theatre: Theatre) -> None:
    played = theatre.play(Round(seed=1, faults=tuple(faults.split("+")), requests=200))
    assert played.complaints == [], played.repeat
