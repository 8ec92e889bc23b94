"""What the handlers have noted (``chaos.handler``), read again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: notes of a run that begins; the second where another process ran the same request.
BEGINS = ("begin", "overlap")


class Note(NamedTuple):
    what: str
    number: int
    process: int
    at: float


def read_notes(path: Path) -> list[Note]:
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Note(what, int(number), int(process), float(at)) for what, number, process, at in lines]


def busy(notes: Iterable[Note]) -> list[int]:
    """Return the processes that have begun a run and noted no end of it; some of them may be dead."""
    last = {note.process: note.what for note in notes}
    return [process for process, what in last.items() if what in BEGINS]
