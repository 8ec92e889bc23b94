"""Fixity checks: the files of the Debian packages on the workers, each with the MD5 that its package recorded."""

import json

from batches import Batch, Ends
from hosts import WORKERS, on

BULK, PRIORITY = "fixity-check", "fixity-priority"
PRIORITY_REQUESTS = 400
CHANGED = "usr/share/common-licenses/GPL-2"
REMOVED = "usr/share/common-licenses/Artistic"
MALFORMED = {"not-json": b"no JSON at all", "not-an-object": b'"a string"', "member-missing": b'{"path": "/etc/hosts"}'}


def tamper() -> None:
    """Change one packaged file and remove another, the same on every worker."""
    for worker in WORKERS:
        on(worker, "sh", "-c", f"echo changed >> /{CHANGED}; rm --force /{REMOVED}")


def batches(run: str, count: int) -> list[Batch]:
    """Return ``count`` requests: most of them for the lane of weight 1, some to overtake them."""
    bulk = _packaged_files(count - PRIORITY_REQUESTS, BULK, run)
    priority = _packaged_files(PRIORITY_REQUESTS, PRIORITY, run)
    dead = Ends({f"dead letter: {reason}": 1 for reason in MALFORMED})
    return [
        Batch(BULK, bulk, _expected(bulk) + dead, malformed=tuple(MALFORMED.values())),
        Batch(PRIORITY, priority, _expected(priority)),
    ]


def _expected(lines: list[str]) -> Ends:
    return Ends({"match": len(lines) - 2, "mismatch": 1, "missing": 1})


def _packaged_files(count: int, lane: str, run: str) -> list[str]:
    """Return requests for files evenly over all of a worker's packages, the tampered ones included."""
    listed = on("worker1", "sh", "-c", "cd /var/lib/dpkg/info && grep --with-filename . *.md5sums").decode()
    tampered, others = [], []
    for line in listed.splitlines():
        package, recorded = line.split(".md5sums:", 1)
        md5, path = recorded.split(maxsplit=1)
        request = {"file_id": f"{lane}/{package}/{path}", "path": f"/{path}", "md5": md5, "lane": lane, "run": run}
        (tampered if path in (CHANGED, REMOVED) else others).append(json.dumps(request))
    wanted = max(1, count - len(tampered))
    step = max(1.0, len(others) / wanted)
    return [others[int(index * step)] for index in range(min(wanted, len(others)))] + tampered
