#!/usr/bin/env python3
"""Send real requests through the local hosts, watch them until all are done, and account for each of them.

The requests are the files of the Debian packages on the workers, each with the MD5 that its package recorded. One file
is changed and one removed on every worker first, and a few malformed requests are written to Kafka past all checks.
Exit status: 0 when every request came to an end that was expected, 1 otherwise.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import rich.box
import rich.console
import rich.progress
import rich.table

LANE, KIND = "fixity-check", "fixity"
WORKERS = ("worker1", "worker2")
CHANGED = "usr/share/common-licenses/GPL-2"
REMOVED = "usr/share/common-licenses/Artistic"
MALFORMED = {"not-json": b"no JSON at all", "not-an-object": b'"a string"', "member-missing": b'{"path": "/etc/hosts"}'}
REQUESTS_FILE = "/root/fixity-requests.jsonl"
#: seconds; a run in which nothing ends for so long has failed.
STALL_SECONDS = 120

#: On the control host: writes each line of standard input, from hexadecimal, to a topic.
PRODUCE = """
import sys, tomllib
import confluent_kafka
with open("/etc/slowjobs/slowjobs.toml", "rb") as file:
    producer = confluent_kafka.Producer(tomllib.load(file)["kafka"]["properties"])
for line in sys.stdin:
    producer.produce(sys.argv[1], bytes.fromhex(line))
sys.exit(producer.flush(30))
"""

#: the local hosts are root's containers.
OWNER = [] if os.geteuid() == 0 else ["sudo"]

console = rich.console.Console()


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its name is in each of its requests. ``began``: when, as the documents write it."""

    name: str
    began: str
    requests: int


def on(host: str, *command: str, data: str | None = None, accept: tuple[int, ...] = (0,)) -> str:
    """Run a command on a local host and return what it printed. Raises SystemExit for another status."""
    argv = [*OWNER, "podman", "exec", "--interactive", f"slowjobs-{host}", *command]
    done = subprocess.run(argv, input=data or "", capture_output=True, text=True, check=False)
    if done.returncode not in accept:
        raise SystemExit(
            f"{' '.join(command[:4])} on {host} ended with {done.returncode}: {done.stderr or done.stdout}"
        )
    return done.stdout


def tamper() -> None:
    """Change one packaged file and remove another, the same on every worker."""
    for worker in WORKERS:
        on(worker, "sh", "-c", f"echo changed >> /{CHANGED}; rm --force /{REMOVED}")


def packaged_files(count: int, run: str) -> list[dict[str, str]]:
    """Return ``count`` requests: files of the worker's packages, evenly over all, the tampered ones included."""
    listed = on("worker1", "sh", "-c", "cd /var/lib/dpkg/info && grep --with-filename . *.md5sums").splitlines()
    requests = []
    for line in listed:
        package, recorded = line.split(".md5sums:", 1)
        md5, path = recorded.split(maxsplit=1)
        requests.append({"file_id": f"{package}/{path}", "path": f"/{path}", "md5": md5, "run": run})
    tampered = [request for request in requests if request["path"] in (f"/{CHANGED}", f"/{REMOVED}")]
    others = [request for request in requests if request not in tampered]
    wanted = max(1, count - len(tampered))
    step = max(1.0, len(others) / wanted)
    spread = [others[int(index * step)] for index in range(min(wanted, len(others)))]
    return spread + tampered


