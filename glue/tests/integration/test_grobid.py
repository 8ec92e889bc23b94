"""The handler Grobid: PDFs of real WARCs, to a server that answers as GROBID's documentation says."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from slowjobs import outcomes
from slowjobs.handlers.grobid import Grobid
from support import grobid, web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

URL = "http://example.org/7.pdf"
PDF = b"%PDF-1.5\n" + bytes(range(256)) * 300
#: members of a result that are there whatever became of it.
ALWAYS = {"sha1hex", "hit", "status"}


def sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def server() -> Iterator[grobid.Grobid]:
    with grobid.serve() as server:
        yield server


@pytest.fixture
def site() -> Iterator[web.Site]:
    with web.serve() as site:
        yield site


def write_warc(
    path: Path, *payloads: bytes, compressed: bool = True, kind: str = "response", **headers: str
) -> list[dict[str, Any]]:
    """Write a WARC file with a record for each payload; return their CDX lines."""
    path.parent.mkdir(exist_ok=True)
    lines = []
    with path.open("wb") as stream:
        writer = WARCWriter(stream, gzip=compressed)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "tests"}))
        for payload in payloads:
            start = stream.tell()
            fields = [("Content-Type", "application/pdf"), *headers.items()]
            http = StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1") if kind != "metadata" else None
            record = writer.create_warc_record(URL, kind, payload=io.BytesIO(payload), http_headers=http)
            writer.write_record(record)
            record.raw_stream.close()  # a file of the writer's by now
            lines.append(
                {
                    "url": URL,
                    "datetime": "20260102030405",
                    "sha1hex": sha1(payload),
                    "mimetype": "application/pdf",
                    "warc_path": f"{path.parent.name}/{path.name}",
                    "warc_csize": stream.tell() - start,
                    "warc_offset": start,
                }
            )
    return lines


def ranges(path: Path) -> web.Route:
    """Return a route that serves the parts of a file that Range asks for."""

    def route(request: web.Request, write: Callable[[bytes], None]) -> None:
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        write(web.answer(206, path.read_bytes()[int(first) : int(last) + 1 if last else None]))

    return route


def test_a_pdf_of_a_warc_becomes_tei(server: grobid.Grobid, tmp_path: Path) -> None:
    first, second = write_warc(tmp_path / "item" / "a.warc.gz", PDF[:-1], PDF)
    handler = Grobid(server=server.url, warc_prefix=str(tmp_path))
    assert handler.process(second, key=second["sha1hex"]) == {
        "sha1hex": second["sha1hex"],
        "hit": True,
        "status": "success",
        "status_code": 200,
        "grobid_version": "0.9.0",
        "tei_xml": grobid.TEI,
    }
    assert server.parameters == {
        "consolidateHeader": ["0"],
        "consolidateCitations": ["0"],
        "includeRawCitations": ["1"],
        "includeRawAffiliations": ["1"],
        "teiCoordinates": ["ref", "figure", "persName", "formula", "biblStruct"],
    }
    handler.process(first)
    assert server.pdfs == [PDF, PDF[:-1]]


def test_parameters_are_the_pools(server: grobid.Grobid, tmp_path: Path) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    parameters: dict[str, Any] = {"consolidateHeader": "2", "teiCoordinates": ["s"], "segmentSentences": "1"}
    Grobid(server=server.url, warc_prefix=str(tmp_path), parameters=parameters).process(line)
    assert server.parameters["consolidateHeader"] == ["2"]
    assert server.parameters["teiCoordinates"] == ["s"]
    assert server.parameters["segmentSentences"] == ["1"]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_warcs_are_read_here_and_in_ranges_over_http(
    server: grobid.Grobid, site: web.Site, tmp_path: Path, *, compressed: bool, sized: bool
) -> None:
    lines = write_warc(tmp_path / "item" / "a #1.warc", PDF, PDF[:-1], compressed=compressed)
    site.routes["/item/a%20%231.warc"] = ranges(tmp_path / "item" / "a #1.warc")
    for prefix in (str(tmp_path), site.url("/")):
        handler = Grobid(server=server.url, warc_prefix=prefix)
        for line in lines:
            assert handler.process(line if sized else {**line, "warc_csize": None})["status"] == "success"
    assert server.pdfs == [PDF, PDF[:-1]] * 2


def test_encodings_of_http_are_taken_off(server: grobid.Grobid, tmp_path: Path) -> None:
    handler = Grobid(server=server.url, warc_prefix=str(tmp_path))
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (PDF[:100], PDF[100:], b""))
    for content, header in (
        (chunked, {"Transfer-Encoding": "chunked"}),
        (gzip.compress(PDF), {"Content-Encoding": "gzip"}),
    ):
        [line] = write_warc(tmp_path / "item" / "a.warc.gz", content, **header)
        assert handler.process({**line, "sha1hex": sha1(PDF)})["status"] == "success"


def test_a_pdf_comes_from_a_wayback_replay_where_there_is_no_warc(
    server: grobid.Grobid, site: web.Site, tmp_path: Path
) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    del line["warc_path"], line["warc_offset"], line["warc_csize"]
    site.routes[f"/web/20260102030405id_/{URL}"] = web.answer(body=PDF)
    for prefix in (None, str(tmp_path)):
        handler = Grobid(server=server.url, wayback_url=site.url("/web/"), warc_prefix=prefix)
        assert handler.process(line)["status"] == "success"
    assert handler.process({**line, "datetime": "20260102030406"})["status"] == "wayback-error"
    site.routes[f"/web/20260102030405id_/{URL}"] = web.redirect(f"/web/20250102030405id_/{URL}")
    assert handler.process(line)["status"] == "wayback-error"
    site.routes[f"/web/20260102030405id_/{URL}"] = web.answer(body=b"another page")
    assert handler.process(line)["status"] == "sha1-mismatch"


def test_a_line_that_leads_to_no_pdf_is_told_of(server: grobid.Grobid, tmp_path: Path) -> None:
    [line, empty] = write_warc(tmp_path / "item" / "a.warc.gz", PDF, b"")
    [metadata] = write_warc(tmp_path / "item" / "m.warc.gz", b"about", kind="metadata")
    content = (tmp_path / "item" / "a.warc.gz").read_bytes()
    (tmp_path / "item" / "cut.warc.gz").write_bytes(content[: line["warc_offset"] + line["warc_csize"] // 2])
    (tmp_path / "item" / "no.warc.gz").write_bytes(b"no WARC at all\n" * 100)
    handler = Grobid(server=server.url, warc_prefix=str(tmp_path))
    for one, expected in (
        (empty, "empty-blob"),
        (metadata, "warc-error"),
        ({**line, "sha1hex": sha1(b"other")}, "sha1-mismatch"),
        ({**line, "warc_path": "item/cut.warc.gz"}, "sha1-mismatch"),
        ({**line, "warc_path": "item/no.warc.gz"}, "warc-error"),
        ({**line, "warc_path": "item/absent.warc.gz"}, "warc-error"),
        ({**line, "warc_path": "item"}, "warc-error"),
        ({**line, "warc_offset": line["warc_offset"] + 1}, "warc-error"),
        ({**line, "warc_offset": 10**12}, "warc-error"),
        ({**line, "warc_offset": 10**30}, "warc-error"),
        ({**line, "warc_path": "item/" + "a" * 300}, "warc-error"),
    ):
        result = handler.process(one)
        assert result["status"] == expected, one
        assert result.keys() == ALWAYS | {"error_message"}
        assert not result["hit"]
    assert not server.pdfs


def test_a_pdf_over_the_limit_is_too_large(server: grobid.Grobid, site: web.Site, tmp_path: Path) -> None:
    [line, bomb] = write_warc(tmp_path / "item" / "a.warc.gz", PDF, bytes(100_000_000))
    limit = {"server": server.url, "max_pdf_bytes": len(PDF) - 1}
    handler = Grobid(warc_prefix=str(tmp_path), **limit)
    assert handler.process(line)["status"] == "blob-too-large"
    assert handler.process(bomb)["status"] == "blob-too-large"
    site.routes[f"/20260102030405id_/{URL}"] = web.answer(body=PDF)
    assert Grobid(wayback_url=site.url(""), **limit).process(line)["status"] == "blob-too-large"
    assert Grobid.__init__.__kwdefaults__["max_pdf_bytes"] == 256 * 2**20


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "item/../../secret", "..", "", ".", "a\0b", 7, None])
def test_no_request_leads_out_of_the_folder_of_warcs(server: grobid.Grobid, tmp_path: Path, path: object) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    (tmp_path / "secret").write_bytes((tmp_path / "item" / "a.warc.gz").read_bytes())
    for prefix in (str(tmp_path / "item"), "http://127.0.0.1:1"):
        with pytest.raises(outcomes.Reject, match="warc_path"):
            Grobid(server=server.url, warc_prefix=prefix).process({**line, "warc_path": path})


@pytest.mark.parametrize(
    ("name", "value"), [("sha1hex", None), ("warc_offset", -1), ("warc_offset", "7"), ("warc_csize", True)]
)
def test_a_line_without_what_is_needed_is_rejected(
    server: grobid.Grobid, tmp_path: Path, name: str, value: object
) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    with pytest.raises(outcomes.Reject, match=name):
        Grobid(server=server.url, warc_prefix=str(tmp_path)).process({**line, name: value})


@pytest.mark.parametrize(
    ("mimetype", "wanted"),
    [
        ("application/pdf", True),
        ("application/x-pdf; x", True),
        ("unk", True),
        ("application/octet-stream", True),
        (None, True),
        ("text/html", False),
        ("image/png", False),
        ("warc/revisit", False),
    ],
)
def test_lines_of_other_files_are_skipped(mimetype: str | None, *, wanted: bool) -> None:
    handler = Grobid(server="http://127.0.0.1:1", warc_prefix="/nowhere")
    assert handler.want({"mimetype": mimetype}) == wanted


# What GROBID answers


@pytest.mark.parametrize(
    ("answered", "members"),
    [
        (web.answer(204), {"status": "no-content", "status_code": 204}),
        (web.answer(400, "missing input"), {"status": "grobid-error", "status_code": 400}),
        (web.answer(500, "[BAD_INPUT_DATA] no PDF"), {"status": "grobid-error", "status_code": 500}),
        (web.answer(200, "<TEI>"), {"status": "bad-grobid-xml", "status_code": 200}),
        (web.answer(200, b"<TEI>\0\xff</TEI>"), {"status": "bad-grobid-xml", "status_code": 200}),
    ],
)
def test_what_grobid_cannot_do_is_the_result(
    server: grobid.Grobid, tmp_path: Path, answered: bytes, members: dict[str, Any]
) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    server.answered = answered
    result = Grobid(server=server.url, warc_prefix=str(tmp_path)).process(line)
    assert not result["hit"]
    assert "tei_xml" not in result
    assert result.items() >= members.items()
    if members["status"] == "grobid-error":
        assert result["error_message"] == answered.rpartition(b"\r\n")[2].decode()


@pytest.mark.parametrize(("text", "version"), [("0.7.3", "0.7.3"), ('{"version": "0.8.1"}', "0.8.1"), ("7", "7")])
def test_the_version_is_read_of_old_and_new_servers(
    server: grobid.Grobid, tmp_path: Path, text: str, version: str
) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    server.version = web.answer(body=text)
    assert Grobid(server=server.url, warc_prefix=str(tmp_path)).process(line)["grobid_version"] == version


def test_a_server_whose_threads_are_all_in_use_is_waited_for(
    server: grobid.Grobid, site: web.Site, tmp_path: Path
) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    handler = Grobid(server=server.url, warc_prefix=str(tmp_path))
    server.answered = web.answer(503)
    with pytest.raises(outcomes.Busy) as raised:
        handler.process(line)
    assert raised.value.delay == 10
    site.routes["/item/a.warc.gz"] = web.answer(503)
    with pytest.raises(outcomes.Busy):
        Grobid(server=server.url, warc_prefix=site.url("")).process(line)


def test_a_lost_connection_and_a_time_out_are_tried_again(server: grobid.Grobid, tmp_path: Path) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    done = threading.Event()

    def hang(_request: web.Request, _write: Callable[[bytes], None]) -> None:
        done.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    folder = str(tmp_path)
    retried: list[tuple[web.Route, Grobid]] = [
        (b"", Grobid(server=server.url, warc_prefix=folder)),
        (hang, Grobid(server=server.url, warc_prefix=folder, timeout_seconds=0.3)),
        (b"", Grobid(server=address, warc_prefix=folder)),
        (b"", Grobid(server=server.url, warc_prefix=address)),
        (b"", Grobid(server=server.url, wayback_url=address)),
    ]
    for answered, handler in retried:
        server.answered = answered
        with pytest.raises(outcomes.Retry) as raised:
            handler.process(line)
        assert raised.value.reason
    done.set()


def test_an_archive_in_trouble_is_asked_again(server: grobid.Grobid, site: web.Site, tmp_path: Path) -> None:
    [line] = write_warc(tmp_path / "item" / "a.warc.gz", PDF)
    cut = (tmp_path / "item" / "a.warc.gz").read_bytes()[line["warc_offset"] :][:50]
    for route in (web.answer(500), b"HTTP/1.1 206 -\r\nContent-Length: 100000\r\n\r\n" + cut):
        site.routes["/item/a.warc.gz"] = route
        with pytest.raises(outcomes.Retry):
            Grobid(server=server.url, warc_prefix=site.url("")).process(line)


def test_a_pool_says_where_pdfs_come_from() -> None:
    with pytest.raises(ValueError, match="warc_prefix or wayback_url"):
        Grobid(server="http://127.0.0.1:1")
