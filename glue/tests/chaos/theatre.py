"""A process that plays one round after the other in an arena of its own."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from chaos import rounds
from chaos.on_hosts import Hosts
from chaos.on_processes import Processes, Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing import Queue

    from chaos.arena import Arena
    from chaos.rounds import Round

#: where logs and notes of failed rounds are kept.
KEPT = Path(tempfile.gettempdir()) / "slowjobs-chaos"
_ENDING = (signal.SIGINT, signal.SIGTERM)


class Theatre:
    """Opens ``arenas``: another one after each round that failed, and for each bug."""

    def __init__(self, arenas: Callable[[str | None], AbstractContextManager[Arena]]) -> None:
        self._arenas = arenas
        self._scenery = ExitStack()
        self._arena: Arena | None = None
        self._bug: str | None = None

    def play(self, round_: Round, *, bug: str | None = None) -> Round:
        """Play a round, with ``bug`` in all services, and return it with what came of it."""
        if self._arena is None or bug != self._bug:
            self._scenery.close()
            self._arena = self._scenery.enter_context(self._arenas(bug))
            self._bug = bug
        rounds.play(self._arena, round_)
        if round_.complaints:
            self._keep(self._arena, round_)
            self._scenery.close()
            self._arena = None
        return round_

    def close(self) -> None:
        """End the arena."""
        self._scenery.close()

    def _keep(self, arena: Arena, round_: Round) -> None:
        folder = KEPT / f"{round_.seed}-{'+'.join(round_.faults)}"
        shutil.rmtree(folder, ignore_errors=True)
        arena.keep(folder)
        (folder / "round.json").write_text(json.dumps(asdict(round_), indent=1), encoding="utf-8")
        round_.kept = str(folder)


@contextmanager
def opened() -> Iterator[Theatre]:
    """Start servers of local processes, and take everything away at the end but what is kept of failed rounds."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slowjobs-chaos-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # PostgreSQL's user must be able to reach its own folder in there.
        folder.chmod(0o711)
        servers = stack.enter_context(Servers(folder).started())

        def arena(bug: str | None) -> AbstractContextManager[Arena]:
            servers.restore()
            return Processes(servers, bug=bug).started()

        with closing(Theatre(arena)) as theatre:
            yield theatre


@contextmanager
def opened_on_hosts() -> Iterator[Theatre]:
    """Make hosts for the first round, and take them away at the end."""
    with closing(Theatre(lambda _: Hosts.deployed())) as theatre:
        yield theatre


def run(tasks: Queue[Round | None], played: Queue[Round], arena: type[Arena], bug: str | None) -> None:
    """Play what comes, until None does."""
    for signal_ in _ENDING:
        signal.signal(signal_, leave)
    with opened_on_hosts() if arena is Hosts else opened() as theatre:
        while round_ := tasks.get():
            played.put(theatre.play(round_, bug=bug))


def leave(*_: object) -> NoReturn:
    """End as a program does that cleans up after itself, whatever signals still come; a handler for them."""
    for signal_ in _ENDING:
        signal.signal(signal_, signal.SIG_IGN)
    sys.exit("ended by a signal")
