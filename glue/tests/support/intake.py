"""The intake of a system of a test's own, and a client that can be as rude as clients are."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import toml
from support.processes import free_port
from support.system import Service

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.system import System

TOKEN = "a-token-of-the-first-lane"  # noqa: S105
OTHER_TOKEN = "a-token-of-the-other-lane"  # noqa: S105


@dataclass(frozen=True)
class Answer:
    """What the intake said."""

    status: int
    document: dict[str, Any]
    headers: http.client.HTTPMessage


class Intake(Service):
    """The `slowjobs intake` of a system, for its lanes ``lane`` and ``other``."""

    def __init__(self, system: System, tokens: dict[str, list[str]] | None = None, **settings: object) -> None:
        self._port = free_port()
        super().__init__(
            "intake", ["intake"], config=system.folder / "intake.toml", environment=dict(system.environment)
        )
        credentials = Path(system.environment["CREDENTIALS_DIRECTORY"])
        if tokens is None:
            tokens = {system.lanes["lane"]: [OTHER_TOKEN[::-1], TOKEN], system.lanes["other"]: [OTHER_TOKEN]}
        (credentials / "intake_tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
        shared = {name: system.documents["bridge"][name] for name in ("host", "kafka", "kinds", "lanes")}
        document = {
            "service": "intake",
            "state_address": self.state_address,
            "listen_address": f"127.0.0.1:{self._port}",
            **shared,
            **settings,
        }
        self.config.write_text(toml.dumps(document), encoding="utf-8")

    def post(
        self,
        lane: str,
        body: bytes | Iterable[bytes],
        *,
        token: str | None = TOKEN,
        method: str = "POST",
        seconds: float = 30,
        **headers: str,
    ) -> Answer:
        """Send a body, in chunks where it is no bytes. ``headers``: ``Content_Type="..."``."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            given["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=seconds)
        try:
            connection.request(
                method, f"/lanes/{lane}/requests", body, given, encode_chunked=not isinstance(body, bytes)
            )
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()), response.headers)
        finally:
            connection.close()

    def seconds_until_closed(self, *sent: bytes) -> float:
        """Connect, send this and nothing more; return how long the intake bears it."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            connection.sendall(b"".join(sent))
            begin = time.monotonic()
            while connection.recv(4096):
                pass
            return time.monotonic() - begin
