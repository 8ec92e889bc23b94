"""Fuzz every reader of bytes that others wrote, for as long as wanted: `make fuzz MINUTES=10`.

Inputs are made of a target's tokens, and of changes to what its corpus holds. One that something new became of joins
the corpus, and so does what fails, made as small as hypothesis can; the unit tests replay all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
from typing import TYPE_CHECKING

import hypothesis
from hypothesis import strategies as st

from fuzz import corpus
from fuzz.targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

#: seconds that a target has before the next one's turn.
TURN_SECONDS = 10.0
#: examples between two looks at the clock.
EXAMPLES = 500
#: bytes; what is larger joins the corpus only if it fails.
MAX_KEPT_BYTES = 1000
#: inputs of a corpus; one more only if it fails.
MAX_KEPT = 60


@st.composite
def _changed(draw: st.DrawFn, seeds: tuple[bytes, ...], tokens: tuple[bytes, ...]) -> bytes:
    raw = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.sampled_from((0, 0, 1, 1, 2, 8, 50))))
        put = draw(st.sampled_from(tokens) | st.binary(max_size=3) | st.just(raw[end : end + 20]))
        raw = raw[:start] + put + raw[end:]
    return raw


class Fuzzer:
    """Fuzzes one target, turn by turn."""

    def __init__(self, name: str, target: Target) -> None:
        self.name = name
        self.executions = 0
        self.failures = 0
        self._target = target
        self._seeds = corpus.read(name) or [b""]
        self._known = {target.examine(raw) for raw in self._seeds}
        self._last = b""

    def turn(self, seconds: float) -> None:
        """Examine new inputs for about ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._examine_some()
            except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
                self.failures += 1
                print(f"{self.name} fails for {self._last!r}")  # noqa: T201
                traceback.print_exc(limit=-4)
                corpus.add(self.name, self._last)
                return

    def _examine_some(self) -> None:
        tokens = self._target.tokens
        inputs = (
            st.lists(st.sampled_from(tokens), max_size=30).map(b"".join)
            | _changed(tuple(self._seeds), tokens)
            | st.binary(max_size=60)
        )

        @hypothesis.seed(random.getrandbits(64))
        @hypothesis.settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(inputs)
        def _examine(raw: bytes) -> None:
            self.executions += 1
            self._last = raw  # when hypothesis raises, this is the smallest
            became = self._target.examine(raw)
            if became not in self._known:
                self._known.add(became)
                self._keep(raw)

        _examine()

    def _keep(self, raw: bytes) -> None:
        if len(raw) <= MAX_KEPT_BYTES and len(self._seeds) < MAX_KEPT:
            self._seeds.append(raw)
            corpus.add(self.name, raw)


def _turns(fuzzers: list[Fuzzer], end: float) -> Iterator[Fuzzer]:
    while True:
        for fuzzer in fuzzers:
            if time.monotonic() >= end:
                return
            yield fuzzer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    os.nice(10)
    fuzzers = [Fuzzer(name, TARGETS[name]) for name in options.targets or TARGETS]
    end = time.monotonic() + options.minutes * 60
    for fuzzer in _turns(fuzzers, end):
        fuzzer.turn(min(TURN_SECONDS, end - time.monotonic()))
    for fuzzer in fuzzers:
        print(f"{fuzzer.name:12} {fuzzer.executions:10,} executions, {fuzzer.failures} failures")  # noqa: T201
    sys.exit(any(fuzzer.failures for fuzzer in fuzzers))


if __name__ == "__main__":
    main()
