"""Looks again and again while a test does something else."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES_A_SECOND = 20
Seen = TypeVar("Seen")


class Sampler(Generic[Seen]):
    """Keeps what ``look`` returns, ``a_second`` times a second, beside the test."""

    def __init__(self, look: Callable[[], Seen], *, a_second: int = SAMPLES_A_SECOND) -> None:
        self.samples: list[Seen] = []
        self._look = look
        self._interval = 1 / a_second
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Sampler[Seen]:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._started

    def _sample(self) -> None:
        while not self._ended.wait(self._interval):
            # A server may be away, on purpose.
            with suppress(OSError):
                self.samples.append(self._look())
