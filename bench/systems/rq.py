"""RQ: workers that fork for each task, started one by one or as a pool."""

from __future__ import annotations

import sys
from pathlib import Path

import noop
import rq
from redis_server import RedisServer
from support.waiting import wait_until
from system import System


class Rq(System):
    """As many workers as slots."""

    name = "RQ"
    # A process for each task costs what many tasks cost elsewhere.
    share = 0.1

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._redis = RedisServer(folder / "redis")
        self.servers.append(self._redis)
        self._redis.start()
        self._queue = rq.Queue("bench", connection=self._redis.client)

    def start(self, slots: int) -> None:
        """Start the workers and wait until all have registered."""
        self._redis.client.flushall()
        self._start_workers(slots)
        wait_until(
            lambda: rq.Worker.count(queue=self._queue),
            120,
            f"{slots} workers of RQ",
            accept=lambda count: count == slots,
            while_true=self.trouble,
        )

    def enqueue(self, tasks: int, seconds: float) -> None:
        """Enqueue all in one go."""
        self._queue.enqueue_many([rq.Queue.prepare_data(noop.work, (seconds,)) for _ in range(tasks)])

    def finished(self) -> int:
        """Count what RQ lists as finished."""
        return int(self._queue.finished_job_registry.get_job_count(cleanup=False))

    def _start_workers(self, slots: int) -> None:
        for number in range(slots):
            self._start_rq(f"worker-{number}", "worker")

    def _start_rq(self, name: str, *arguments: str) -> None:
        rq_program = str(Path(sys.executable).parent / "rq")
        self._start_worker(name, [rq_program, *arguments, f"--url={self._redis.url}", "bench"])


class RqPool(Rq):
    """The same workers, forked by one ``rq worker-pool``."""

    name = "RQ worker-pool"

    def _start_workers(self, slots: int) -> None:
        self._start_rq("worker-pool", "worker-pool", f"--num-workers={slots}")
