#!/usr/bin/env python3
"""Measure how many lines a second `slowjobs enqueue` checks and sends, beside a bare producer of the same lines.

Kafka is on the same machine. In each round each kind of file in turn goes through `slowjobs enqueue --dry-run`, which
only checks, through `slowjobs enqueue`, and through a loop that gives each line to librdkafka (acks=all, idempotent)
and hears of its delivery. Commands are timed as a whole, with the start of Python. The ratio means something on any
machine, the figures themselves only on this one.
"""

from __future__ import annotations

import argparse
import base64
import functools
import gzip
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import confluent_kafka
import rich.box
import rich.console
import rich.table
from support import kafka, toml

if TYPE_CHECKING:
    from collections.abc import Callable

SLOWJOBS = Path(sys.executable).with_name("slowjobs")
#: messages in librdkafka's queue.
PRODUCED_AHEAD = 50_000
LANES = {"json": "ingest-bulk", "cdx": "regrobid-bulk"}


def json_line(number: int) -> str:
    """Return an ingest request of about 300 bytes."""
    return json.dumps(
        {
            "ingest_type": "pdf",
            "ingest_request_source": "bulk-import",
            "link_source": "doi",
            "link_source_id": f"10.5555/{number:09}",
            "base_url": f"https://doi.org/10.5555/{number:09}",
            "fatcat": {"release_ident": f"{number:026x}", "work_ident": f"{number * 7:026x}"},
            "ext_ids": {"doi": f"10.5555/{number:09}"},
        }
    )


def cdx_line(number: int) -> str:
    """Return a capture of a PDF, in the form with 11 fields."""
    digest = base64.b32encode(hashlib.sha1(b"%d" % number, usedforsecurity=False).digest()).decode()
    url = f"https://example.org/papers/{number:09}.pdf"
    warc = f"CRAWL-{number // 5000:06}/CRAWL-{number // 5000:06}.warc.gz"
    surt = f"org,example)/papers/{number:09}.pdf"
    return f"{surt} 20260101000000 {url} application/pdf 200 {digest} - - {number % 900000} {number * 100} {warc}"


def write_files(folder: Path, count: int) -> dict[str, Path]:
    """Write a plain file of JSON lines, and one of CDX lines that is compressed."""
    files = {"json": folder / "requests.jsonl", "cdx": folder / "captures.cdx.gz"}
    with files["json"].open("wt") as file:
        file.writelines(f"{json_line(number)}\n" for number in range(count))
    with gzip.open(files["cdx"], "wt", compresslevel=6) as file:
        file.write(" CDX N b a m s k r M S V g\n")
        file.writelines(f"{cdx_line(number)}\n" for number in range(count))
    return files


def write_settings(path: Path, bootstrap: str) -> None:
    """Write a configuration of two lanes, as `slowjobs enqueue` needs it."""
    document = {
        "service": "cli",
        "host": "localhost",
        "kafka": {"properties": {"bootstrap.servers": bootstrap}},
        "postgresql": {"dsn": "host=127.0.0.1"},
        "nsqd": {"active": "a", "hosts": {"a": {"tcp_address": "127.0.0.1:4150", "http_address": "127.0.0.1:4151"}}},
        "kinds": {"ingest": {"type": "ingest"}, "capture": {"type": "job", "key": ["sha1hex"]}},
        "pools": {"pool": {"result_topic": "results"}},
        "lanes": {
            LANES["json"]: {"kind": "ingest", "pool": "pool"},
            LANES["cdx"]: {"kind": "capture", "pool": "pool"},
        },
    }
    path.write_text(toml.dumps(document))


def enqueue(config: Path, lane: str, file: Path, count: int, *options: str) -> None:
    """Run the command; all of its lines must be accepted."""
    argv = [str(SLOWJOBS), "enqueue", lane, str(file), "--json", "--config", str(config), *options]
    said = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
    if json.loads(said.stdout)["accepted"] != count:
        raise RuntimeError(f"expected {count} lines to be accepted: {said.stdout!r}")


def produce(bootstrap: str, topic: str, file: Path) -> None:
    """Give each line to librdkafka, with a key, and hear of its delivery."""
    missing: list[object] = []

    def _deliver(error: object, _: object) -> None:
        if error is not None:
            missing.append(error)

    producer = confluent_kafka.Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 20}
    )
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines):
            if number % 1000 == 0:
                while len(producer) > PRODUCED_AHEAD:
                    producer.poll(0.1)
            producer.produce(topic, line, b"%d" % number, on_delivery=_deliver)
    if producer.flush(60) or missing:
        raise RuntimeError(f"not delivered: {missing[:1]}")


def cost(work: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that ``work`` takes, and those of CPU time, of its children too."""
    before, begin = sum(os.times()[:4]), time.monotonic()
    work()
    return time.monotonic() - begin, sum(os.times()[:4]) - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=500_000, help="in each file [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slowjobs-bench-") as name:
        folder = Path(name)
        files = write_files(folder, options.lines)
        broker = kafka.Kafka(folder / "kafka")
        broker.start()
        try:
            for topic in LANES.values():
                broker.create_topic(topic, partitions=6)
            config = folder / "slowjobs.toml"
            write_settings(config, broker.address)
            measured = measure(broker.address, config, files, options)
        finally:
            broker.discard()
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in ("", "lines a second", "least", "most", "of a bare producer", "CPU us a line"):
        table.add_column(column, justify="right" if column else "left")
    for (form, way), costs in measured.items():
        rates = [options.lines / seconds for seconds, _ in costs]
        bare = statistics.median(options.lines / seconds for seconds, _ in measured[form, "bare producer"])
        figures = (f"{figure:,.0f}" for figure in (statistics.median(rates), min(rates), max(rates)))
        cpu = statistics.median(cpu / options.lines * 1e6 for _, cpu in costs)
        table.add_row(f"{form}, {way}", *figures, f"{statistics.median(rates) / bare:.2f}", f"{cpu:.1f}")
    rich.console.Console().print(table)


def measure(
    bootstrap: str, config: Path, files: dict[str, Path], options: argparse.Namespace
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return what each round costs: ``(form, way) -> (seconds, CPU seconds)``."""
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for form, file in files.items():
            command = functools.partial(enqueue, config, LANES[form], file, options.lines)
            ways = {
                "dry run": functools.partial(command, "--dry-run"),
                "enqueue": command,
                "bare producer": functools.partial(produce, bootstrap, LANES[form], file),
            }
            for way, work in ways.items():
                measured.setdefault((form, way), []).append(cost(work))
    return measured


if __name__ == "__main__":
    main()
