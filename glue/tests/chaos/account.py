"""What became of a round's requests: kept from Kafka, the handlers' notes and PostgreSQL, and from no word of slowjobs.

In the manner of Jepsen's total-queue checker: whatever Kafka acknowledged must come out, and what comes out twice must
be allowed to.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from chaos.load import POISON, Load, Position
from chaos.notes import BEGINS
from support.system import DEAD_LETTERS, EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaos.arena import Arena


@dataclass
class Figures:
    """Counts of requests, and below of what happened to them beyond once."""

    acknowledged: int = 0
    results: int = 0
    skipped: int = 0
    dead: int = 0
    #: acknowledged by Kafka, and no end of any sort.
    lost: int = 0
    #: dead letters of requests that could have come to a result.
    wrongly_dead: int = 0
    #: results of another request than the one at their position.
    mixed: int = 0
    #: requests and results without their row in PostgreSQL.
    rowless: int = 0
    duplicates: int = 0
    #: runs beyond the first, and beyond those that the handler asked for.
    run_again: int = 0
    #: runs that began while another process ran the same request.
    overlaps: int = 0
    #: publications beyond the first; not known where nsqd, which counts them, was started anew.
    published_again: int = 0

    def add(self, other: Figures) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Account:
    """Follows what comes out of an arena from now on. ``load``: what goes in."""

    def __init__(self, arena: Arena, name: str, load: Load) -> None:
        self._arena = arena
        self._name = name
        self._acknowledged = load.acknowledged
        self._numbers = load.numbers
        #: position -> the number that its last result names.
        self._answered: dict[Position, int] = {}
        self._results: Counter[Position] = Counter()
        self._dead: set[Position] = set()
        self._skipped: set[Position] = set()
        #: published to NSQ by hand, past Kafka.
        self.foreign = 0
        arena.forget_notes()
        self.read()
        for seen in (self._results, self._dead, self._skipped):
            seen.clear()  # of the round before
        self._published = arena.published()

    def read(self) -> None:
        """Take in all that has come out by now."""
        for result in self._arena.fresh(self._arena.result_topic):
            for position in _positions(result["_slowjobs"]):
                self._results[position] += 1
                self._answered[position] = result["number"]
        lanes = self._arena.lanes.values()
        for letter in self._arena.fresh(DEAD_LETTERS):
            if letter.get("lane") in lanes:
                self._dead.update(_positions(letter))
        for event in self._arena.fresh(EVENTS):
            if event["lane"] in lanes and event["outcome"] == "skipped":
                self._skipped.update(_positions(event))

    def lost(self) -> list[Position]:
        """Return what has come to no end yet."""
        self.read()
        ended = self._results.keys() | self._dead | self._skipped
        return sorted(self._acknowledged.keys() - ended)

    def rowless(self) -> int:
        """Return how many rows PostgreSQL lacks."""
        garbage = sum(do == "garbage" for do in self._acknowledged.values())
        wanted = {"job_request": len(self._acknowledged) - garbage, "job_result": len(self._results)}
        return sum(count - self._rows(table) for table, count in wanted.items())

    def _rows(self, table: str) -> int:
        [(count,)] = self._arena.rows(f"SELECT count(*) FROM {table} WHERE key LIKE %s", (f'["{self._name}-%',))  # noqa: S608
        return int(count)

    def figures(self) -> Figures:
        """Return the sums, once nothing is under way any more."""
        lost = self.lost()
        noted = Counter(note.what for note in self._arena.notes())
        return Figures(
            acknowledged=len(self._acknowledged),
            results=len(self._results),
            skipped=len(self._skipped),
            dead=len(self._dead),
            lost=len(lost),
            wrongly_dead=sum(self._acknowledged.get(position) not in POISON for position in self._dead),
            mixed=sum(self._answered[position] != self._numbers.get(position) for position in self._results),
            rowless=self.rowless(),
            duplicates=self._results.total() - len(self._results),
            run_again=self._run_again(),
            overlaps=noted["overlap"],
            published_again=self._published_again(),
        )

    def _run_again(self) -> int:
        begun: Counter[int] = Counter()
        asked_for: Counter[int] = Counter()
        for note in self._arena.notes():
            if note.what in BEGINS:
                begun[note.number] += 1
            elif note.what == "failed":
                asked_for[note.number] += 1
        # The last try of what only fails asks for another, which is not to be.
        return sum(max(0, count - 1 - asked_for[number]) for number, count in begun.items())

    def _published_again(self) -> int:
        (start_time, before), (start_time_now, now) = self._published, self._arena.published()
        if start_time != start_time_now:
            return 0
        garbage = sum(do == "garbage" for do in self._acknowledged.values())
        return now - before - (len(self._acknowledged) - garbage) - self.foreign


def _positions(document: Mapping[str, list[str | int] | None]) -> list[Position]:
    """Return where its request is on Kafka; nowhere, if it was published to NSQ by hand."""
    position = document["position"]
    return [] if position is None else [(str(position[0]), int(position[1]), int(position[2]))]
