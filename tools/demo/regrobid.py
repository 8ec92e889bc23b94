"""Re-GROBID: WARCs of the same PDFs, and the CDX lines that say where in them each is."""

import base64
import hashlib
import io

import documents
from batches import Batch, Ends
from hosts import put
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

LANE = "regrobid-bulk"
#: where the web server takes them from.
FOLDER = "/srv/slowjobs-demo/warcs"
WARC = "DEMO-00000.warc.gz"
HEADER = " CDX N b a m s k r M S V g"


def batches(run: str) -> list[Batch]:
    """Write a WARC with all PDFs to the web server; return the CDX lines, two wrong ones and one again among them."""
    pdfs = {_digest(content): (path, content) for path, content in documents.contents(documents.paths("pdf")).items()}
    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=True)
    writer.write_record(writer.create_warcinfo_record(WARC, {"software": "the demo of slowjobs"}))
    lines = []
    for digest, (path, content) in pdfs.items():
        start = stream.tell()
        _write_record(writer, f"http://data1/{path}", content)
        lines.append(_line(f"http://data1/{path}", digest, stream.tell() - start, start, WARC))
    put("data1", f"{FOLDER}/{WARC}", stream.getvalue())
    # Another PDF than the line says, and a WARC that is not there.
    wrong = [
        _line("http://data1/other.pdf", _digest(f"{run} other".encode()), 0, start, WARC),
        _line("http://data1/absent.pdf", _digest(f"{run} absent".encode()), 1000, 0, "DEMO-00001.warc.gz"),
    ]
    expected = Ends({"success": len(pdfs), "sha1-mismatch": 1, "warc-error": 1})
    return [Batch(LANE, [HEADER, *lines, *wrong, lines[0]], expected, again=1)]


def _write_record(writer: WARCWriter, url: str, content: bytes) -> None:
    headers = StatusAndHeaders("200 OK", [("Content-Type", "application/pdf")], protocol="HTTP/1.1")
    writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(content), http_headers=headers))


def _digest(content: bytes) -> str:
    return base64.b32encode(hashlib.sha1(content, usedforsecurity=False).digest()).decode()


def _line(url: str, digest: str, size: int, start: int, warc: str) -> str:
    key = url.removeprefix("http://").replace("/", ")/", 1)
    return f"{key} 20260102030405 {url} application/pdf 200 {digest} - - {size or '-'} {start} {warc}"