def send(requests: list[dict[str, str]]) -> None:
    """Send the requests by the command line, and the malformed ones past it."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    on("control1", "sh", "-c", f"cat > {REQUESTS_FILE}", data=lines)
    console.print(on("control1", "slowjobs", "enqueue", LANE, REQUESTS_FILE).strip())
    raw = "".join(value.hex() + "\n" for value in MALFORMED.values())
    on("control1", "/opt/slowjobs/current/bin/python", "-c", PRODUCE, LANE, data=raw)
    console.print(f"{len(MALFORMED)} malformed requests written to the topic past all checks")


def results(run: Run) -> collections.Counter[str]:
    """Return ``status -> results`` of this run, from PostgreSQL."""
    # Constants of this file, and a time.
    query = f"""
        SELECT result.status, count(*) FROM job_request AS request JOIN job_result AS result USING (kind, key)
        WHERE kind = '{KIND}' AND request.request ->> 'run' = '{run.name}' AND result.updated >= '{run.began}'
        GROUP BY 1"""  # noqa: S608
    rows = on("data1", "runuser", "-u", "postgres", "--", "psql", "-d", "slowjobs", "-AtF", " ", "-c", query)
    return collections.Counter({status: int(count) for status, count in map(str.split, rows.splitlines())})


def dead_letters(run: Run) -> collections.Counter[str]:
    """Return ``reason -> dead letters`` of this run, from Kafka."""
    document = json.loads(on("control1", "slowjobs", "dead", "list", "--lane", LANE, "--limit", "100000", "--json"))
    return collections.Counter(letter["reason"] for letter in document["dead_letters"] if letter["at"] >= run.began)


def watch(run: Run) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Show how the run goes; return results and dead letters once all have one, or what there is at a stall."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.fields[lane]}"),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        bar = progress.add_task("results", total=run.requests, lane="")
        moved, seen = time.monotonic(), -1
        while True:
            done = results(run)
            # On a busy machine a service may take too long to answer: what did answer is shown.
            status = json.loads(on("control1", "slowjobs", "status", "--json", accept=(0, 1)))
            lane = next(lane for lane in status["lanes"] if lane["name"] == LANE)
            figures = f"on Kafka {lane['unpublished']}, waiting {lane['waiting']}, in flight {lane['in_flight']}"
            progress.update(bar, completed=done.total(), lane=figures)
            if not console.is_terminal:
                console.print(f"{done.total()} of {run.requests} results; {figures}")
            dead = dead_letters(run) if done.total() >= run.requests else collections.Counter()
            if done.total() + dead.total() != seen:
                moved, seen = time.monotonic(), done.total() + dead.total()
            if seen >= run.requests + len(MALFORMED) or time.monotonic() - moved > STALL_SECONDS:
                return done, dead
            time.sleep(1)


def report(run: Run, done: collections.Counter[str], dead: collections.Counter[str], seconds: float) -> None:
    """Print the table."""
    table = rich.table.Table(title=f"Lane {LANE}", title_justify="left", box=rich.box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests", f"{run.requests + len(MALFORMED)}", style="bold")
    for status, count in done.most_common():
        table.add_row(f"result: {status}", str(count))
    for reason, count in dead.most_common():
        table.add_row(f"dead letter: {reason}", str(count))
    table.add_row("unaccounted", str(run.requests + len(MALFORMED) - done.total() - dead.total()), style="bold")
    table.add_row("seconds", f"{seconds:.1f}")
    table.add_row("requests a second", f"{run.requests / seconds:.1f}")
    console.print(table)


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="how many files to check (default: %(default)s)")
    count = parser.parse_args().requests
    began = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    tamper()
    requests = packaged_files(count, began)
    run = Run(name=began, began=began, requests=len(requests))
    start = time.monotonic()
    send(requests)
    done, dead = watch(run)
    seconds = time.monotonic() - start
    report(run, done, dead, seconds)
    expected = collections.Counter(match=run.requests - 2, mismatch=1, missing=1)
    podman = " ".join([*OWNER, "podman exec"])
    if done != expected or dead != collections.Counter(dict.fromkeys(MALFORMED, 1)):
        console.print(
            f"Expected results {dict(expected)} and one dead letter each of {', '.join(MALFORMED)}. Look at:\n"
            f"  {podman} slowjobs-control1 slowjobs status\n"
            f"  {podman} slowjobs-control1 slowjobs dead list",
            style="red",
        )
        return 1
    console.print(
        "Every request is accounted for. What to try next:\n"
        f"  {podman} slowjobs-control1 slowjobs status\n"
        f"  {podman} slowjobs-control1 slowjobs dead list\n"
        f"  {podman} slowjobs-worker1 journalctl -u 'slowjobs-worker@*'\n"
        "  make deploy    after a change of the inventory\n"
        "  make down      takes it all away",
        markup=False,
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
