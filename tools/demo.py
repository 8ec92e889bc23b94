#!/usr/bin/env python3
"""Send real requests through the local hosts, watch them until all are done, and account for each of them.

The requests are the files of the Debian packages on the workers, each with the MD5 that its package recorded. One file
is changed and one removed on every worker first, and a few malformed requests are written to Kafka past all checks.
Most go to a lane of weight 1; while these wait some hundreds follow on a lane of weight 4, which overtake them.
Exit status: 0 when every request came to an end that was expected, 1 otherwise.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime

import rich.box
import rich.console
import rich.progress
import rich.table

BULK, PRIORITY = "fixity-check", "fixity-priority"
#: as inventory/local has them.
WEIGHTS = {BULK: 1, PRIORITY: 4}
PRIORITY_REQUESTS = 400
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
class Result:
    """One row. ``finished``: seconds since 1970."""

    lane: str
    status: str
    finished: float


#: lane and what came of a request -> how many.
Ends = collections.Counter[tuple[str, str]]


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


def packaged_files(count: int, lane: str, run: str) -> list[dict[str, str]]:
    """Return ``count`` requests: files of the worker's packages, evenly over all, the tampered ones included."""
    listed = on("worker1", "sh", "-c", "cd /var/lib/dpkg/info && grep --with-filename . *.md5sums").splitlines()
    requests = []
    for line in listed:
        package, recorded = line.split(".md5sums:", 1)
        md5, path = recorded.split(maxsplit=1)
        file_id = f"{lane}/{package}/{path}"
        requests.append({"file_id": file_id, "path": f"/{path}", "md5": md5, "lane": lane, "run": run})
    tampered = [request for request in requests if request["path"] in (f"/{CHANGED}", f"/{REMOVED}")]
    others = [request for request in requests if request not in tampered]
    wanted = max(1, count - len(tampered))
    step = max(1.0, len(others) / wanted)
    spread = [others[int(index * step)] for index in range(min(wanted, len(others)))]
    return spread + tampered


def send(lane: str, requests: list[dict[str, str]]) -> float:
    """Send requests by the command line; return when it began, in seconds since 1970."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    on("control1", "sh", "-c", f"cat > {REQUESTS_FILE}", data=lines)
    began = time.time()
    console.print(on("control1", "slowjobs", "enqueue", lane, REQUESTS_FILE).strip())
    return began


def send_malformed() -> None:
    """Write requests that are none past the command line's checks."""
    raw = "".join(value.hex() + "\n" for value in MALFORMED.values())
    on("control1", "/opt/slowjobs/current/bin/python", "-c", PRODUCE, BULK, data=raw)
    console.print(f"{len(MALFORMED)} malformed requests written to the topic past all checks")


def results(run: str) -> list[Result]:
    """Return the results of this run, from PostgreSQL."""
    # Constants of this file, and a time.
    query = f"""
        SELECT request.request ->> 'lane', result.status, extract(epoch FROM result.updated)
        FROM job_request AS request JOIN job_result AS result USING (kind, key)
        WHERE kind = 'fixity' AND request.request ->> 'run' = '{run}' AND result.updated >= '{run}'"""  # noqa: S608
    rows = on("data1", "runuser", "-u", "postgres", "--", "psql", "-d", "slowjobs", "-AtF", " ", "-c", query)
    return [Result(lane, status, float(at)) for lane, status, at in map(str.split, rows.splitlines())]


def dead_letters(run: str) -> Ends:
    """Return the dead letters of this run, from Kafka."""
    document = json.loads(on("control1", "slowjobs", "dead", "list", "--limit", "100000", "--json"))
    letters = [letter for letter in document["dead_letters"] if letter["at"] >= run]
    return Ends((letter["lane"], f"dead letter: {letter['reason']}") for letter in letters)


def expected(requests: dict[str, list[dict[str, str]]]) -> Ends:
    """Return what is to come of all requests."""
    ends = Ends({(BULK, f"dead letter: {reason}"): 1 for reason in MALFORMED})
    for lane, sent in requests.items():
        ends += Ends({(lane, "match"): len(sent) - 2, (lane, "mismatch"): 1, (lane, "missing"): 1})
    return ends


