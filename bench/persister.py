#!/usr/bin/env python3
"""Compare the persister with the fastest way into the same tables: COPY into a temporary table, and merge.

A round is of new rows, and then of rows half of which are there already. The persister stands still while the topic is
filled, and is let go: the clock runs from there to PostgreSQL's last commit, so reading Kafka, checks, keys and batches
are all in it. The other way gets the same rows, made beforehand: COPY, and a merge by the same statement, in
transactions of as many records as the persister's. Both write to tables with the same indexes on the same server, in
turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import rich.box
import rich.console
import rich.table
from slowjobs import documents, kafka, postgres, schema, settings
from slowjobs.persister import records
from support import services, system
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slowjobs.persister import tables

#: what a production server would do at least: the tests' own does without.
LASTING = ("fsync", "full_page_writes")
#: seconds; one measurement that takes longer has failed.
DEADLINE_SECONDS = 120
#: the source of rows in our statements, and its columns.
GIVEN = re.compile(r"json_to_recordset\(%\(rows\)s\)\s+AS given \((?P<columns>[^)]*)\)")
SHARES = {"new rows": 0.0, "half duplicates": 0.5}


def job_request(number: int, _system: system.System) -> bytes:
    """Return a fixity check."""
    return system.request(
        f"file-{number:09}", path=f"/srv/archive/{number % 997:03}/{number:09}.warc.gz", sha1=_sha1(number)
    )


def ingest_request(number: int, _system: system.System) -> bytes:
    """Return a request for a paper."""
    return system.ingest_request(
        f"https://journal-{number % 997}.example.org/article/{number}/view",
        link_source_id=f"10.1234/bench.{number}",
        ingest_request_source="fatcat-changelog",
        release_stage="published",
        ext_ids={"doi": f"10.1234/bench.{number}", "pmid": str(number)},
        edit_extra={"agent": "bench", "description": "a request of the size that they are"},
    )


def job_result(number: int, of: system.System) -> bytes:
    """Return the result of a fixity check."""
    return _result({"status": "success", "size_bytes": number, "sha1": _sha1(number)}, [f"file-{number:09}"], of)


def ingest_result(number: int, of: system.System) -> bytes:
    """Return the result of a request for a paper: found."""
    request = json.loads(ingest_request(number, of))
    terminal = {
        "terminal_url": request["base_url"] + ".pdf",
        "terminal_dt": "20250101000000",
        "terminal_status_code": 200,
        "terminal_sha1hex": _sha1(number),
    }
    key = [request[name] for name in ("link_source", "link_source_id", "ingest_type", "base_url")]
    return _result({"request": request, "status": "success", "hit": True, "terminal": terminal}, key, of)


def _result(result: dict[str, Any], key: list[str], of: system.System) -> bytes:
    origin = {"kind": of.kind, "lane": of.lane, "key": json.dumps(key), "position": [of.kafka_topic, 0, 0]}
    times = {"started": documents.now(), "finished": documents.now()}
    return documents.write_result(json.dumps(result).encode(), {**origin, "attempt": 1, "worker": "bench", **times})


def _sha1(number: int) -> str:
    return f"{number:040x}"


@dataclass(frozen=True)
class Case:
    """A kind of records. ``make``: from a number and its system to a record's value."""

    name: str
    instance: str
    make: Callable[[int, system.System], bytes]


#: a system at a time: its persisters are the only members of their groups.
SYSTEMS = (
    (system.JOB, (Case("job requests", "requests", job_request), Case("job results", "results", job_result))),
    (
        system.INGEST,
        (Case("ingest requests", "requests", ingest_request), Case("ingest results", "results", ingest_result)),
    ),
)


