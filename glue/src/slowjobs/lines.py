"""The lines of a file, plain or gzip, in bounded memory."""

from __future__ import annotations

import codecs
import gzip
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

#: bytes read at once.
_READ_BYTES = 256 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


class DamagedError(OSError):
    """gzip data that ends in the middle, or is none from somewhere on. All lines before that were yielded."""


def read(file: io.BufferedReader, max_bytes: int) -> Iterator[list[bytes]]:
    """Yield lists of lines, each line without its newline, as they come: a slow pipe's are not held back.

    Of a line that is longer than ``max_bytes`` at least one byte more than these is there, and perhaps not the rest. A
    byte order mark at the beginning is left out. Raises OSError, as DamagedError too.
    """
    rest = b""
    first = True
    for chunk in _chunks(file):
        *whole, rest = (rest + (chunk.removeprefix(codecs.BOM_UTF8) if first else chunk)).split(b"\n")
        rest, first = rest[: max_bytes + 1], False
        yield whole
    if rest:
        yield [rest]


def _chunks(file: io.BufferedReader) -> Iterator[bytes]:
    is_gzip = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
    source = gzip.GzipFile(fileobj=file) if is_gzip else file
    try:
        while chunk := source.read1(_READ_BYTES):
            yield chunk
    except EOFError as error:
        raise DamagedError("the gzip data ends in the middle: the file is cut off") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DamagedError(f"the gzip data is damaged: {error}") from error
