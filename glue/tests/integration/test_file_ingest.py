"""FileIngest against web servers that keep the rules of HTTP, and against those that break them."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import itertools
import ssl
import threading
import time
import urllib.parse
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import certifi
import pytest
import trustme

from slowjobs import kinds, outcomes, settings
from slowjobs.handlers import addresses
from slowjobs.handlers.file_ingest import FileIngest
from support import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

PDF = b"%PDF-1.5\n" + bytes(range(256)) * 8
KIND = settings.IngestKind(type="ingest")


@pytest.fixture
def site() -> Iterator[web.Site]:
    with web.serve() as site:
        site.routes["/7.pdf"] = web.answer(body=PDF, content_type="application/pdf")
        yield site


def ingest(url: str, ingest_type: str = "pdf", **options: Any) -> dict[str, Any]:
    """Return the result, which the tables of its kind can hold."""
    request = {
        "base_url": url,
        "ingest_type": ingest_type,
        "link_source": "doi",
        "link_source_id": "10.123/7",
        "more": {"\u00fc": 1},
    }
    options = {"allow_private_addresses": True, **options}
    result = FileIngest(**options).process(request, key="[]")
    outcome = kinds.outcome(result, KIND)
    assert result["request"] == request
    assert outcome.hit == (outcome.status == "success")
    return result


def status(url: str, ingest_type: str = "pdf", **options: Any) -> str:
    return str(ingest(url, ingest_type, **options)["status"])


def test_a_pdf_is_told_of_in_full(site: web.Site) -> None:
    site.routes["/go"] = web.redirect("/7.pdf")
    result = ingest(site.url("/go"))
    assert result["hops"] == [site.url("/go"), site.url("/7.pdf")]
    sha1hex = hashlib.sha1(PDF, usedforsecurity=False).hexdigest()
    terminal = result["terminal"]
    at = dt.datetime.strptime(terminal.pop("terminal_dt"), "%Y%m%d%H%M%S").replace(tzinfo=dt.UTC)
    assert abs(dt.datetime.now(dt.UTC) - at) < dt.timedelta(seconds=60)
    assert terminal == {
        "terminal_url": site.url("/7.pdf"),
        "terminal_status_code": 200,
        "terminal_sha1hex": sha1hex,
    }
    assert result["file_meta"] == {
        "size_bytes": len(PDF),
        "md5hex": hashlib.md5(PDF, usedforsecurity=False).hexdigest(),
        "sha1hex": sha1hex,
        "sha256hex": hashlib.sha256(PDF).hexdigest(),
        "mimetype": "application/pdf",
    }


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (web.answer(body=PDF, content_type="text/html"), "success"),
        (web.answer(body=gzip.compress(PDF), content_encoding="gzip"), "success"),
        (web.answer(body=b"\x89PNG", content_type="application/pdf"), "wrong-mimetype"),
        (web.answer(body=b""), "empty-blob"),
        (web.page(""), "empty-blob"),
        (web.answer(404, "gone"), "terminal-bad-status"),
        (web.answer(403), "terminal-bad-status"),
        (web.answer(302), "terminal-bad-status"),  # to nowhere
        (web.answer(500, "broken"), "remote-server-error"),
        (web.answer(502), "remote-server-error"),
        (web.page("<a href='/about'>About</a>"), "no-pdf-link"),
        (web.page("<meta name=citation_pdf_url content=/7.pdf><a href=/other.pdf>PDF</a>"), "success"),
        (web.page("<a href=/7.pdf>Download PDF</a>"), "success"),
        (web.page("<meta http-equiv=refresh content='0;url=/7.pdf'>"), "success"),
        (web.page("<meta name=citation_pdf_url content=/landing>"), "redirect-loop"),
        (web.page("<meta http-equiv=refresh content='0;url=/landing'>"), "redirect-loop"),
        (web.page("<meta name=citation_pdf_url content=/gone>"), "terminal-bad-status"),
        (web.page("<meta name=citation_pdf_url content=/page>"), "wrong-mimetype"),
        (web.redirect("/landing"), "redirect-loop"),
        (web.redirect("ftp://example.org/7.pdf"), "unsupported-scheme"),
        (web.redirect("http://[broken/"), "invalid-url"),
        (web.redirect("//127.0.0.1:1/"), "connect-error"),
        (web.redirect("http://no-such-host.invalid/"), "host-not-found"),
    ],
)
def test_what_became_of_a_request_is_its_status(site: web.Site, route: bytes, expected: str) -> None:
    site.routes |= {"/landing": route, "/page": web.page("<a href=/7.pdf>PDF</a>")}
    assert status(site.url("/landing")) == expected


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/7.pdf", "file:///etc/passwd", "gopher://127.0.0.1/"])
def test_nothing_but_http_is_fetched(url: str) -> None:
    assert status(url) == "unsupported-scheme"


@pytest.mark.parametrize("url", ["http://[broken/", "http://exa mple.org/", "http://127.0.0.1:123456/"])
def test_what_is_no_address_is_said_to_be_none(url: str) -> None:
    assert status(url) == "invalid-url"


@pytest.mark.parametrize(
    ("ingest_type", "route", "expected"),
    [
        ("html", web.page("<p>text"), "success"),
        ("html", web.answer(body=PDF), "wrong-mimetype"),
        ("xml", web.answer(body="<?xml version='1.0'?><article/>"), "success"),
        ("xml", web.page("<p>text"), "wrong-mimetype"),
        ("dataset", web.answer(body=b"\0"), "success"),
        ("src", web.page("<p>text"), "success"),
        ("component", web.answer(body=b""), "empty-blob"),
        ("file", web.answer(404), "terminal-bad-status"),
    ],
)
def test_other_types_of_requests_are_met_by_the_first_answer(
    site: web.Site, ingest_type: str, route: bytes, expected: str
) -> None:
    site.routes["/it"] = route
    assert status(site.url("/it"), ingest_type) == expected


def test_redirects_and_the_landing_pages_link_are_hops_of_one_count(site: web.Site) -> None:
    site.routes |= {f"/hop/{left}": web.redirect(f"/hop/{left - 1}") for left in range(1, 10)}
    site.routes["/hop/0"] = web.answer(body=PDF)
    assert status(site.url("/hop/8")) == "success"
    result = ingest(site.url("/hop/9"))
    assert result["status"] == "max-hops-exceeded"
    assert result["hops"] == [site.url(f"/hop/{left}") for left in range(9, 0, -1)]
    assert result["terminal"]["terminal_status_code"] == 302

    site.routes["/hop/0"] = web.page("<meta name=citation_pdf_url content=/7.pdf>")
    assert status(site.url("/hop/7")) == "success"
    assert status(site.url("/hop/8")) == "max-hops-exceeded"


def test_a_redirect_to_the_same_place_with_a_cookie_is_no_loop(site: web.Site) -> None:
    def wall(request: web.Request, write: Callable[[bytes], None]) -> None:
        came_with = request.headers.get("cookie") == "seen=1"
        write(web.answer(body=PDF) if came_with else web.redirect("/wall", set_cookie="seen=1"))

    site.routes["/wall"] = wall
    for _ in range(2):  # cookies are one request's alone
        site.requests.clear()
        assert status(site.url("/wall")) == "success"
        assert site.paths() == ["/wall", "/wall"]


def test_redirects_without_an_end_come_to_one(site: web.Site) -> None:
    numbers = itertools.count()

    def onwards(_request: web.Request, write: Callable[[bytes], None]) -> None:
        number = next(numbers)
        site.routes[f"/{number}"] = onwards
        write(web.redirect(f"/{number}", set_cookie=f"n={number}"))

    site.routes["/start"] = onwards
    assert status(site.url("/start")) == "max-hops-exceeded"
    assert len(site.requests) == 9


@pytest.mark.parametrize(
    ("status_code", "headers", "delay_seconds"),
    [
        (503, {"retry_after": "7"}, 7),
        (429, {"retry_after": "7"}, 7),
        (429, {}, 60),
        (503, {"retry_after": "soon"}, 60),
        (503, {"retry_after": "99999999999"}, 600),
        (503, {"retry_after": format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(days=1), usegmt=True)}, 600),
        (429, {"retry_after": format_datetime(dt.datetime(2001, 1, 1, tzinfo=dt.UTC), usegmt=True)}, 60),
    ],
)
def test_a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_asks(
    site: web.Site, status_code: int, headers: dict[str, str], delay_seconds: float
) -> None:
    site.routes["/full"] = web.answer(status_code, **headers)
    with pytest.raises(outcomes.Busy) as raised:
        ingest(site.url("/full"))
    assert raised.value.delay == delay_seconds
    assert str(status_code) in raised.value.reason


def test_a_date_in_retry_after_is_waited_for(site: web.Site) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=100)
    site.routes["/full"] = web.answer(503, retry_after=format_datetime(later, usegmt=True))
    with pytest.raises(outcomes.Busy) as raised:
        ingest(site.url("/full"))
    assert raised.value.delay is not None
    assert 90 <= raised.value.delay <= 101


# Servers that break the rules


@pytest.mark.parametrize(
    "answered",
    [
        b"",
        b"\0\1\2 no HTTP\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + PDF,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + PDF,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + PDF,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + PDF[:16],
        web.answer(body=b"no gzip", content_encoding="gzip"),
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_whole_is_a_bad_one(site: web.Site, answered: bytes) -> None:
    site.routes["/broken"] = answered
    result = ingest(site.url("/broken"))
    assert result["status"] == "bad-response"
    assert result["error_message"]
    assert "file_meta" not in result


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b""])
def test_a_server_that_drips_does_not_outlast_the_time_limit(site: web.Site, head: bytes) -> None:
    def drip(_request: web.Request, write: Callable[[bytes], None]) -> None:
        write(head)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            write(b"x")
            time.sleep(0.01)

    site.routes["/drip"] = drip
    began = time.monotonic()
    assert status(site.url("/drip"), total_seconds=0.5) in ("timeout", "bad-response")
    assert time.monotonic() - began < 5


def test_the_time_limit_is_for_all_hops_together(site: web.Site) -> None:
    def slow(request: web.Request, write: Callable[[bytes], None]) -> None:
        time.sleep(0.3)
        write(web.redirect(f"{request.path}x"))
        site.routes[f"{request.path}x"] = slow

    site.routes["/"] = slow
    began = time.monotonic()
    assert status(site.url("/"), total_seconds=0.7) == "timeout"
    assert time.monotonic() - began < 5


def test_a_server_that_falls_silent_is_given_up(site: web.Site) -> None:
    done = threading.Event()

    def fall_silent(_request: web.Request, write: Callable[[bytes], None]) -> None:
        write(b"HTTP/1.1 200 OK\r\n\r\n%PDF-")
        done.wait(30)

    site.routes["/silent"] = fall_silent
    result = ingest(site.url("/silent"), silence_seconds=1)
    done.set()
    assert result["status"] == "timeout"
    assert result["terminal"]["terminal_status_code"] == 200


def test_a_body_without_an_end_is_stopped_at_the_limit(site: web.Site) -> None:
    sent = 0

    def pour(_request: web.Request, write: Callable[[bytes], None]) -> None:
        nonlocal sent
        write(b"HTTP/1.1 200 OK\r\n\r\n%PDF-")
        while sent < 500_000_000:
            write(bytes(100_000))
            sent += 100_000

    site.routes["/endless"] = pour
    result = ingest(site.url("/endless"), max_body_bytes=1_000_000)
    assert result["status"] == "body-too-large"
    assert result["terminal"]["terminal_status_code"] == 200
    assert sent < 50_000_000


@pytest.mark.parametrize("length", [{}, {"content_length": 10**12}])
def test_what_unpacks_to_too_much_is_too_large(site: web.Site, length: dict[str, int]) -> None:
    bomb = gzip.compress(b"%PDF-" + bytes(50_000_000))
    site.routes["/bomb"] = web.answer(body=bomb, content_encoding="gzip", **length)
    assert status(site.url("/bomb"), max_body_bytes=1_000_000) == "body-too-large"


# Inner networks


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "017700000001", "0", "[::1]", "[::ffff:127.0.0.1]", "127.1"],
)
def test_this_host_is_not_asked_however_it_is_spelled(site: web.Site, host: str) -> None:
    assert status(site.url("/7.pdf", host), allow_private_addresses=False) == "blocked-address"
    assert not site.requests


@pytest.mark.parametrize("lead", [web.redirect, lambda url: web.page(f"<meta name=citation_pdf_url content='{url}'>")])
def test_a_public_server_cannot_send_us_to_an_inner_one(
    site: web.Site, monkeypatch: pytest.MonkeyPatch, lead: Callable[[str], bytes]
) -> None:
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    site.routes["/go"] = lead(site.url("/7.pdf", "127.0.0.2"))
    assert status(site.url("/go"), allow_private_addresses=False) == "blocked-address"
    assert site.paths() == ["/go"]


def test_the_address_is_looked_at_when_connecting_and_a_name_that_changes_gains_nothing(
    site: web.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "is_public", lambda _address: not site.requests)
    site.routes["/go"] = web.redirect("/7.pdf")  # each answer ends its connection
    assert status(site.url("/go", "localhost"), allow_private_addresses=False) == "blocked-address"
    assert site.paths() == ["/go"]


def test_no_proxy_of_the_environment_stands_between(site: web.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    assert status(site.url("/7.pdf")) == "success"


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with web.serve(context) as site:
        site.routes["/7.pdf"] = web.answer(body=PDF)
        assert status(site.url("/7.pdf")) == "connect-error"
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setattr(certifi, "where", lambda: str(tmp_path / "authority.pem"))
        assert status(site.url("/7.pdf")) == "success"
        assert status(site.url("/7.pdf", "localhost")) == "connect-error"


@pytest.mark.parametrize("url", ["http://ex\u00e4" + "a" * 70 + ".com/", "http://[\u00e4/", "http://\u00e4..com/"])
def test_an_address_whose_host_is_no_name_is_told_as_such(url: str) -> None:
    assert status(url) == "invalid-url"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_redirect_gets_back_the_bytes_that_the_server_sent(site: web.Site, encoding: str) -> None:
    sent = "caf\u00e9.pdf".encode(encoding)
    escaped = "/" + urllib.parse.quote(sent)
    site.routes[escaped] = site.routes["/7.pdf"]
    site.routes["/go"] = web.redirect(site.url("/") + sent.decode("latin-1"))
    assert ingest(site.url("/go"))["hops"][-1] == site.url(escaped)
