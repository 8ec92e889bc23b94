"""What the pools of these rounds run: it does what a request says, and notes each run's begin and end.

While it runs a request it holds a lock on a byte of the file ``locks``. The kernel takes the lock from a process that
dies, so who does not get it runs beside another that lives: that is noted as an overlap.
"""

import fcntl
import os
import random
import time

from slowjobs import outcomes


class Handler:
    """Made once in each process; ``folder``, where it notes: the pool's own if it may write there."""

    def __init__(self, folder: str = ".") -> None:
        self._runs = os.open(f"{folder}/runs.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._locks = os.open(f"{folder}/locks", os.O_RDWR | os.O_CREAT)

    def want(self, request: dict) -> bool:
        return request["do"] != "skip"

    def process(self, request: dict, key: str | None = None) -> dict:  # noqa: ARG002 - the worker's call
        number = request["number"]
        self._note("begin" if self._lock(number) else "overlap", number)
        try:
            time.sleep(request["seconds"])
            getattr(self, request["do"])(number)
        except Exception:
            self._note("failed", number)
            raise
        else:
            self._note("end", number)
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, number)
        return {"number": number}

    def work(self, number: int) -> None:
        pass

    def retry(self, number: int) -> None:  # noqa: ARG002
        if random.random() < 0.5:
            raise outcomes.Retry(random.uniform(0.1, 1), "not yet")

    def fail(self, number: int) -> None:  # noqa: ARG002
        if random.random() < 0.5:
            raise RuntimeError("bad luck")

    def wait(self, number: int) -> None:  # noqa: ARG002
        if random.random() < 0.5:
            raise outcomes.Busy(0.2, "full")

    def reject(self, number: int) -> None:  # noqa: ARG002
        raise outcomes.Reject("never")

    def crash(self, number: int) -> None:
        self._note("failed", number)
        os._exit(1)

    def _lock(self, number: int) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError:
            return False
        return True

    def _note(self, what: str, number: int) -> None:
        # One write of a short line to a file opened for appending is never torn.
        os.write(self._runs, f"{what} {number} {os.getpid()} {time.time():.3f}\n".encode())
