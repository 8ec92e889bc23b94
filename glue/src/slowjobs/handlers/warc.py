"""The payload of one record in a WARC file (or an ARC file), which begins where a CDX line says."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.statusandheaders import StatusAndHeadersParserException

#: bytes that are asked for at a time.
_PIECE = 64 * 2**10
#: records that hold what a server sent.
_WITH_PAYLOAD = ("response", "resource")
#: what warcio raises; AttributeError for headers that are not there.
_UNREADABLE = (
    ArchiveLoadFailed,
    AttributeError,
    EOFError,
    StatusAndHeadersParserException,
    ValueError,
    zlib.error,
)


class WarcError(Exception):
    """Where the CDX line points to is no record that can be read."""


class TooLargeError(Exception):
    """The payload has more bytes than it may."""


def read_payload(stream: BinaryIO, max_bytes: int) -> bytes:
    """Return the payload of the record that ``stream`` stands at, decoded as HTTP says; nothing behind it is read.

    Raises WarcError and TooLargeError, and whatever ``stream`` raises.
    """
    try:
        record = next(ArchiveIterator(stream), None)
        if record is None:
            raise WarcError("no record here")
        if record.rec_type not in _WITH_PAYLOAD:
            raise WarcError(f"a {record.rec_type} record, which has no payload")
        payload = io.BytesIO()
        content = record.content_stream()
        while piece := content.read(_PIECE):
            payload.write(piece)
            if payload.tell() > max_bytes:
                raise TooLargeError(f"over {max_bytes} bytes")
    except _UNREADABLE as error:
        raise WarcError(f"no record can be read here: {error}") from error
    return payload.getvalue()
