"""A Redis of one system's own, on loopback, with the settings that it has by default."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import redis
from support import artefacts
from support.processes import LocalProcess, free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path


class RedisServer(LocalProcess):
    """Keeps its snapshots in ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        # One program that knows by its name what it is. Debian's package of that name would start a service as well.
        program = folder / "redis-server"
        found = shutil.which("redis-check-rdb")
        if found is None:
            raise artefacts.MissingArtefactError("Redis", "any folder of PATH")
        program.symlink_to(found)
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}"
        self.client = redis.Redis(port=port)
        super().__init__(
            "redis", [str(program), f"--port {port}", "--bind 127.0.0.1", f"--dir {folder}"], log=folder / "redis.log"
        )

    def start(self) -> None:
        """Start, and return when it answers."""
        super().start()
        wait_until(self._answers, 10, "Redis to answer", while_true=self.trouble)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False
