"""HTTP with servers that nobody vouches for: within limits of time and size, and never inside our own networks.

libcurl does it, because it checks what matters where it happens: the address at the moment of connecting, the time over
all of an exchange, the size after decompression.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
import urllib.parse
from dataclasses import dataclass, field

import certifi
import pycurl

from slowjobs.handlers import addresses

#: bytes of a body that are kept. No landing page of use is longer.
HEAD_BYTES = 4 * 2**20

#: left as they are in an address: what RFC 3986 reserves, and escapes.
_SAFE = "%/:=&?~#+!$,;'@()*[]"

#: what libcurl's errors mean; all others are "bad-response": a lost connection, a wrong length, a broken encoding.
_STATUSES = {
    pycurl.E_COULDNT_CONNECT: "connect-error",
    pycurl.E_COULDNT_RESOLVE_HOST: "host-not-found",
    pycurl.E_FILESIZE_EXCEEDED: "body-too-large",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_PEER_FAILED_VERIFICATION: "connect-error",
    pycurl.E_SSL_CONNECT_ERROR: "connect-error",
    pycurl.E_URL_MALFORMAT: "invalid-url",
}


class StoppedError(Exception):
    """There is no answer of use. ``status``: the result's; ``status_code``: HTTP's, where a head came at least."""

    def __init__(self, status: str, reason: str, status_code: int | None = None) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.status_code = status_code


@dataclass(frozen=True)
class Limits:
    """What an exchange may take. ``total_seconds``: for all answers together, ``silence_seconds``: without a byte."""

    total_seconds: float
    connect_seconds: float
    silence_seconds: float
    max_body_bytes: int
    allow_private_addresses: bool


class Body:
    """What is kept of a body: its size, its digests and its first HEAD_BYTES."""

    def __init__(self) -> None:
        self.size = 0
        self._head = bytearray()
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in ("md5", "sha1", "sha256")}

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        self._head += data[: HEAD_BYTES - len(self._head)]
        for digest in self._digests.values():
            digest.update(data)

    @property
    def head(self) -> bytes:
        """The first HEAD_BYTES."""
        return bytes(self._head)

    def hexdigest(self, name: str) -> str:
        """Return the digest ``name``: md5, sha1 or sha256."""
        return self._digests[name].hexdigest()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer that came whole; ``redirect_url`` and the two below: None where it has none."""

    status_code: int
    redirect_url: str | None
    content_type: str | None
    retry_after_seconds: int | None
    body: Body = field(repr=False)


class Session:
    """Exchanges that belong together: they share cookies and connections, and the time limit runs from the first."""

    def __init__(self, limits: Limits, user_agent: str) -> None:
        self._limits = limits
        self._user_agent = user_agent
        self._deadline = time.monotonic() + limits.total_seconds
        self._curl = pycurl.Curl()
        self._curl.setopt(pycurl.COOKIEFILE, "")  # none is read; it turns cookies on
        self._body = Body()
        self._opened = contextlib.ExitStack()
        #: what we kept libcurl from connecting to
        self._blocked: str | None = None

    def close(self) -> None:
        """End all connections."""
        self._curl.close()

    def cookies(self) -> tuple[str, ...]:
        """Return the cookies that servers have set."""
        return tuple(sorted(self._curl.getinfo(pycurl.INFO_COOKIELIST)))

    def get(self, url: str) -> Answer:
        """Return the answer of one server; redirects are the caller's. Raises StoppedError."""
        if not url.lower().startswith(("http://", "https://")):
            raise StoppedError("unsupported-scheme", "expected http or https")
        if not url.isascii():
            raise StoppedError("invalid-url", "its host is no name")
        self._body, self._blocked = Body(), None
        self._prepare(url)
        try:
            with self._opened:
                self._curl.perform()
        except pycurl.error as error:
            if self._blocked:
                raise StoppedError("blocked-address", f"{self._blocked} is not on the open internet") from None
            code = int(error.args[0])
            status, reason = _STATUSES.get(code, "bad-response"), self._curl.errstr() or f"libcurl's error {code}"
            raise StoppedError(status, reason, self._curl.getinfo(pycurl.RESPONSE_CODE) or None) from None
        return Answer(
            self._curl.getinfo(pycurl.RESPONSE_CODE),
            self._redirect_url(),
            self._content_type(),
            self._curl.getinfo(pycurl.RETRY_AFTER) or None,
            self._body,
        )

    def _prepare(self, url: str) -> None:
        limits = self._limits
        left_seconds = self._deadline - time.monotonic()
        if left_seconds <= 0:
            raise StoppedError("timeout", f"over {limits.total_seconds:g} s")
        for option, value in (
            (pycurl.URL, url),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.PROXY, ""),  # libcurl would take one from the environment, and the address checked would be its
            (pycurl.NOSIGNAL, 1),
            (pycurl.CAINFO, certifi.where()),
            (pycurl.USERAGENT, self._user_agent),
            (pycurl.ACCEPT_ENCODING, "gzip, deflate"),
            (pycurl.TIMEOUT_MS, max(1, int(left_seconds * 1000))),
            (pycurl.CONNECTTIMEOUT_MS, int(limits.connect_seconds * 1000)),
            (pycurl.LOW_SPEED_LIMIT, 1),
            (pycurl.LOW_SPEED_TIME, max(1, int(limits.silence_seconds))),
            (pycurl.MAXFILESIZE_LARGE, limits.max_body_bytes),  # as announced, and again after decompression
            (pycurl.OPENSOCKETFUNCTION, self._open_socket),
            (pycurl.WRITEFUNCTION, self._body.add),
        ):
            self._curl.setopt(option, value)

    def _open_socket(self, _purpose: int, target: tuple[int, int, int, tuple[str, int]]) -> socket.socket | int:
        """Look at the address that libcurl is about to connect to, whatever name or spelling it comes from."""
        family, kind, protocol, (address, *_) = target
        if not self._limits.allow_private_addresses and not addresses.is_public(address):
            self._blocked = address
            return pycurl.SOCKET_BAD
        # pycurl duplicates it.
        return self._opened.enter_context(socket.socket(family, kind, protocol))

    def _redirect_url(self) -> str | None:
        value: bytes | None = self._curl.getinfo_raw(pycurl.REDIRECT_URL)
        # As bytes: whichever encoding the server thinks in, it gets back what it sent.
        return urllib.parse.quote(value, safe=_SAFE) if value else None

    def _content_type(self) -> str | None:
        value: bytes | None = self._curl.getinfo_raw(pycurl.CONTENT_TYPE)
        return value.decode("latin-1") if value else None


def normal_url(url: str) -> str:
    """Return ``url`` as it is sent, in ASCII and without a fragment; one that is no address stays as it is."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    except ValueError:
        return url
    path, query = (urllib.parse.quote(part, safe=_SAFE) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path or "/", query, ""))
