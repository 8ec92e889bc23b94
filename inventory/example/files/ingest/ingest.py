"""Find the PDF behind a landing page: an example of a handler that is a class.

Request: {"base_url"}. Result: {"status", "hit", "terminal_url"}: success, no-pdf-link, too-many-hops, http-<code>.
"""

import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import lxml.html
from slowjobs.outcomes import Busy, Retry

SERVER_ERRORS = range(500, 600)
TOO_MANY_REQUESTS = 429


class Ingest:
    """One in each slot. ``max_hops``: pages that are followed, ``timeout_seconds``: for each of them."""

    def __init__(self, max_hops: int = 4, timeout_seconds: float = 30) -> None:
        self.max_hops = max_hops
        self.timeout_seconds = timeout_seconds

    def want(self, request: dict[str, Any]) -> bool:
        """Tell whether there is anything to do; what is not wanted is done without a result."""
        return str(request["base_url"]).startswith(("http://", "https://"))

    def process(self, request: dict[str, Any], key: str | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the result for one request. Any exception but these of slowjobs is tried again, too."""
        url = request["base_url"]
        for _ in range(self.max_hops):
            try:
                link = self._link(url)
            except urllib.error.HTTPError as error:
                if error.code == TOO_MANY_REQUESTS:
                    # Waits in this worker, without a slot.
                    raise Busy(delay=60, reason=f"{url}: {error}") from error
                if error.code in SERVER_ERRORS:
                    raise Retry(reason=f"{url}: {error}") from error
                return {"status": f"http-{error.code}", "hit": False, "terminal_url": url}
            if link is None:
                return {"status": "success", "hit": True, "terminal_url": url}
            if not link:
                return {"status": "no-pdf-link", "hit": False, "terminal_url": url}
            url = urllib.parse.urljoin(url, link)
        return {"status": "too-many-hops", "hit": False, "terminal_url": url}

    def _link(self, url: str) -> str | None:
        """Return where a page says that its PDF is, "" if it does not say; None if it is the PDF itself."""
        with urllib.request.urlopen(url, timeout=self.timeout_seconds) as response:  # noqa: S310 - see want
            if response.headers.get_content_type() == "application/pdf":
                return None
            found = lxml.html.parse(response).xpath("//meta[@name='citation_pdf_url']/@content")
        return str(found[0]) if found else ""
