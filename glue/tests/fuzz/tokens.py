"""What the inputs of the targets are made of."""

JSON = (
    b"{", b"}", b"[", b"]", b'"', b":", b",", b", ", b"null", b"true", b"NaN", b"-1", b"1e400", b"1.5", b"\\",
    b"\\u0000", b"\\ud800", b"\\udc00", b"\xff", b"\xc3\xbc", b"\xef\xbb\xbf", b" ", b"\n", b"\0", b"[" * 101,
    b"9" * 50, b"x" * 100, b'"file_id": ', b'"a": 1, "b": "2"', b'"_slowjobs": ',
    b'"_slowjobs": {"v": 1, "position": ["t", 0, 1], "key": "k"}', b'"ingest_type": "pdf"',
    b'"base_url": "http://a.b/"', b'"link_source": "doi"', b'"link_source_id": "1"',
)  # fmt: skip
DEAD = (
    *JSON, b'"v": 1', b'"v": 2', b'"replayed": 3', b'"request": {}', b'"request_base64": "AAA="', b'"lane": "l"',
    b'"position": ["t", 0, 1]', b'"at": "2026-01-01T00:00:00Z"', b'"from": "bridge"', b'"reason": "r"',
    b'"error": "e"',
)  # fmt: skip
RESULT = (
    *JSON, b'"status": "success"', b'"hit": true', b'"request": {"a": 1}', b'"terminal": {', b'"terminal_dt": ',
    b'"20260101000000"', b'"kind": "job"', b'"lane": "lane"', b'"finished": "2026-01-01T00:00:00Z"', b'"key": "[1]"',
)  # fmt: skip
CDX = (
    b" ", b"\t", b"-", b"\n", b"\r\n", b" CDX ", b"CDX", b"N b a m s k r M S V g", b"20260101000000", b"http://a.b/",
    b"sha1:", b"ZMSA5TNJUKKRYAIM5PRUJLL24DV7QYOO", b"a" * 40, b"application/pdf", b"200", b"123", b"9" * 30,
    b"w.warc.gz", b"\xff", b"\0", b"\xd9\xa1", b"x" * 100,
)  # fmt: skip
HTML = (
    b"<html>", b"<head>", b"<base href=", b"<meta name=citation_pdf_url content=", b"<a href=", b"</a>", b">", b'"',
    b"'", b"<meta http-equiv=refresh content='0; url=", b"<!--", b"-->", b"<![CDATA[",
    b"<?xml version='1.0' encoding='x'?>", b"<frameset>", b"&#0;", b"&#xD800;", b"http://[", b"//", b"x.pdf",
    b"/pdf/", b"javascript:", b"data:,", b"\0", b"\xff", b"\xfe\xff", b"<svg>", b"<script>", b"\n", b" ",
    b"http://a.b:99999/", b"<!DOCTYPE html [<!ENTITY a 'b'>]>", b"&a;",
)  # fmt: skip
WARC = (
    b"WARC/1.0\r\n", b"WARC/1.1\r\n", b"WARC-Type: response\r\n", b"WARC-Type: resource\r\n",
    b"WARC-Type: revisit\r\n", b"Content-Length: ", b"Content-Type: application/http; msgtype=response\r\n", b"\r\n",
    b"HTTP/1.1 200 OK\r\n", b"10", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n",
    b"Content-Encoding: br\r\n", b"-1", b"x" * 100, b"5\r\n", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    b"\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00", b"\0", b"\xff", b": ",
)  # fmt: skip
HTTP = (
    b"text/html", b"; charset=", b"utf-8", b'"', b"application/", b"%PDF-", b"http://", b"::ffff:", b"127.0.0.1",
    b"::1", b"64:ff9b::", b"%eth0", b"..", b"/", b"\\", b"\0", b"\xff", b"%2e%2e", b"[", b"]", b"@", b":80", b" ",
    b"\n", b"#", b"?",
)  # fmt: skip
