"""What a body is, by its bytes. What its server says counts only where bytes say nothing."""

from __future__ import annotations

import re

PDF = "application/pdf"
#: what a landing page is.
HTML = ("text/html", "application/xhtml+xml")

#: PDF readers accept other bytes before its mark.
_PDF_MARK_WITHIN_BYTES = 1024
_XML = re.compile(r"(?:application|text)/xml|.*\+xml")
_MIMETYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")
#: how pages begin, perhaps behind comments. All of it is bounded: no page makes this slow.
_HTML_START = re.compile(
    rb"(?:<!--[^>]{0,500}-->\s{0,100}){0,5}<(?:!doctype\s{1,20}html|html|head|body|title|meta|script)[\s>]"
)


def mimetype(head: bytes, content_type: str | None) -> str:
    """Return the type of a body with this start; "application/octet-stream" for what nobody knows."""
    if b"%PDF-" in head[:_PDF_MARK_WITHIN_BYTES]:
        return PDF
    start = head[:_PDF_MARK_WITHIN_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    told = (content_type or "").partition(";")[0].strip().lower()
    if start.startswith(b"<?xml"):
        if b"<html" in start:
            return "application/xhtml+xml"
        return told if is_xml(told) else "application/xml"
    if _HTML_START.match(start):
        return "text/html"
    if told == PDF or not _MIMETYPE.fullmatch(told):
        return "application/octet-stream"
    return told


def is_xml(name: str) -> bool:
    """Tell whether ``name`` is a type of XML that is no page."""
    return bool(_XML.fullmatch(name)) and name not in HTML


def charset(content_type: str | None) -> str | None:
    """Return the encoding that a Content-Type names, whether there is such a one or not."""
    found = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", content_type or "", re.IGNORECASE)
    return found[1] if found else None
