"""Where a landing page leads, and what a body is by its bytes."""

from __future__ import annotations

import pytest

from slowjobs.handlers import landing, media, web

URL = "https://journal.example.org/article/7/"


def read(html: str | bytes, charset: str | None = None) -> landing.Page:
    return landing.read(html if isinstance(html, bytes) else html.encode(), URL, charset)


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<meta name="citation_pdf_url" content="/7.pdf">', "https://journal.example.org/7.pdf"),
        ('<META NAME="Citation_PDF_URL" CONTENT=" 7.pdf ">', URL + "7.pdf"),
        ('<meta property="citation_pdf_url" content="//cdn.example.org/7">', "https://cdn.example.org/7"),
        ('<meta name="bepress_citation_pdf_url" content="7">', URL + "7"),
        ('<meta name="eprints.document_url" content="7.pdf">', URL + "7.pdf"),
        ('<meta name="eprints.document_url" content="7.zip">', None),
        ('<base href="/b/"><meta name="citation_pdf_url" content="7">', "https://journal.example.org/b/7"),
        ('<meta name="citation_pdf_url" content="">', None),
        ('<meta name="citation_pdf_url" content="javascript:void(0)">', None),
        ('<meta name="citation_pdf_url" content="http://[broken">', None),
        ('<meta name="citation_pdf_url" content="file:///etc/passwd">', None),
    ],
)
def test_a_page_names_its_own_pdf(html: str, found: str | None) -> None:
    assert read(html).citation_url == found


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<a href="about.html">About</a><a href="7.pdf">Article</a>', "7.pdf"),
        ('<a href="download?id=7">Download PDF</a>', "download?id=7"),
        ('<a href="/pdf/7">Read</a>', "/pdf/7"),
        ('<a href="view/7" type="application/pdf">Read</a><a href="8.pdf">Other</a>', "view/7"),
        ('<link rel="alternate" type="application/pdf" href="7">', "7"),
        ('<a href="8.pdf">Other</a><iframe src="viewer/7.pdf"></iframe>', "viewer/7.pdf"),
        ('<object data="7.pdf"></object>', "7.pdf"),
        ('<a href="suppl_1.pdf">Supplementary PDF</a><a href="7.pdf">PDF</a>', "7.pdf"),
        ('<a href="author-guidelines.pdf">PDF</a><a href="get/7">Full text (PDF)</a>', "get/7"),
        ('<a href="1.pdf">PDF</a><a href="2.pdf">PDF</a>', "1.pdf"),
        ('<a href="mailto:pdf@example.org">PDF</a><a href="ftp://example.org/7.pdf">PDF</a>', None),
        ('<a href="pdfa.html">What PDFA is</a>', None),
        ("", None),
        ("<!-- <a href=7.pdf>PDF</a> -->", None),
    ],
)
def test_the_link_that_looks_most_like_the_pages_pdf_is_found(html: str, found: str | None) -> None:
    link = read(html).link_url
    assert link == (found and (f"https://journal.example.org{found}" if found.startswith("/") else URL + found))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("0;url=/7", "https://journal.example.org/7"),
        ("3; URL='/7'", "https://journal.example.org/7"),
        ("0.5, url=/7", "https://journal.example.org/7"),
        ("30;url=/7", None),
        ("99999999999999999999;url=/7", None),
        ("5", None),
    ],
)
def test_a_page_that_goes_elsewhere_at_once_is_a_redirect(content: str, found: str | None) -> None:
    assert read(f'<meta http-equiv="Refresh" content="{content}">').refresh_url == found


@pytest.mark.parametrize("charset", [None, "utf-8", "latin-1", "no-such-charset", "rot13", "x\0y"])
@pytest.mark.parametrize(
    "html",
    [
        b"",
        b"\0\xff\xfe<",
        b"<a href=7.pdf>\xff\xfe<table><td></a></p><a href='x",
        b"<div>" * 100_000 + b"<a href=7.pdf>PDF</a>",
        b'<meta charset="no-such-charset"><a href="7.pdf">PDF</a>',
        b"<a " + b"x=1 " * 100_000,
        b"plain words",
    ],
)
def test_a_broken_page_is_read_as_far_as_it_goes(html: bytes, charset: str | None) -> None:
    assert read(html, charset).link_url in (None, URL + "7.pdf")


def test_a_page_in_another_encoding_leads_where_it_says() -> None:
    html = '<a href="/\u043f.pdf">PDF</a>'
    for content, charset in (
        (html.encode("cp1251"), "cp1251"),
        (b"<meta charset=cp1251>" + html.encode("cp1251"), None),
    ):
        link = read(content, charset).link_url
        assert link is not None
        assert web.normal_url(link) == "https://journal.example.org/%D0%BF.pdf"


@pytest.mark.parametrize(
    ("head", "told", "mimetype"),
    [
        (b"%PDF-1.7 ...", "text/html", "application/pdf"),
        (b"\0" * 900 + b"%PDF-1.7", None, "application/pdf"),
        (b"\0" * 2000 + b"%PDF-1.7", "application/pdf", "application/octet-stream"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><title>x", "application/pdf", "text/html"),
        (b"<!-- x --><html>", None, "text/html"),
        (b"<p>fragment", "text/html; charset=x", "text/html"),
        (b'<?xml version="1.0"?><article/>', "text/html", "application/xml"),
        (b'<?xml version="1.0"?><article/>', "application/jats+xml", "application/jats+xml"),
        (b'<?xml version="1.0"?><html xmlns="...">', "application/xml", "application/xhtml+xml"),
        (b"PK", "Application/Zip", "application/zip"),
        (b"PK", "no type", "application/octet-stream"),
    ],
)
def test_bytes_say_what_a_body_is_and_its_server_only_where_they_do_not(
    head: bytes, told: str | None, mimetype: str
) -> None:
    assert media.mimetype(head, told) == mimetype


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        (" HTTP://Example.org#top ", "http://Example.org/"),
        ("http://example.org/a b?q=\u00fc|%20", "http://example.org/a%20b?q=%C3%BC%7C%20"),
        ("http://b\u00fccher.example/", "http://xn--bcher-kva.example/"),
        ("http://[broken/", "http://[broken/"),
        ("http://" + "x" * 70 + "\u00fc.example/", "http://" + "x" * 70 + "\u00fc.example/"),
    ],
)
def test_addresses_are_sent_in_ascii(url: str, sent: str) -> None:
    assert web.normal_url(url) == sent
