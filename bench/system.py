"""What the systems under comparison have in common."""

from __future__ import annotations

import abc
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tree
from support import processes
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

#: the modules of the task are here.
HERE = Path(__file__).resolve().parent
#: seconds; tasks that are this long reach every slot, those that do nothing stay with the quickest few.
WARM_UP_TASK_SECONDS = 0.1
#: seconds in which workers and servers acknowledge the last results and become idle.
SETTLE_SECONDS = 1.0
#: seconds; a system that needs longer for anything has failed.
DEADLINE_SECONDS = 300


class System(abc.ABC):
    """One system: its servers run as long as it does, its workers from ``start`` to ``stop``."""

    name: str
    #: of the requests of a round: a slow system gets fewer, so that all take about as long.
    share = 1.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.servers: list[processes.LocalProcess] = []
        self.workers: list[processes.LocalProcess] = []

    @abc.abstractmethod
    def start(self, slots: int) -> None:
        """Start workers with ``slots`` slots together; return when all can take tasks."""

    @abc.abstractmethod
    def enqueue(self, tasks: int, seconds: float) -> None:
        """Hand over ``tasks`` tasks that last ``seconds``; return when the system has them."""

    @abc.abstractmethod
    def finished(self) -> int:
        """Return how many tasks have left a result since ``start``."""

    def complete(self, tasks: int) -> None:
        """Wait until ``tasks`` tasks have left a result since ``start``."""
        wait_until(
            self.finished,
            DEADLINE_SECONDS,
            f"{tasks} results of {self.name}",
            accept=lambda count: count >= tasks,
            while_true=self.trouble,
        )

    def warm_up(self, slots: int) -> int:
        """Let every slot work on something and become idle again; return how many tasks that took."""
        tasks = 4 * slots
        self.enqueue(tasks, WARM_UP_TASK_SECONDS)
        self.complete(tasks)
        time.sleep(SETTLE_SECONDS)
        return tasks

    def freeze(self) -> None:
        """Let the workers stand still."""
        tree.signal_all(self.worker_pids, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the workers go on."""
        tree.signal_all(self.worker_pids, signal.SIGCONT)

    def stop(self) -> None:
        """End the workers."""
        tree.end(self.worker_pids, 30)
        self.workers.clear()

    def close(self) -> None:
        """End everything."""
        self.stop()
        tree.end([server.pid for server in self.servers], 30)

    @property
    def worker_pids(self) -> list[int]:
        """The workers' process ids; what they started comes on top."""
        return [worker.pid for worker in self.workers]

    @property
    def pids(self) -> list[int]:
        """The process ids of workers and servers."""
        return [process.pid for process in (*self.workers, *self.servers)]

    def trouble(self) -> str | None:
        """Say which process has ended although it should run."""
        return next((trouble for process in (*self.workers, *self.servers) if (trouble := process.trouble())), None)

    def _start_server(self, name: str, argv: Sequence[str]) -> None:
        self.servers.append(self._process(name, argv))

    def _start_worker(self, name: str, argv: Sequence[str]) -> None:
        self.workers.append(self._process(name, argv))

    def _process(self, name: str, argv: Sequence[str]) -> processes.LocalProcess:
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        process = processes.LocalProcess(name, argv, log=self.folder / f"{name}.log", environment=environment)
        process.start()
        return process
