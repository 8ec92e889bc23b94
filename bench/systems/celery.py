"""Celery: one worker with its default pool of processes; Redis as broker, and for the results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import celery_app
import redis
from redis_server import RedisServer
from support.waiting import wait_until
from system import System

if TYPE_CHECKING:
    from pathlib import Path

#: seconds to wait for a worker's answer.
_ANSWER_SECONDS = 0.5


class Celery(System):
    """Acknowledges a task when it has ended, and takes no more than one ahead for a slot."""

    name = "Celery"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._redis = RedisServer(folder / "redis")
        self.servers.append(self._redis)
        self._redis.start()
        # The results are in a database of their own, so that its keys can be counted.
        self._broker, self._backend = f"{self._redis.url}/0", f"{self._redis.url}/1"
        self._results = redis.Redis.from_url(self._backend)
        celery_app.app.conf.update(broker_url=self._broker, result_backend=self._backend)

    def start(self, slots: int) -> None:
        """Start one worker with ``slots`` processes."""
        self._redis.client.flushall()
        addresses = [f"--broker={self._broker}", f"--result-backend={self._backend}"]
        self._start_worker(
            "celery",
            [sys.executable, "-m", "celery", "--app=celery_app", *addresses, "worker", f"--concurrency={slots}"],
        )
        wait_until(self._answers, 60, "Celery's worker to answer", while_true=self.trouble)

    def enqueue(self, tasks: int, seconds: float) -> None:
        """Call the task as Celery's users do."""
        for _ in range(tasks):
            celery_app.work.delay(seconds)

    def finished(self) -> int:
        """Count the keys of the results' database."""
        return int(self._results.dbsize())

    def _answers(self) -> bool:
        return bool(celery_app.app.control.inspect(timeout=_ANSWER_SECONDS).ping())
