"""How long until all that a kill -9 of nsqd has lost runs again: the real ledger, one lane, in simulated time.

    python bench/ledger_recovery.py [--task-seconds 10] [--waiting 1000] [--in-flight 40] [--deferred 200] [--seeds 5]

nsqd is killed at 0 and is back 5 s later with what waited; the workers are alive, and finish what nsqd has forgotten.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
import sys
from collections import deque
from typing import TYPE_CHECKING

from slowjobs import documents
from slowjobs.bridge.ledger import Figures, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1_800_000_000
BACK_SECONDS = 5.0
READING_SECONDS = 2.0
#: of tries that end with a delay, and the longest of these.
RETRIED = 0.03
LONGEST_DELAY_SECONDS = 900.0
MSG_TIMEOUT_SECONDS = 30.0
HOST, WORKER = "svc506", "worker1/pool/1"


class _Lane:
    """A lane that was full when nsqd was killed."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - no secrets
        self.mean = options.task_seconds
        self.cap = options.waiting + options.in_flight + options.deferred
        self.now = -60.0
        self.due: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.events = itertools.count()
        self.queue: deque[documents.Position] = deque()
        self.free = options.in_flight
        self.in_flight = self.deferred = 0
        self.ledger = Ledger(
            run_limit_seconds=max(300.0, 10 * self.mean) + MSG_TIMEOUT_SECONDS, msg_timeout_seconds=MSG_TIMEOUT_SECONDS
        )
        self.ledger.begin(0, 0, 0)
        self.next = 0
        self.publish_new(self.cap)
        running = [self.queue.popleft() for _ in range(options.in_flight)]
        put_back = [self.queue.popleft() for _ in range(options.deferred)]
        #: what nsqd has lost and nobody runs -> when it was published again, and when it ran.
        self.published_again: dict[documents.Position, float] = dict.fromkeys(put_back, math.inf)
        self.runs_again: dict[documents.Position, float] = dict.fromkeys(put_back, math.inf)
        for position in running:
            self.free -= 1
            self.now = -self.random.random() * self.mean
            self.tell("started", position)
            self.after(self.task_seconds() * self.random.random() - self.now, lambda each=position: self.finish(each))
        for position in put_back:
            self.now = -60.0
            self.tell("requeued", position, delay=60 + self.random.uniform(0, LONGEST_DELAY_SECONDS))
        self.now = 0.0
        self.after(BACK_SECONDS, self.read)
        self.after(BACK_SECONDS, self.take)

    def run(self) -> tuple[float, float]:
        """Return when the last lost one was published again, and when it ran."""
        while self.now < 100 * self.cap and math.inf in self.runs_again.values():
            self.now, _, action = heapq.heappop(self.due)
            action()
        return max(self.published_again.values()), max(self.runs_again.values())

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.due, (self.now + seconds, next(self.numbers), action))

    def task_seconds(self) -> float:
        return self.random.lognormvariate(0, 1) * self.mean / math.exp(0.5)

    def tell(self, event: str, position: documents.Position, delay: float = 0.0) -> None:
        at, until = documents.moment(START + self.now), documents.moment(START + self.now + delay)
        told = documents.Event(event, WORKER, position=position, nsqd=HOST, until=until, at=at)  # type: ignore[arg-type]
        self.ledger.apply(told, next(self.events))

    def finish(self, position: documents.Position) -> None:
        """End the run of one that nsqd has forgotten."""
        self.tell("done", position)
        self.free += 1
        self.take()

    def take(self) -> None:
        while self.now >= BACK_SECONDS and self.free and self.queue:
            position = self.queue.popleft()
            self.free, self.in_flight = self.free - 1, self.in_flight + 1
            self.tell("started", position)
            if position in self.runs_again:
                self.runs_again[position] = min(self.runs_again[position], self.now)
            self.after(self.task_seconds(), lambda each=position: self.answer(each))

    def answer(self, position: documents.Position) -> None:
        self.free, self.in_flight = self.free + 1, self.in_flight - 1
        if self.random.random() < RETRIED:
            delay = self.random.uniform(0, LONGEST_DELAY_SECONDS)
            self.tell("requeued", position, delay)
            self.deferred += 1
            self.after(delay, lambda: self.put_back(position))
        else:
            self.tell("done", position)
        self.take()

    def put_back(self, position: documents.Position) -> None:
        self.deferred -= 1
        self.queue.append(position)
        self.take()

    def read(self) -> None:
        self.ledger.begin_reading(START + self.now)
        figures = Figures(int(START + BACK_SECONDS), len(self.queue), self.in_flight, self.deferred)
        self.ledger.end_reading({HOST: figures}, START + self.now)
        lost = self.ledger.lost[: self.cap - figures.held]
        for position in lost:
            self.published_again[position] = self.now
        self.publish(lost)
        if not self.ledger.lost and not self.ledger.holding:
            self.publish_new(self.cap - max(self.ledger.outstanding, figures.held + len(lost)))
        self.take()
        self.after(READING_SECONDS, self.read)

    def publish_new(self, count: int) -> None:
        self.publish([documents.Position("requests", 0, offset) for offset in range(self.next, self.next + count)])
        self.next += max(0, count)

    def publish(self, positions: list[documents.Position]) -> None:
        self.ledger.publish(positions, HOST)
        self.ledger.settle(positions, len(positions))
        self.queue += positions


def main() -> None:
    """Print the median and the worst of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task-seconds", type=float, default=10)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=40)
    parser.add_argument("--deferred", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    ends = [_Lane(options, seed).run() for seed in range(options.seeds)]
    write = sys.stdout.write
    turnover = (options.waiting + options.in_flight + options.deferred) * options.task_seconds / options.in_flight
    write(f"one turnover of all that is outstanding: {turnover:.0f} s\n")
    for name, seconds in zip(("all published again", "the last one runs"), zip(*ends, strict=True), strict=True):
        write(f"{name} after {statistics.median(seconds):.0f} s, at worst {max(seconds):.0f} s\n")


if __name__ == "__main__":
    main()
