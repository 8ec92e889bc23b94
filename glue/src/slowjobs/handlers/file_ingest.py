"""Fetch the file that a request asks for, through redirects and a landing page, and say what became of it."""

from __future__ import annotations

import contextlib
import datetime as dt
from typing import Any

from slowjobs.handlers import landing, media, web
from slowjobs.outcomes import Busy

#: HTTP statuses of a server that has too much to do.
_OVERLOADED = (429, 503)
_DEFAULT_BUSY_SECONDS = 60
#: servers ask for hours; nobody waits so long in a worker.
_MAX_BUSY_SECONDS = 600


class FileIngest:
    """One in each slot.

    ``max_hops``: redirects and the landing page's link together. ``total_seconds``: for all of them,
    ``connect_seconds``: for each connection, ``silence_seconds``: without a byte. ``max_body_bytes``: after
    decompression. ``allow_private_addresses``: also fetch from this host and the networks around it.
    """

    def __init__(
        self,
        *,
        max_hops: int = 8,
        total_seconds: float = 120,
        connect_seconds: float = 20,
        silence_seconds: float = 30,
        max_body_bytes: int = 128 * 2**20,
        allow_private_addresses: bool = False,
        user_agent: str = "slowjobs-file-ingest",
    ) -> None:
        self._max_hops = max_hops
        self._limits = web.Limits(
            total_seconds, connect_seconds, silence_seconds, max_body_bytes, allow_private_addresses
        )
        self._user_agent = user_agent

    def process(self, request: dict[str, Any], key: str | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the result (docs/handlers.md). Raises Busy for a server that has too much to do."""
        with contextlib.closing(web.Session(self._limits, self._user_agent)) as session:
            walk = _Walk(session, self._max_hops)
            try:
                told = {"status": walk.fetch(request["base_url"], request["ingest_type"])}
            except web.StoppedError as stopped:
                told = {"status": stopped.status, "error_message": stopped.reason}
        return {"request": request, "hit": told["status"] == "success", **told, **walk.report()}


class _Walk:
    """The way from a request's address to a file."""

    def __init__(self, session: web.Session, max_hops: int) -> None:
        self._session = session
        self._max_hops = max_hops
        self._seen: set[tuple[str, tuple[str, ...]]] = set()
        self._hops: list[str] = []
        # Of the last hop: its answer, if one came whole, its HTTP status, if one came, and when.
        self._answer: web.Answer | None = None
        self._status_code: int | None = None
        self._at = dt.datetime.now(dt.UTC)

    def fetch(self, url: str, ingest_type: str) -> str:
        """Return the status. Raises Busy, and web.StoppedError where there is no answer to judge."""
        answer, page = self._arrive(url)
        status = _status(answer, ingest_type)
        if page is None or ingest_type != "pdf":
            return status
        link = page.citation_url or page.link_url
        if link is None:
            return "no-pdf-link"
        answer, _ = self._arrive(link)
        return _status(answer, ingest_type)

    def report(self) -> dict[str, Any]:
        """Return the members of the result that tell of the way and its end."""
        answer = self._answer
        digests = {f"{name}hex": answer.body.hexdigest(name) for name in ("md5", "sha1", "sha256")} if answer else {}
        report: dict[str, Any] = {
            "hops": self._hops,
            "terminal": {
                "terminal_url": self._hops[-1],
                "terminal_dt": f"{self._at:%Y%m%d%H%M%S}",
                "terminal_status_code": self._status_code,
                "terminal_sha1hex": digests.get("sha1hex"),
            },
        }
        if answer and answer.body.size:
            mimetype = media.mimetype(answer.body.head, answer.content_type)
            report["file_meta"] = {"size_bytes": answer.body.size, **digests, "mimetype": mimetype}
        return report

    def _arrive(self, url: str) -> tuple[web.Answer, landing.Page | None]:
        """Follow redirects; return the answer at their end, and what it says if it is a page."""
        while True:
            answer = self._hop(web.normal_url(url))
            page = None if answer.redirect_url else _page(answer, self._hops[-1])
            refresh = page.refresh_url if page and not page.citation_url else None
            target = answer.redirect_url or refresh
            if target is None:
                return answer, page
            url = target

    def _hop(self, url: str) -> web.Answer:
        # A server that sends us back with a cookie is likely to answer otherwise now.
        here = (url, self._session.cookies())
        if here in self._seen:
            raise web.StoppedError("redirect-loop", f"back at {url[:200]}")
        if len(self._hops) > self._max_hops:
            raise web.StoppedError("max-hops-exceeded", f"over {self._max_hops}, the next would be {url[:200]}")
        self._seen.add(here)
        self._hops.append(url)
        self._answer, self._status_code = None, None
        try:
            self._answer = answer = self._session.get(url)
            self._status_code = answer.status_code
        except web.StoppedError as stopped:
            self._status_code = stopped.status_code
            raise
        finally:
            self._at = dt.datetime.now(dt.UTC)
        if answer.status_code in _OVERLOADED:
            delay = min(answer.retry_after_seconds or _DEFAULT_BUSY_SECONDS, _MAX_BUSY_SECONDS)
            raise Busy(delay, f"{answer.status_code} from {url}")
        return answer


def _page(answer: web.Answer, url: str) -> landing.Page | None:
    """Return what a page says; None for anything else."""
    if _status(answer, "html") != "success":
        return None
    return landing.read(answer.body.head, url, media.charset(answer.content_type))


def _status(answer: web.Answer, ingest_type: str) -> str:
    """Return the status of an answer that leads nowhere else."""
    if answer.status_code in range(500, 600):
        return "remote-server-error"
    if answer.status_code not in range(200, 300):
        return "terminal-bad-status"
    if not answer.body.size:
        return "empty-blob"
    mimetype = media.mimetype(answer.body.head, answer.content_type)
    fits = {"pdf": mimetype == media.PDF, "html": mimetype in media.HTML, "xml": media.is_xml(mimetype)}
    return "success" if fits.get(ingest_type, True) else "wrong-mimetype"
