"""Ingest: PDFs and pages of a web server on data1, straight or by a landing page, and all that can go wrong."""

import itertools
import json

import documents
from batches import Batch, Ends

#: by weight, and how many documents each is asked for.
LANES = {"ingest-bulk": 160, "ingest-daily": 160, "ingest-priority": 240}
#: the lane that also gets what goes wrong.
WITH_TROUBLE = "ingest-daily"
SERVER = "http://data1"
#: roles/demo_servers has a location for each status of the handler.
TROUBLE = {
    "/status/page": "no-pdf-link",
    "/doc/debian-history/copyright": "wrong-mimetype",
    "/status/empty": "empty-blob",
    "/status/missing": "terminal-bad-status",
    "/status/broken": "remote-server-error",
    "/status/loop": "redirect-loop",
    "/status/hops/xxxxxxxx": "success",
    "/status/hops/xxxxxxxxx": "max-hops-exceeded",
    "/status/large": "body-too-large",
    "/status/slow": "timeout",
}
#: PDFs at an address that bears one request a second, and tells the others when to come again.
FULL = 4
#: requests of each lane that come twice.
AGAIN = 5


def batches(run: str) -> list[Batch]:
    """Return requests for the three lanes of the pool."""
    pdfs, pages = documents.paths("pdf"), documents.paths("html")
    made = []
    for lane, count in LANES.items():
        addresses = list(itertools.islice(_addresses(pdfs, pages), count))
        expected = Ends(success=count)
        if lane == WITH_TROUBLE:
            addresses += [("pdf", path) for path in TROUBLE]
            addresses += [("pdf", f"/status/full/{path}") for path in pdfs[:FULL]]
            expected += Ends(TROUBLE.values()) + Ends(success=FULL)
        lines = [_request(run, lane, number, *address) for number, address in enumerate(addresses)]
        made.append(Batch(lane, lines + lines[:AGAIN], expected, again=AGAIN))
    return made


def _addresses(pdfs: list[str], pages: list[str]) -> itertools.chain[tuple[str, str]]:
    """Return (type, path) without an end: each PDF in three ways, and a page with them."""
    return itertools.chain.from_iterable(
        (("pdf", f"/{pdf}"), ("pdf", f"/landing/{pdf}"), ("pdf", f"/links/{pdf}"), ("html", f"/{page}"))
        for pdf, page in zip(itertools.cycle(pdfs), itertools.cycle(pages))
    )


def _request(run: str, lane: str, number: int, ingest_type: str, path: str) -> str:
    return json.dumps(
        {
            "ingest_type": ingest_type,
            # Results are kept by address: one of this run's own.
            "base_url": f"{SERVER}{path}?run={run}&lane={lane}&number={number}",
            "link_source": "demo",
            "link_source_id": f"{run}/{lane}/{number}",
            "ingest_request_source": "demo",
            "lane": lane,
        }
    )
