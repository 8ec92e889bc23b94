"""Send real requests through the local hosts, watch them until all are done, and account for each of them.

fixity    the files of the Debian packages on the workers, each with the MD5 that its package recorded. One file is
          changed and one removed first, and a few malformed requests are written to Kafka past all checks.
ingest    PDFs and pages of Debian's documentation, from a web server on data1, straight, by landing pages, and by
          addresses that lead to each status of the handler; some requests come twice.
regrobid  the same PDFs in WARCs, by CDX lines. What answers there is a program of the demo, not GROBID: it shows the
          way of the requests, no extraction.

In each pool the lanes of small weight are sent first; while they wait, that of the greatest follows and overtakes them.
Exit status: 0 when every request came to an end that was expected, 1 otherwise.
"""

import argparse
import sys
import time
from datetime import UTC, datetime

import fixity
import ingest
import regrobid
import rich.console
import rich.progress
from account import POOLS, Account
from batches import Batch
from hosts import OWNER, on, put

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

#: wide lines are the terminal's to wrap: commands can be copied from it.
console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)


def send(batch: Batch) -> float:
    """Send requests by the command line; return when it began, in seconds since 1970."""
    path = f"/root/{batch.lane}.requests"
    put("control1", path, "".join(f"{line}\n" for line in batch.lines).encode())
    began = time.time()
    console.print(on("control1", "slowjobs", "enqueue", batch.lane, path).decode().strip())
    if batch.malformed:
        raw = "".join(f"{value.hex()}\n" for value in batch.malformed)
        on("control1", "/opt/slowjobs/current/bin/python", "-c", PRODUCE, batch.lane, data=raw.encode())
        console.print(f"{len(batch.malformed)} malformed requests written to its topic past all checks")
    return began


def send_all(account: Account) -> None:
    """Send to the lanes of each pool; to its first lane when the others are under way, so that it overtakes them."""
    for lanes in POOLS.values():
        first, *others = lanes
        for lane in others:
            account.sent[lane] = send(account.batches[lane])
        await_first_results(account, set(others))
        account.sent[first] = send(account.batches[first])


def await_first_results(account: Account, lanes: set[str]) -> None:
    """Wait until each of ``lanes`` has a result."""
    deadline = time.monotonic() + STALL_SECONDS
    while not lanes <= {one.lane for one in account.results} and time.monotonic() < deadline:
        time.sleep(0.5)
        account.look()


def watch(account: Account) -> None:
    """Show how the run goes, until all is there or nothing moves any more."""
    columns = (
        rich.progress.TextColumn("results"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.description}"),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=account.total)
        moved, seen = time.monotonic(), None
        while not account.complete and time.monotonic() - moved < STALL_SECONDS:
            time.sleep(1)
            account.look()
            figure, words = account.progress()
            progress.update(bar, completed=len(account.results), description=words)
            if not console.is_terminal:
                console.print(f"{len(account.results)} of {account.total} results; {words}")
            if figure != seen:
                moved, seen = time.monotonic(), figure


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        prog="demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000, help="how many files to check (default: %(default)s)")
    count = parser.parse_args().requests
    # The name of this run, which is in its requests: when it began, as the documents write it.
    run = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    fixity.tamper()
    account = Account(run, [*fixity.batches(run, count), *ingest.batches(run), *regrobid.batches(run)])
    send_all(account)
    watch(account)
    account.close()
    for table in account.tables():
        console.print(table)
    podman = " ".join([*OWNER, "podman exec"])
    if not account.settled:
        return _fail(account, podman)
    for share in account.shares():
        console.print(share)
    console.print(
        "What answered regrobid-bulk is a program of the demo, not GROBID: its results were not read from a PDF.\n"
        "Every request is accounted for. What to try next:\n"
        f"  {podman} slowjobs-control1 slowjobs status\n"
        f"  {podman} slowjobs-control1 slowjobs dead list\n"
        f"  {podman} slowjobs-worker1 journalctl -u 'slowjobs-worker@*'\n"
        "  make deploy    after a change of the inventory\n"
        "  make down      takes it all away"
    )
    return 0


def _fail(account: Account, podman: str) -> int:
    console.print("Not every request came to the end that was expected, which is:", style="red")
    for batch in account.batches.values():
        console.print(f"  {batch.lane}: {dict(batch.expected)}")
    console.print(
        f"Look at:\n  {podman} slowjobs-control1 slowjobs status\n  {podman} slowjobs-control1 slowjobs dead list"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
