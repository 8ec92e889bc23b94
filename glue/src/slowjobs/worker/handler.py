"""What a worker asks of a handler, whichever kind it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from slowjobs.worker import command, python

if TYPE_CHECKING:
    from slowjobs import kinds, outcomes, settings


class Handler(Protocol):
    """The user's code of one pool, and the processes that it runs in."""

    async def start(self) -> None:
        """Be ready for requests. Raises settings.ConfigurationError for a handler that cannot be loaded at all."""

    async def process(self, request: kinds.Request) -> outcomes.Outcome:
        """Try ``request`` once, within the pool's time limit. When cancelled, all that runs for it is ended first."""
        ...

    def configure(self, pool: settings.Pool) -> None:
        """Take new settings of the same handler: slots, time limit, recycling. What runs goes on as it began."""

    async def close(self) -> None:
        """End all processes; nothing is left behind."""


def make(pool: settings.Pool) -> Handler:
    """Return the handler of ``pool``."""
    return command.CommandHandler(pool) if pool.handler.command else python.PythonHandler(pool)
