"""Looks at a lane again and again while a test does something else."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.system import System

SAMPLES_A_SECOND = 20


class Sampler:
    """Reads how much NSQ owes of a lane, twenty times a second, beside the test."""

    def __init__(self, system: System) -> None:
        self.samples: list[int] = []
        self._system = system
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Sampler:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._started

    def _sample(self) -> None:
        while not self._ended.wait(1 / SAMPLES_A_SECOND):
            # nsqd may be away, on purpose.
            with suppress(OSError):
                self.samples.append(self._system.outstanding())
