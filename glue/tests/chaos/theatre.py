"""A process that plays one round after the other on servers and an arena of its own."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from chaos import rounds
from chaos.arena import Arena, Servers

if TYPE_CHECKING:
    from multiprocessing import Queue

    from chaos.rounds import Round

#: where logs and notes of failed rounds are kept.
KEPT = Path(tempfile.gettempdir()) / "slowjobs-chaos"


class Theatre:
    """Starts servers and an arena with the first round, and another arena after each that failed."""

    def __init__(self, *, bug: str | None = None) -> None:
        self._bug = bug
        self._folder = Path(tempfile.mkdtemp(prefix="slowjobs-chaos-"))
        self._building = ExitStack()
        self._servers: Servers | None = None
        self._scenery = ExitStack()
        self._arena: Arena | None = None

    def __enter__(self) -> Theatre:
        # PostgreSQL's user must be able to reach its own folder in there.
        self._folder.chmod(0o711)
        self._building.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._servers = self._building.enter_context(Servers(self._folder).started())
        self._building.push(self._scenery)
        return self

    def __exit__(self, *_: object) -> None:
        self._building.close()

    def play(self, round_: Round) -> Round:
        """Play a round and return it with what came of it."""
        if self._arena is None:
            self._servers.restore()
            self._arena = self._scenery.enter_context(Arena(self._servers, bug=self._bug).started())
        rounds.play(self._arena, round_)
        if round_.complaints:
            self._keep(round_)
            self._scenery.close()
            self._arena = None
        return round_

    def _keep(self, round_: Round) -> None:
        folder = KEPT / f"{round_.seed}-{'+'.join(round_.faults)}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._arena.folder, folder, ignore=shutil.ignore_patterns("credentials"))
        for server in (self._servers.kafka, self._servers.postgresql, self._servers.nsqd):
            shutil.copy(server.log, folder)
        (folder / "round.json").write_text(json.dumps(asdict(round_), indent=1), encoding="utf-8")
        round_.kept = str(folder)


def run(tasks: Queue[Round | None], played: Queue[Round], bug: str | None) -> None:
    """Play what comes, until None does."""
    with Theatre(bug=bug) as theatre:
        while round_ := tasks.get():
            played.put(theatre.play(round_))
