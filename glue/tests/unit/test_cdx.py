import base64
import contextlib
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slowjobs import cdx, kinds

# The specification's own example of the form with 11 fields.
SURT = "au,gov,financeminister)/"
DATETIME = "20150914222034"
URL = "http://www.financeminister.gov.au/"
DIGEST = "ZMSA5TNJUKKRYAIM5PRUJLL24DV7QYOO"
SHA1HEX = "cb240ecda9a2951c010cebe344ad7ae0ebf861ce"
WARC = "WEB-20150914222031256-00000-43190~heritrix.nla.gov.au~8443.warc.gz"
ELEVEN = f"{SURT} {DATETIME} {URL} text/html 200 {DIGEST} - - 83848 117273 {WARC}"
NINE = f"{SURT} {DATETIME} {URL} text/html 200 {DIGEST} - 117273 {WARC}"
REQUEST = {
    "url": URL,
    "datetime": DATETIME,
    "sha1hex": SHA1HEX,
    "mimetype": "text/html",
    "warc_path": WARC,
    "warc_csize": 83848,
    "warc_offset": 117273,
}


def read(line: str, header: str | None = None) -> dict[str, object]:
    legend = None if header is None else cdx.legend(header.encode())
    request: dict[str, object] = json.loads(cdx.request(line.encode(), legend))
    return request


def test_both_forms_are_told_apart_by_their_number_of_fields() -> None:
    assert read(ELEVEN) == REQUEST
    assert read(NINE) == {**REQUEST, "warc_csize": None}


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (" CDX N b a m s k r M S V g", ELEVEN),
        ("CDX N b a m s k r M S V g", ELEVEN),
        (" CDX g V S k m b a", f"{WARC} 117273 83848 {DIGEST} text/html {DATETIME} {URL}"),
        ("\tCDX\ta\tb\tm\tk\tS\tV\tg", "\t".join((URL, DATETIME, "text/html", DIGEST, "83848", "117273", WARC))),
    ],
)
def test_a_header_line_names_the_fields_in_any_order(header: str, line: str) -> None:
    assert read(line, header) == REQUEST


def test_what_a_header_does_not_name_and_what_is_a_dash_is_null() -> None:
    assert read(f"{URL} -", " CDX a b") == {**dict.fromkeys(REQUEST), "url": URL}


def test_a_capture_is_no_header() -> None:
    assert cdx.legend(ELEVEN.encode()) is None
    assert cdx.legend(b"cdx,example)/ 2015") is None


@pytest.mark.parametrize(
    "digest", [f"sha1:{DIGEST}", DIGEST.lower(), SHA1HEX, SHA1HEX.upper(), f"sha1:{SHA1HEX}", f"SHA1:{DIGEST}"]
)
def test_a_digest_is_taken_in_base_32_and_in_hex(digest: str) -> None:
    assert read(ELEVEN.replace(DIGEST, digest)) == REQUEST


@given(st.binary(min_size=20, max_size=20))
def test_base_32_is_read_as_everybody_reads_it(digest: bytes) -> None:
    line = ELEVEN.replace(DIGEST, base64.b32encode(digest).decode())
    assert read(line)["sha1hex"] == digest.hex()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (f"{ELEVEN} more", "expected 9 or 11 fields, or a header line, got 12 fields"),
        ("", "expected 9 or 11 fields"),
        (ELEVEN.replace(DATETIME, "2015-09-14"), r"datetime \(field b\): expected 14 digits, got '2015-09-14'"),
        (ELEVEN.replace(DATETIME, "٢" * 14), r"datetime \(field b\)"),
        (ELEVEN.replace(DIGEST, DIGEST[1:]), r"sha1hex \(field k\): expected a SHA-1"),
        (ELEVEN.replace(DIGEST, "1" * 32), r"sha1hex \(field k\): expected a SHA-1"),
        (ELEVEN.replace("83848", "-83848"), r"warc_csize \(field S\): expected an integer, got '-83848'"),
        (ELEVEN.replace("117273", "9" * 5000), r"warc_offset \(field V\)"),
        (ELEVEN.replace(URL, ""), r"url \(field a\): expected a text, or - for none, got ''"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(line: str, error: str) -> None:
    with pytest.raises(kinds.RejectedError, match=f"^not-cdx: .*{error}"):
        read(line)


def test_a_line_that_does_not_fit_its_header_is_refused() -> None:
    with pytest.raises(kinds.RejectedError, match="expected 9 fields, as by the header line, got 11"):
        read(ELEVEN, " CDX N b a m s k r V g")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b" CDX N b a", True),
        (ELEVEN.encode(), True),
        (NINE.encode(), True),
        (b'{"a": 1, "b": "2 3 4 5 6 7 8"}', False),
        (b"x", False),
    ],
)
def test_a_file_of_cdx_lines_is_recognised_by_its_first(line: bytes, expected: bool) -> None:
    assert cdx.is_cdx(line) == expected


@given(st.text(alphabet=string.printable) | st.text())
def test_any_line_is_read_or_refused(line: str) -> None:
    raw = line.encode()
    with contextlib.suppress(kinds.RejectedError):
        assert set(json.loads(cdx.request(raw, cdx.legend(raw)))) == set(REQUEST)
