import pytest

from fuzz import corpus
from fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_fuzzing_ever_found_fails_again(target: str) -> None:
    kept = corpus.read(target)
    assert kept, "its corpus is missing"
    for raw in kept:
        TARGETS[target].examine(raw)
