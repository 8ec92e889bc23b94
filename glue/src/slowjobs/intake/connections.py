"""Clients that connect and say nothing, or say it a letter at a time: aiohttp itself would wait for them for ever."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

#: connections; above that those that have been idle longest are closed.
MAX_CONNECTIONS = 1000
_LOOK_EVERY_SECONDS = 1.0


class Connections:
    """Which connections have a request under way, and since when the others have had none."""

    def __init__(self, runner: web.AppRunner, *, idle_seconds: float) -> None:
        self._runner = runner
        self._idle_seconds = idle_seconds
        self._busy: set[web.RequestHandler] = set()
        self._idle_since: dict[web.RequestHandler, float] = {}

    @contextlib.contextmanager
    def busy(self, connection: web.RequestHandler) -> Iterator[None]:
        """Leave the connection alone meanwhile."""
        self._busy.add(connection)
        try:
            yield
        finally:
            self._busy.discard(connection)
            self._idle_since[connection] = asyncio.get_running_loop().time()

    async def close_idle(self) -> None:
        """Go on closing those that are idle for too long."""
        while True:
            now = asyncio.get_running_loop().time()
            server = self._runner.server
            connections = server.connections if server is not None else []  # None once it is closed
            idle = [connection for connection in connections if connection not in self._busy]
            self._idle_since = {connection: self._idle_since.get(connection, now) for connection in idle}
            too_many = len(connections) - MAX_CONNECTIONS
            for number, connection in enumerate(sorted(idle, key=self._idle_since.__getitem__)):
                if number < too_many or now - self._idle_since[connection] > self._idle_seconds:
                    connection.force_close()
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
