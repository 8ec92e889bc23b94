"""CDX lines: each says where a web archive keeps one capture, and becomes a request for it.

A header line names the fields of the lines below it, one letter each, in any order; the letters are those of the CDX
file format of 2015 (iipc.github.io/warc-specifications). Without one the number of fields tells the two forms apart.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slowjobs import kinds

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER = re.compile(r"(\W?)CDX(\W)(.*)")
_DATETIME = re.compile(r"[0-9]{14}")
#: what PostgreSQL's bigint and everybody else can hold.
_INTEGER = re.compile(r"[0-9]{1,18}")
_SHA1_BASE32 = re.compile(r"[A-Z2-7]{32}")
_SHA1_HEX = re.compile(r"[0-9a-f]{40}")
#: int() reads the digits of base 32 as 0-9a-v, RFC 4648 writes them as A-Z2-7.
_BASE32_DIGITS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghijklmnopqrstuv")
#: what stands for a field without a value.
_NULL = "-"

_quote = json.encoder.encode_basestring  # json.dumps of a string, without making an encoder for it


@dataclass(frozen=True)
class Legend:
    """Which field is which: their letters in order, and what is between two of them."""

    letters: tuple[str, ...]
    delimiter: str = " "


#: the two forms in use, the newer one with the length of the record (S), by their number of fields.
_FORMS = {len(letters): Legend(tuple(letters)) for letters in ("NbamskrMSVg", "NbamskrVg")}


def _text(value: str) -> str:
    if not value:
        raise ValueError("a text, or - for none")
    return _quote(value)


def _datetime(value: str) -> str:
    if not _DATETIME.fullmatch(value):
        raise ValueError("14 digits")
    return f'"{value}"'


def _integer(value: str) -> str:
    if not _INTEGER.fullmatch(value):
        raise ValueError("an integer")
    return str(int(value))


def _sha1hex(value: str) -> str:
    digest = value[5:] if value[:5].lower() == "sha1:" else value
    if _SHA1_BASE32.fullmatch(digest.upper()):
        return f'"{int(digest.upper().translate(_BASE32_DIGITS), 32):040x}"'
    if _SHA1_HEX.fullmatch(digest.lower()):
        return f'"{digest.lower()}"'
    raise ValueError("a SHA-1 in base 32 or hex")


#: member of a request -> the letter of its field, and what makes JSON of that
_MEMBERS: dict[str, tuple[str, Callable[[str], str]]] = {
    "url": ("a", _text),
    "datetime": ("b", _datetime),
    "sha1hex": ("k", _sha1hex),
    "mimetype": ("m", _text),
    "warc_path": ("g", _text),
    "warc_csize": ("S", _integer),
    "warc_offset": ("V", _integer),
}


def is_cdx(line: bytes) -> bool:
    """Tell whether a file that begins with ``line`` is one of CDX lines."""
    text = line.decode(errors="replace")
    return bool(_HEADER.match(text)) or (not text.lstrip().startswith("{") and len(text.split(" ")) in _FORMS)


def legend(line: bytes) -> Legend | None:
    """Return what a header line says; None for any other line."""
    if b"CDX" not in line[:5]:  # nearly all lines: the pattern is only asked for the others
        return None
    found = _HEADER.match(line.decode(errors="replace"))
    return Legend(tuple(found[3].split(found[2])), found[2]) if found else None


def request(line: bytes, named: Legend | None) -> bytes:
    """Return the request for a capture, with null for what its line does not say.

    ``named``: by the header above it, if there is one. Raises kinds.RejectedError, which names the field.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise kinds.RejectedError("not-cdx", f"not UTF-8: {error}") from None
    if named is None:
        fields = text.split(" ")
        form = _FORMS.get(len(fields))
        if form is None:
            raise kinds.RejectedError("not-cdx", f"expected 9 or 11 fields, or a header line, got {len(fields)} fields")
    else:
        form, fields = named, text.split(named.delimiter)
        if len(fields) != len(form.letters):
            expected = f"expected {len(form.letters)} fields, as by the header line"
            raise kinds.RejectedError("not-cdx", f"{expected}, got {len(fields)}")
    return _write(dict(zip(form.letters, fields, strict=True))).encode()


def _write(fields: dict[str, str]) -> str:
    members = []
    for name, (letter, read) in _MEMBERS.items():
        value = fields.get(letter, _NULL)
        try:
            members.append(f'"{name}": {"null" if value == _NULL else read(value)}')
        except ValueError as error:
            got = f"expected {error}, got {value[:80]!r}"
            raise kinds.RejectedError("not-cdx", f"{name} (field {letter}): {got}") from None
    return f"{{{', '.join(members)}}}"
