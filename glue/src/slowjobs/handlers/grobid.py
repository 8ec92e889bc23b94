"""Send a PDF that a CDX line names through GROBID: from a WARC, or from a wayback machine's replay."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree as ET

import requests
import urllib3

from slowjobs.handlers import warc
from slowjobs.outcomes import Busy, Reject, Retry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import BinaryIO

#: GROBID's documentation asks for 5 to 10 s.
_BUSY_SECONDS = 10
_OVERLOADED = (429, 503)
#: what opening a path says that is none of a file; all else may pass, and is tried again.
_NO_SUCH_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
#: mimetypes that crawlers give a PDF, too, when its server said nothing of use.
_PERHAPS_PDF = ("", "-", "unk", "application/octet-stream", "binary/octet-stream", "application/x-download")
#: characters of an error's text.
_MESSAGE_CHARACTERS = 500
#: names in GROBID's documentation of /api/processFulltextDocument. No consolidation: it asks other servers.
_PARAMETERS: Mapping[str, str | Sequence[str]] = {
    "consolidateHeader": "0",
    "consolidateCitations": "0",
    "includeRawCitations": "1",
    "includeRawAffiliations": "1",
    "teiCoordinates": ("ref", "figure", "persName", "formula", "biblStruct"),
}


class _NoPdfError(Exception):
    """There is nothing to send. ``status``: the result's."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Grobid:
    """One in each slot.

    ``server``: GROBID's address, such as http://grobid.example.org:8070. ``warc_prefix``: the folder or the http
    address that warc_path is below. ``wayback_url``: of replays, such as https://web.archive.org/web; for requests
    without a warc_path, or for all if there is no ``warc_prefix``. ``parameters``: of GROBID, before those here.
    ``timeout_seconds``: until GROBID answers, ``fetch_timeout_seconds``: for each wait on whoever has the PDF.
    """

    def __init__(
        self,
        *,
        server: str,
        warc_prefix: str | None = None,
        wayback_url: str | None = None,
        parameters: Mapping[str, str | Sequence[str]] | None = None,
        timeout_seconds: float = 180,
        fetch_timeout_seconds: float = 60,
        max_pdf_bytes: int = 256 * 2**20,
    ) -> None:
        if not (warc_prefix or wayback_url):
            raise ValueError("warc_prefix or wayback_url is needed: PDFs come from there")
        self._server = server.rstrip("/")
        self._warc_prefix = warc_prefix
        self._wayback_url = wayback_url
        self._parameters = {**_PARAMETERS, **(parameters or {})}
        self._timeout_seconds = timeout_seconds
        self._fetch_timeout_seconds = fetch_timeout_seconds
        self._max_pdf_bytes = max_pdf_bytes
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between our own servers

    def want(self, request: dict[str, Any]) -> bool:
        """Skip lines of pages, images and the like, which CDX files are full of."""
        mimetype = str(request.get("mimetype") or "").lower()
        return "pdf" in mimetype or mimetype in _PERHAPS_PDF

    def process(self, request: dict[str, Any], key: str | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the result (docs/handlers.md). Raises Busy, Retry, and Reject for a request that cannot be done."""
        sha1hex = _member(request, "sha1hex", str)
        try:
            pdf = self._pdf(request)
            _check(pdf, sha1hex)
        except _NoPdfError as error:
            result = {"status": error.status, "error_message": str(error)[:_MESSAGE_CHARACTERS]}
        else:
            result = self._convert(pdf)
        return {"sha1hex": sha1hex, "hit": result["status"] == "success", **result}

    # Where the PDF comes from

    def _pdf(self, request: dict[str, Any]) -> bytes:
        try:
            if self._warc_prefix and (request.get("warc_path") or not self._wayback_url):
                return self._from_warc(request, self._warc_prefix)
            return self._from_wayback(request, cast("str", self._wayback_url))
        except warc.TooLargeError as error:
            raise _NoPdfError("blob-too-large", str(error)) from None

    def _from_warc(self, request: dict[str, Any], prefix: str) -> bytes:
        path = warc_path(_member(request, "warc_path", str))
        start = _member(request, "warc_offset", int)
        size = None if request.get("warc_csize") is None else _member(request, "warc_csize", int)
        opened = self._remote if prefix.startswith(("http://", "https://")) else _local
        try:
            with opened(prefix, path, start, size) as stream:
                return warc.read_payload(stream, self._max_pdf_bytes)
        except warc.WarcError as error:
            raise _NoPdfError("warc-error", f"{path} at {start}: {error}") from None

    @contextlib.contextmanager
    def _remote(self, prefix: str, path: PurePosixPath, start: int, size: int | None) -> Iterator[BinaryIO]:
        url = f"{prefix.rstrip('/')}/{urllib.parse.quote(str(path))}"
        end = "" if size is None else start + size - 1
        headers = {"Range": f"bytes={start}-{end}", "Accept-Encoding": "identity"}
        with self._open(url, "warc-error", headers, expect=206) as response:
            yield cast("BinaryIO", response.raw)

    def _from_wayback(self, request: dict[str, Any], prefix: str) -> bytes:
        # "id_": as it was captured, without the links that a replay rewrites.
        url = f"{prefix.rstrip('/')}/{_member(request, 'datetime', str)}id_/{_member(request, 'url', str)}"
        with self._open(url, "wayback-error", {}, expect=200) as response:
            content = bytearray()
            for piece in response.iter_content(2**16):
                content += piece
                if len(content) > self._max_pdf_bytes:
                    raise warc.TooLargeError(f"over {self._max_pdf_bytes} bytes")
            return bytes(content)

    @contextlib.contextmanager
    def _open(self, url: str, status: str, headers: dict[str, str], expect: int) -> Iterator[requests.Response]:
        with (
            _retried(url),
            self._session.get(
                url, headers=headers, stream=True, timeout=self._fetch_timeout_seconds, allow_redirects=False
            ) as response,
        ):
            _raise_for_trouble(response)
            if response.status_code != expect:
                raise _NoPdfError(status, f"{response.status_code} from {url}, expected {expect}")
            yield response

    # GROBID

    def _convert(self, pdf: bytes) -> dict[str, Any]:
        with _retried(self._server):
            version = self._version()
            response = self._session.post(
                f"{self._server}/api/processFulltextDocument",
                files={"input": ("input.pdf", pdf, "application/pdf")},
                data=self._parameters,
                headers={"Accept": "application/xml"},
                timeout=self._timeout_seconds,
            )
        if response.status_code in _OVERLOADED:
            raise Busy(_BUSY_SECONDS, f"{response.status_code} from {self._server}")
        return {"status_code": response.status_code, "grobid_version": version, **_reading(response)}

    def _version(self) -> str:
        response = self._session.get(f"{self._server}/api/version", timeout=self._fetch_timeout_seconds)
        _raise_for_trouble(response)
        try:
            found = json.loads(response.text)
        except ValueError:  # before 0.8 it was text
            return response.text.strip()[:_MESSAGE_CHARACTERS]
        return str(found["version"]) if isinstance(found, dict) and "version" in found else response.text.strip()


def warc_path(text: str) -> PurePosixPath:
    """Return the path of a WARC below wherever they are. Raises Reject for one that leads out of there."""
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise Reject(f"warc_path: expected a path below the folder of WARCs, got {text[:200]!r}")
    return path


@contextlib.contextmanager
def _local(prefix: str, path: PurePosixPath, start: int, _size: int | None) -> Iterator[BinaryIO]:
    try:
        with Path(prefix, path).open("rb") as stream:
            # No further than to its end: a file system refuses to go anywhere.
            stream.seek(min(start, os.fstat(stream.fileno()).st_size))
            yield stream
    except OSError as error:
        if error.errno not in _NO_SUCH_FILE:
            raise
        raise _NoPdfError("warc-error", str(error)) from None


@contextlib.contextmanager
def _retried(server: str) -> Iterator[None]:
    """Turn a time-out or a lost connection into Retry."""
    try:
        yield
    except (requests.Timeout, requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
        raise Retry(reason=f"{server}: {error}") from error


def _raise_for_trouble(response: requests.Response) -> None:
    if response.status_code in _OVERLOADED:
        raise Busy(_BUSY_SECONDS, f"{response.status_code} from {response.url}")
    if response.status_code in range(500, 600):
        raise Retry(reason=f"{response.status_code} from {response.url}")


def _check(pdf: bytes, sha1hex: str) -> None:
    if not pdf:
        raise _NoPdfError("empty-blob", "0 bytes")
    found = hashlib.sha1(pdf, usedforsecurity=False).hexdigest()
    if found != sha1hex.lower():
        raise _NoPdfError("sha1-mismatch", f"{len(pdf)} bytes have {found}")


def _reading(response: requests.Response) -> dict[str, Any]:
    """Return what GROBID made of a PDF."""
    if response.status_code == requests.codes.no_content:
        return {"status": "no-content"}
    if response.status_code != requests.codes.ok:
        return {"status": "grobid-error", "error_message": response.text[:_MESSAGE_CHARACTERS]}
    text = response.content.decode("utf-8", errors="replace")
    try:
        ET.fromstring(text)  # noqa: S314 - GROBID is ours
    except ET.ParseError as error:
        return {"status": "bad-grobid-xml", "error_message": str(error)}
    return {"status": "success", "tei_xml": text}


def _member(request: dict[str, Any], name: str, expected: type[Any]) -> Any:
    value = request.get(name)
    if not isinstance(value, expected) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise Reject(f"{name!r}: expected {expected.__name__}, got {str(value)[:200]!r}", "member-type")
    return value