def await_first_result(run: str) -> None:
    """Wait until work is under way."""
    deadline = time.monotonic() + STALL_SECONDS
    while not results(run) and time.monotonic() < deadline:
        time.sleep(0.5)


def watch(run: str, wanted: Ends) -> tuple[list[Result], Ends]:
    """Show how the run goes; return results and dead letters once all are there, or what there is at a stall."""
    columns = (
        rich.progress.TextColumn("results"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.description}"),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        total = wanted.total() - len(MALFORMED)
        bar = progress.add_task("", total=total)
        moved, seen = time.monotonic(), -1
        while True:
            done = results(run)
            # On a busy machine a service may take too long to answer: what did answer is shown.
            status = json.loads(on("control1", "slowjobs", "status", "--json", accept=(0, 1)))
            left = [f"{lane['name']} {lane['unfinished']}" for lane in status["lanes"] if lane["name"] in WEIGHTS]
            figures = f"left: {', '.join(left)}"
            progress.update(bar, completed=len(done), description=figures)
            if not console.is_terminal:
                console.print(f"{len(done)} of {total} results; {figures}")
            dead = dead_letters(run) if len(done) >= total else Ends()
            if len(done) + dead.total() != seen:
                moved, seen = time.monotonic(), len(done) + dead.total()
            if seen >= wanted.total() or time.monotonic() - moved > STALL_SECONDS:
                return done, dead
            time.sleep(1)


def report(wanted: Ends, ends: Ends, seconds: dict[str, list[float]]) -> None:
    """Print the table. ``seconds``: of each lane from its sending to each of its results, the first one first."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    table.add_column()
    for lane, weight in WEIGHTS.items():
        table.add_column(f"{lane}\nweight {weight}", justify="right")
    requests = {lane: sum(count for (of, _), count in wanted.items() if of == lane) for lane in WEIGHTS}
    left = {lane: requests[lane] - sum(count for (of, _), count in ends.items() if of == lane) for lane in WEIGHTS}
    table.add_row("requests", *(str(requests[lane]) for lane in WEIGHTS), style="bold")
    for end in sorted({end for _, end in ends}):
        table.add_row(end, *(str(ends[lane, end]) for lane in WEIGHTS))
    table.add_row("unaccounted", *(str(left[lane]) for lane in WEIGHTS), style="bold")
    for label, figure in {"median": statistics.median, "longest": max}.items():
        table.add_row(f"seconds to a result, {label}", *(f"{figure(seconds[lane] or [0]):.1f}" for lane in WEIGHTS))
    console.print(table)


def shares(done: list[Result]) -> str:
    """Say how the lanes shared the slots while both had work."""
    moments = [result.finished for result in done if result.lane == PRIORITY]
    meanwhile = [result for result in done if result.lane == BULK and min(moments) <= result.finished <= max(moments)]
    return (
        f"While {PRIORITY} had its {len(moments)} results, {BULK} had {len(meanwhile)}: "
        f"{len(moments) / max(1, len(meanwhile)):.1f} to 1, by weight {WEIGHTS[PRIORITY]} to {WEIGHTS[BULK]}."
    )


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="how many files to check (default: %(default)s)")
    count = parser.parse_args().requests
    # The name of this run, which is in each of its requests: when it began, as the documents write it.
    run = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    tamper()
    counts = {BULK: count - PRIORITY_REQUESTS, PRIORITY: PRIORITY_REQUESTS}
    requests = {lane: packaged_files(counts[lane], lane, run) for lane in WEIGHTS}
    wanted = expected(requests)
    sent = {BULK: send(BULK, requests[BULK])}
    send_malformed()
    await_first_result(run)
    sent[PRIORITY] = send(PRIORITY, requests[PRIORITY])
    done, dead = watch(run, wanted)
    ends = dead + Ends((result.lane, result.status) for result in done)
    report(wanted, ends, {lane: [one.finished - sent[lane] for one in done if one.lane == lane] for lane in WEIGHTS})
    podman = " ".join([*OWNER, "podman exec"])
    if ends != wanted:
        console.print(
            f"Expected {dict(wanted)}. Look at:\n"
            f"  {podman} slowjobs-control1 slowjobs status\n"
            f"  {podman} slowjobs-control1 slowjobs dead list",
            style="red",
        )
        return 1
    console.print(shares(done))
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
