"""A process that plays one round after the other on servers and an arena of its own."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from chaos import rounds
from chaos.arena import Arena, Servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing import Queue

    from chaos.rounds import Round

#: where logs and notes of failed rounds are kept.
KEPT = Path(tempfile.gettempdir()) / "slowjobs-chaos"


class Theatre:
    """Servers, and an arena on them: another one after each round that failed, and for each bug."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._scenery = ExitStack()
        self._arena: Arena | None = None
        self._bug: str | None = None

    def play(self, round_: Round, *, bug: str | None = None) -> Round:
        """Play a round, with ``bug`` in all services, and return it with what came of it."""
        if self._arena is None or bug != self._bug:
            self._scenery.close()
            self._servers.restore()
            self._arena = self._scenery.enter_context(Arena(self._servers, bug=bug).started())
            self._bug = bug
        rounds.play(self._arena, round_)
        if round_.complaints:
            self._keep(self._arena, round_)
            self._scenery.close()
            self._arena = None
        return round_

    def close(self) -> None:
        """End the arena's processes."""
        self._scenery.close()

    def _keep(self, arena: Arena, round_: Round) -> None:
        folder = KEPT / f"{round_.seed}-{'+'.join(round_.faults)}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(arena.folder, folder, ignore=shutil.ignore_patterns("credentials"))
        for server in (self._servers.kafka, self._servers.postgresql, self._servers.nsqd):
            shutil.copy(server.log, folder)
        (folder / "round.json").write_text(json.dumps(asdict(round_), indent=1), encoding="utf-8")
        round_.kept = str(folder)


@contextmanager
def opened() -> Iterator[Theatre]:
    """Start the servers, and take everything away at the end but what is kept of failed rounds."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slowjobs-chaos-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # PostgreSQL's user must be able to reach its own folder in there.
        folder.chmod(0o711)
        theatre = Theatre(stack.enter_context(Servers(folder).started()))
        stack.callback(theatre.close)
        yield theatre


def run(tasks: Queue[Round | None], played: Queue[Round], bug: str | None) -> None:
    """Play what comes, until None does."""
    signal.signal(signal.SIGTERM, leave)
    with opened() as theatre:
        while round_ := tasks.get():
            played.put(theatre.play(round_, bug=bug))


def leave(*_: object) -> NoReturn:
    """End as a program does that cleans up after itself; a handler for signals."""
    sys.exit("ended by a signal")
