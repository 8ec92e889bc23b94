"""The task of all systems: it waits as long as it is told, by default not at all."""

from __future__ import annotations

import time
from typing import Any


def work(seconds: float = 0) -> dict[str, Any]:
    """Return a small result after ``seconds``."""
    if seconds:
        time.sleep(seconds)
    return {"status": "success"}


class Noop:
    """The task as a handler of slowjobs."""

    def process(self, request: dict[str, Any], key: str | None = None) -> dict[str, Any]:  # noqa: ARG002 - the interface
        """Work as long as the request says."""
        return work(request["seconds"])
