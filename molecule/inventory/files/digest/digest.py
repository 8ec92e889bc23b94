"""A handler for the tests: the digest of a text, when the request lets it."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import base58
from slowjobs import outcomes


class Digest:
    """Request: {"id", "text"} and "seconds" to wait, or "until", a file to wait for. Result: {"digest", "pid"}.

    "again": how likely it is that all of it is put back for "delay" seconds.
    """

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm

    def process(self, request: dict[str, Any], key: str | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the result for one request: the digest in base 58, and which process made it."""
        time.sleep(request.get("seconds", 0))
        while "until" in request and not Path(request["until"]).exists():
            time.sleep(0.05)
        if os.urandom(1)[0] / 256 < request.get("again", 0):
            raise outcomes.Retry(request["delay"], "as it was asked for")
        digest = hashlib.new(self.algorithm, request["text"].encode()).digest()
        return {"digest": base58.b58encode(digest).decode(), "pid": os.getpid()}
