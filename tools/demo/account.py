"""What came of the requests, by PostgreSQL and Kafka, beside what was expected."""

import collections
import dataclasses
import json
import statistics

import rich.box
import rich.console
import rich.table
from batches import Batch, Ends
from hosts import on, query

#: the pools, and the weights of their lanes as inventory/local has them.
POOLS = {
    "fixity": {"fixity-priority": 4, "fixity-check": 1},
    "ingest": {"ingest-priority": 16, "ingest-daily": 4, "ingest-bulk": 1},
    "grobid": {"regrobid-bulk": 1},
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One row. ``finished``: seconds since 1970."""

    lane: str
    status: str
    finished: float


def results(run: str) -> list[Result]:
    """Return the results of a run: it is in the requests of fixity and ingest, and began before those of GROBID."""
    # Constants of this file, and a time.
    rows = query(f"""
        SELECT request.request ->> 'lane', status, extract(epoch FROM updated)
        FROM job_request AS request JOIN job_result USING (kind, key)
        WHERE kind = 'fixity' AND request.request ->> 'run' = '{run}' AND updated >= '{run}'
        UNION ALL
        SELECT request ->> 'lane', status, extract(epoch FROM updated)
        FROM ingest_request JOIN ingest_file_result USING (ingest_type, base_url)
        WHERE link_source = 'demo' AND starts_with(link_source_id, '{run}/')
        UNION ALL
        SELECT 'regrobid-bulk', status, extract(epoch FROM updated)
        FROM job_result WHERE kind = 'grobid' AND updated >= '{run}'""")  # noqa: S608
    return [Result(lane, status, float(at)) for lane, status, at in rows]


def dead_letters(run: str) -> dict[str, Ends]:
    """Return lane -> its dead letters of a run, from Kafka."""
    document = json.loads(on("control1", "slowjobs", "dead", "list", "--limit", "100000", "--json"))
    found: dict[str, Ends] = collections.defaultdict(Ends)
    for letter in document["dead_letters"]:
        if letter["at"] >= run:
            found[letter["lane"]][f"dead letter: {letter['reason']}"] += 1
    return found


def unfinished() -> dict[str, int | None]:
    """Return lane -> requests that are not done; None where a service takes too long to say, as on a busy machine."""
    document = json.loads(on("control1", "slowjobs", "status", "--json", accept=(0, 1)))
    return {lane["name"]: lane["unfinished"] for lane in document["lanes"]}


class Account:
    """What is sent to each lane, and what has come of it so far. ``sent``: lane -> when, in seconds since 1970."""

    def __init__(self, run: str, batches: list[Batch]) -> None:
        self._run = run
        self.batches = {batch.lane: batch for batch in batches}
        self.sent: dict[str, float] = {}
        self.results: list[Result] = []
        self._dead: dict[str, Ends] = {}
        self._unfinished: dict[str, int | None] = {}

    def look(self) -> None:
        """Ask all who know."""
        self.results = results(self._run)
        self._unfinished = unfinished()

    def close(self) -> None:
        """Ask for what came to no result; once, at the end, since all dead letters are read for it."""
        self._dead = dead_letters(self._run)

    @property
    def total(self) -> int:
        """How many results there are to be."""
        dead = sum(len(batch.malformed) for batch in self.batches.values())
        return sum(batch.expected.total() for batch in self.batches.values()) - dead

    @property
    def complete(self) -> bool:
        """Whether all results are there and no lane has anything left."""
        return len(self.results) >= self.total and all(self._unfinished.get(lane) == 0 for lane in self.batches)

    @property
    def settled(self) -> bool:
        """Whether what came is what was expected, to the last request."""
        return self.complete and all(self._ends(lane) == batch.expected for lane, batch in self.batches.items())

    def progress(self) -> tuple[int, str]:
        """Return a figure that stands still when nothing goes on, and words for those who watch."""
        left = {lane: count for lane, count in self._unfinished.items() if count and lane in self.batches}
        words = "left: " + (", ".join(f"{lane} {count}" for lane, count in left.items()) or "nothing")
        return len(self.results) - sum(left.values()), words

    def tables(self) -> list[rich.table.Table]:
        """Return a table for each pool, with a column for each of its lanes."""
        return [self._table(weights) for weights in POOLS.values()]

    def shares(self) -> list[str]:
        """Say how the lanes of each pool shared its slots while the first one had work."""
        return [self._share(weights) for weights in POOLS.values() if len(weights) > 1]

    def _ends(self, lane: str) -> Ends:
        return Ends(one.status for one in self.results if one.lane == lane) + self._dead.get(lane, Ends())

    def _table(self, weights: dict[str, int]) -> rich.table.Table:
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        table.add_column(min_width=28)
        for lane, weight in weights.items():
            table.add_column(f"{lane}\nweight {weight}", justify="right")
        batches = [self.batches[lane] for lane in weights]
        ends = [self._ends(lane) for lane in weights]
        table.add_row("requests", *(str(batch.expected.total() + batch.again) for batch in batches), style="bold")
        for end in sorted(set().union(*ends)):
            table.add_row(end, *(str(of[end] or "") for of in ends))
        table.add_row("came twice, one row", *(str(batch.again or "") for batch in batches))
        left = (batch.expected.total() - of.total() for batch, of in zip(batches, ends, strict=True))
        table.add_row("unaccounted", *map(str, left), style="bold")
        for label, figure in {"median": statistics.median, "longest": max}.items():
            table.add_row(f"seconds to a result, {label}", *(f"{figure(self._seconds(lane)):.1f}" for lane in weights))
        return table

    def _seconds(self, lane: str) -> list[float]:
        """Return the time from a lane's sending to each of its results."""
        return [one.finished - self.sent[lane] for one in self.results if one.lane == lane] or [0]

    def _share(self, weights: dict[str, int]) -> str:
        first, *others = weights
        moments = sorted(one.finished for one in self.results if one.lane == first)
        # At its end the slots that it has no more use for go to the others.
        moments = moments[: 1 + len(moments) * 3 // 4]
        meanwhile = collections.Counter(one.lane for one in self.results if moments[0] <= one.finished <= moments[-1])
        had = " and ".join(f"{lane} had {meanwhile[lane]}" for lane in others)
        by = " to ".join(str(weight) for weight in weights.values())
        return f"While {first} had {len(moments)} results, {had}; by weight {by}."