class Bench:
    """A system of one type of kind with its persisters, and a second database for the other way."""

    def __init__(self, servers: services.Services, kind: dict[str, Any]) -> None:
        self._servers = servers
        self._system = system.System(servers, kind=kind)
        self._system.setup()
        self._tables = schema.tables([kind["type"]])
        self._other = f"{self._system.database}_other"
        servers.postgresql.create_database(self._other)
        with contextlib.closing(servers.postgresql.connect(self._other)) as connection:
            schema.make(connection, [kind["type"]])
        self._system.start(*self._system.persisters.values())

    def empty(self) -> None:
        """Begin a round."""
        for database in (self._system.database, self._other):
            self._servers.postgresql.query(database, f"TRUNCATE {', '.join(self._tables)}")

    def values(self, case: Case, numbers: Sequence[int]) -> list[bytes]:
        """Return the records of these numbers."""
        return [case.make(number, self._system) for number in numbers]

    def persist(self, case: Case, values: Sequence[bytes]) -> float:
        """Return how many records the persister writes a second."""
        persister = self._system.persisters[case.instance]
        before = persister.state()["written"]
        persister.freeze()
        self._servers.kafka.produce(self._topic(case), values)
        begin = time.monotonic()
        persister.thaw()
        wait_until(
            lambda: persister.state()["written"] - before,
            DEADLINE_SECONDS,
            f"{len(values)} {case.name}",
            accept=lambda count: count >= len(values),
            while_true=self._system.trouble,
        )
        return len(values) / (time.monotonic() - begin)

    def merge(self, case: Case, values: Sequence[bytes], size: int) -> float:
        """Return how many records COPY and merge write a second, with ``size`` of them in a transaction."""
        parts = [values[first : first + size] for first in range(0, len(values), size)]
        transactions = [
            {table.statement: _copy_text(rows) for table, rows in self._rows(case, part).items()} for part in parts
        ]
        with contextlib.closing(self._servers.postgresql.connect(self._other)) as connection:
            connection.autocommit = False
            begin = time.monotonic()
            for name in transactions[0]:
                with connection, connection.cursor() as cursor:
                    columns = _given(name)["columns"]
                    cursor.execute(f"CREATE TEMPORARY TABLE staged_{name} ({columns}) ON COMMIT DELETE ROWS")
            for copies in transactions:
                with connection, connection.cursor() as cursor:
                    for name, text in copies.items():
                        cursor.copy_expert(f"COPY staged_{name} FROM STDIN", io.StringIO(text))
                        cursor.execute(GIVEN.sub(f"staged_{name} AS given", postgres.statement(name)))
            return len(values) / (time.monotonic() - begin)

    def _rows(self, case: Case, values: Sequence[bytes]) -> dict[type[tables.Row], list[tables.Row]]:
        config = settings.load(self._system.persisters[case.instance].config, settings.PersisterSettings)
        reader = (records.Requests if case.instance == "requests" else records.Results)(config)
        now = datetime.now(UTC)
        by_table: dict[type[tables.Row], list[tables.Row]] = {}
        for offset, value in enumerate(values):
            for row in reader.rows(kafka.Record(documents.Position(self._topic(case), 0, offset), value, now)):
                by_table.setdefault(type(row), []).append(row)
        return by_table

    def _topic(self, case: Case) -> str:
        return self._system.kafka_topic if case.instance == "requests" else self._system.result_topic

    def close(self) -> None:
        """End the persisters."""
        self._system.discard()


def _given(name: str) -> re.Match[str]:
    [source] = GIVEN.finditer(postgres.statement(name))
    return source


def _copy_text(rows: Sequence[tables.Row]) -> str:
    return "".join("\t".join(map(_copy_field, vars(row).values())) + "\n" for row in rows)


def _copy_field(value: object) -> str:
    return r"\N" if value is None else str(value).replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t")


def measure(arguments: argparse.Namespace, say: Callable[[str], None]) -> Iterator[tuple[str, str, float, float]]:
    """Yield case, share of duplicates, and records a second of the persister and of the other way, one a round."""
    with services.running() as servers:
        for setting in LASTING:
            servers.postgresql.query("postgres", f"ALTER SYSTEM SET {setting} = on", user="postgres")
        for kind, cases in SYSTEMS:
            with contextlib.closing(Bench(servers, kind)) as bench:
                for round_ in range(arguments.rounds):
                    say(f"{kind['type']}, round {round_ + 1} of {arguments.rounds}")
                    bench.empty()
                    for case in cases:
                        for name, values in _batches(bench, case, arguments.records):
                            other = bench.merge(case, values, arguments.transaction)
                            yield case.name, name, bench.persist(case, values), other


def _batches(bench: Bench, case: Case, count: int) -> Iterator[tuple[str, list[bytes]]]:
    for turn, (name, share) in enumerate(SHARES.items()):
        old, first = int(count * share), turn * count
        numbers = [*range(old), *range(first, first + count - old)]
        random.shuffle(numbers)
        yield name, bench.values(case, numbers)


def report(found: dict[tuple[str, str], list[tuple[float, float]]], console: rich.console.Console) -> None:
    """Print medians and spread."""
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, caption="records a second: median, least and most", caption_justify="left"
    )
    for column in ("", "", "persister", "COPY and merge", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for (case, share), rounds in found.items():
        ratios = [ours / theirs for ours, theirs in rounds]
        cells = (_cell([ours for ours, _ in rounds], 0), _cell([theirs for _, theirs in rounds], 0), _cell(ratios, 2))
        table.add_row(case, share, *cells)
    console.print(table)


def _cell(series: Sequence[float], digits: int) -> str:
    return f"{statistics.median(series):.{digits}f} [dim]({min(series):.{digits}f}-{max(series):.{digits}f})[/dim]"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each works (default: %(default)s)")
    parser.add_argument("--records", type=int, default=20_000, help="a measurement (default: %(default)s)")
    parser.add_argument(
        "--transaction", type=int, default=1000, help="records a transaction of the other way (default: %(default)s)"
    )
    arguments = parser.parse_args()
    # As after Ctrl-C: what was started is ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console = rich.console.Console()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for case, share, ours, theirs in measure(arguments, console.print):
        found.setdefault((case, share), []).append((ours, theirs))
    report(found, console)


if __name__ == "__main__":
    main()
