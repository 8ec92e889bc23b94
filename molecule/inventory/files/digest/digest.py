"""A handler for the tests: the digest of a text, when the request lets it."""

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import base58
from slowjobs import outcomes


class Digest:
    """Request: {"id", "text"} and "seconds" to wait, or "until", a file to wait for. Result: {"digest", "pid"}.

    "again": for how many seconds it is put back by each host that sees it for the first time.
    """

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm

    def process(self, request: dict[str, Any], key: str | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the result for one request: the digest in base 58, and which process made it."""
        time.sleep(request.get("seconds", 0))
        while "until" in request and not Path(request["until"]).exists():
            time.sleep(0.05)
        seen = Path(tempfile.gettempdir(), request["id"])
        if "again" in request and not seen.exists():
            seen.touch()
            raise outcomes.Retry(request["again"], "as it was asked for")
        digest = hashlib.new(self.algorithm, request["text"].encode()).digest()
        return {"digest": base58.b58encode(digest).decode(), "pid": os.getpid()}
