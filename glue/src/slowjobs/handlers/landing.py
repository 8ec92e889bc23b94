"""What a landing page says of its PDF."""

from __future__ import annotations

import codecs
import re
import urllib.parse
from dataclasses import dataclass

from lxml import etree

#: Highwire's name, which Google Scholar asks for, and those of bepress and EPrints; the first that is there counts.
_CITATION_NAMES = ("citation_pdf_url", "bepress_citation_pdf_url", "eprints.document_url")
#: what embeds a document, and the attribute that names it.
_EMBEDDING = {"iframe": "src", "embed": "src", "object": "data"}
#: a page that goes elsewhere later than that is read by people.
_MAX_REFRESH_SECONDS = 10
#: links to what comes with an article, is about it, or is no article at all.
_BESIDE = re.compile(
    r"suppl|appendix|cover|poster|slides|flyer|brochure|guideline|instruction|template|licen[sc]e|terms|policy|help"
)
_REFRESH = re.compile(r"\s*(\d+)(?:\.\d*)?\s*[;,]\s*(?:url\s*=\s*)?[\"']?([^\"']+)", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """Where a page leads; absolute addresses, None for what it does not say.

    ``citation_url``: of its own PDF, for sure. ``link_url``: of what most looks like it. ``refresh_url``: elsewhere.
    """

    citation_url: str | None = None
    link_url: str | None = None
    refresh_url: str | None = None


def read(content: bytes, url: str, charset: str | None = None) -> Page:
    """Read a page that came from ``url``, however broken. ``charset``: as its server said, None or nonsense, too."""
    root = _parse(content, charset)
    if root is None:
        return Page()
    base = _base(root, url)
    links = sorted(_links(root, base), key=lambda link: -link[0])  # the first of the best
    return Page(_citation(root, base), links[0][1] if links else None, _refresh(root, base))


def _parse(content: bytes, charset: str | None) -> etree._Element | None:
    try:
        codecs.lookup(charset or "")
        parser = etree.HTMLParser(encoding=charset)
    except (LookupError, ValueError):  # then the page itself says, or libxml2 guesses
        parser = etree.HTMLParser()
    try:
        return etree.fromstring(content, parser)
    except etree.LxmlError:
        return None


def _base(root: etree._Element, url: str) -> str:
    for element in root.iter("base"):
        return _absolute(url, element.get("href")) or url
    return url


def _absolute(base: str, reference: str | None) -> str | None:
    """Return a link's target; None for one that HTTP does not lead to."""
    if not reference or not reference.strip():
        return None
    try:
        found = urllib.parse.urljoin(base, reference.strip())
        parts = urllib.parse.urlsplit(found)
    except ValueError:
        return None
    return found if parts.scheme in ("http", "https") and parts.netloc else None


def _citation(root: etree._Element, base: str) -> str | None:
    metas = [(meta.get("name") or meta.get("property") or "", meta.get("content")) for meta in root.iter("meta")]
    for wanted in _CITATION_NAMES:
        for name, content in metas:
            found = _absolute(base, content) if name.lower() == wanted else None
            if found and (wanted != "eprints.document_url" or _names_pdf(found)):
                return found
    return None


def _refresh(root: etree._Element, base: str) -> str | None:
    for meta in root.iter("meta"):
        if (meta.get("http-equiv") or "").lower() == "refresh":
            found = _REFRESH.match(meta.get("content") or "")
            if found and len(found[1]) < 4 and int(found[1]) <= _MAX_REFRESH_SECONDS:  # noqa: PLR2004 - digits
                return _absolute(base, found[2])
    return None


def _links(root: etree._Element, base: str) -> list[tuple[int, str]]:
    """Return (how much it looks like the page's PDF, address) of all links that look so at all."""
    found = []
    for element in root.iter("a", "link", *_EMBEDDING):
        url = _absolute(base, element.get(_EMBEDDING.get(str(element.tag), "href")))
        if url and (points := _points(element, url)):
            found.append((points, url))
    return found


def _points(element: etree._Element, url: str) -> int:
    """Weigh signs that people recognise a download by."""
    text = " ".join([*map(str, element.itertext()), element.get("title") or "", element.get("class") or ""]).lower()[
        :500
    ]
    typed = (element.get("type") or "").lower().startswith("application/pdf")
    worded = bool(re.search(r"\bpdf\b", text))
    if not (typed or worded or _names_pdf(url)):
        return 0
    points = 4 * typed + 3 * _names_pdf(url) + 2 * worded
    points += 2 * (element.tag in _EMBEDDING)  # the page shows it
    points += "download" in text or "full text" in text
    return max(1, points - 6 * bool(_BESIDE.search(f"{url.rpartition('/')[2].lower()} {text}")))


def _names_pdf(url: str) -> bool:
    path = urllib.parse.urlsplit(url).path.lower()
    return path.endswith((".pdf", "/pdf")) or "/pdf/" in path
