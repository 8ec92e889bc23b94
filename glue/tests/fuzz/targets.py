"""What reads bytes that others wrote: each target takes any bytes, and says in a few words what became of them.

What is not expected of it is an error: an exception of another type, or a promise that does not hold.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fuzz import tokens
from slowjobs import cdx, documents, kinds, lines, outcomes, settings
from slowjobs.handlers import addresses, grobid, landing, media, warc, web
from slowjobs.intake import body
from slowjobs.operations import enqueue, find
from slowjobs.persister import tables

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = settings.JobKind(type="job", key=("file_id",))
PAIR = settings.JobKind(type="job", key=("a", "b"))
INGEST = settings.IngestKind(type="ingest")
KINDS: tuple[settings.Kind, ...] = (JOB, PAIR, INGEST)
POSITION = documents.longest_position("topic")
#: bytes; small, so that much is too large.
MAX_BYTES = 300
REFUSALS = (kinds.RejectedError, documents.UnknownVersionError)

CONFIG = settings.CliSettings.model_validate(
    {
        "service": "cli",
        "host": "control1",
        "kafka": {"properties": {"bootstrap.servers": "127.0.0.1:9092"}},
        "postgresql": {"dsn": "host=127.0.0.1"},
        "nsqd": {
            "active": "a",
            "hosts": {"a": {"tcp_address": "127.0.0.1:4150", "http_address": "127.0.0.1:4151"}},
            "max_message_bytes": MAX_BYTES,
        },
        "kinds": {"job": {"type": "job", "key": ["sha1hex"]}},
        "pools": {"pool": {"result_topic": "results"}},
        "lanes": {"lane": {"kind": "job", "pool": "pool"}},
    }
)


@dataclass(frozen=True)
class Target:
    """One reader. ``tokens``: what its input is made of; ``examine`` says what became of an input."""

    tokens: tuple[bytes, ...]
    examine: Callable[[bytes], str]


def _request(raw: bytes) -> str:
    said = []
    for kind in KINDS:
        try:
            request, message = documents.write_assignment(raw, POSITION, kind, MAX_BYTES)
        except kinds.RejectedError as error:
            said.append(error.reason)
            _expect_refusal(raw, kind)
            continue
        back = documents.read_assignment(message, kind)
        assert (back.position, back.request.key) == (POSITION, request.key)
        assert back.request.result_key == request.result_key
        assert {**request.members, documents.MEMBER: None} == {**back.request.members, documents.MEMBER: None}
        assert len(message) <= MAX_BYTES
        assert documents.check_request(raw, POSITION, kind, MAX_BYTES) == request
        json.loads(request.key)
        said.append("accepted")
    return " ".join(said)


def _expect_refusal(raw: bytes, kind: settings.Kind) -> None:
    try:
        documents.check_request(raw, POSITION, kind, MAX_BYTES)
    except kinds.RejectedError:
        return
    raise AssertionError("the check before the bridge lets through what the bridge refuses")


def _assignment(raw: bytes) -> str:
    said = []
    for kind in KINDS:
        try:
            found = documents.read_assignment(raw, kind)
        except REFUSALS as error:
            said.append(_in_short(error))
        else:
            said.append("by hand" if found.position is None else "read")
    return " ".join(said)


def _result(raw: bytes) -> str:
    said = []
    try:
        members, origin = documents.read_result(raw)
    except REFUSALS as error:
        return _in_short(error)
    for kind in KINDS:
        try:
            outcome = kinds.outcome(members, kind)
            if isinstance(outcome, kinds.IngestOutcome):
                row = tables.IngestResult.of(origin.key, origin.finished, outcome)
                assert isinstance(row.ingest_type + row.base_url, str)
        except kinds.RejectedError as error:
            said.append(error.reason)
        else:
            said.append("read" if origin.position else "read, by hand")
    return " ".join(said)


def _dead_letter(raw: bytes) -> str:
    letter = documents.DeadLetter("lane", "rejected", "why", "worker", raw, POSITION, "key")
    assert documents.dead_request(letter.write(10_000_000)) == raw
    try:
        members = documents.read_dead_letter(raw)
        if documents.replayed_id(members) is not None:
            return "marker"
        return "no request" if documents.dead_request(raw) is None else "request"
    except REFUSALS as error:
        return _in_short(error)


def _enqueue(raw: bytes) -> str:
    rejects: list[bytes] = []
    run = enqueue.Enqueue(CONFIG, "lane", producer=None, rejects=rejects.append)
    try:
        run.run(lines.read(io.BufferedReader(io.BytesIO(raw)), MAX_BYTES), progress=lambda: None)
    except lines.DamagedError as error:
        return _in_short(error)
    report = run.report
    assert not report.pending
    assert len(rejects) == report.refused
    assert report.next_line == report.lines + 1
    reasons = {json.loads(reject)["reason"] for reject in rejects} | ({"accepted"} if report.accepted else set())
    return " ".join(sorted(reasons))


def _cdx(raw: bytes) -> str:
    header, _, line = raw.partition(b"\n")
    legend = cdx.legend(header)
    said = f"{cdx.is_cdx(header)} {legend is not None} "
    try:
        members = json.loads(cdx.request(line or header, legend))
    except kinds.RejectedError as error:
        return said + _in_short(error)
    return said + " ".join(name for name, value in members.items() if value is not None)


def _find(raw: bytes) -> str:
    text, _, key = raw.decode(errors="replace").partition("\n")
    try:
        wanted = find.Wanted.of(text)
    except kinds.RejectedError as error:
        return error.reason
    keys = [key for kind in (JOB, PAIR) for key in wanted.keys(kind)]
    assert all(any(wanted.means(key, kind) for kind in (JOB, PAIR)) for key in keys)
    return f"{wanted.bare} {len(keys)} {[wanted.means(key, kind) for kind in KINDS]}"


def _intake(raw: bytes) -> str:
    said = []
    for is_lines in (False, True):
        try:
            messages = body.parse(raw, is_lines=is_lines, topic="topic", kind=JOB, max_message_bytes=MAX_BYTES)
        except body.RefusedError as error:
            said.append(" ".join(sorted({mistake.reason for mistake in error.mistakes})) or "no reason")
        else:
            assert all(kinds.parse(message.value, JOB).key.encode() == message.key for message in messages)
            said.append("taken")
    return " ".join(said)


def _landing(raw: bytes) -> str:
    said = set()
    for charset in (None, "utf-8", "utf-16", "latin-1", "no-such-charset", raw[:20].decode("latin-1")):
        page = landing.read(raw, "https://example.org/a/b?c=d", charset)
        for name, value in vars(page).items():
            if isinstance(value, str) and name.endswith("url"):
                assert value.startswith(("http://", "https://")), value
            said.add(f"{name}: {value is not None}")
    return " ".join(sorted(said))


def _warc(raw: bytes) -> str:
    try:
        payload = warc.read_payload(io.BytesIO(raw), MAX_BYTES)
    except (warc.WarcError, warc.TooLargeError) as error:
        return _in_short(error)
    assert len(payload) <= MAX_BYTES
    return "payload" if payload else "empty payload"


def _http(raw: bytes) -> str:
    """Headers and addresses: a web server's Content-Type, a link, a host's address, a WARC's path."""
    text = raw.decode("latin-1")
    assert "/" in media.mimetype(raw, text)
    web.normal_url(text)
    said = [f"charset: {media.charset(text) is not None}"]
    try:
        said.append(f"public: {addresses.is_public(text)}")
    except ValueError:
        said.append("no address")
    try:
        path = grobid.warc_path(text)
    except outcomes.Reject:
        said.append("no path")
    else:
        assert not path.is_absolute()
        assert ".." not in path.parts
        said.append("path")
    return " ".join(said)


def _in_short(error: Exception) -> str:
    """Return what an error says, without what it says it of."""
    return re.sub(r"['\"].*['\"]|\d+|0x\w+", "#", str(error))[:60]


TARGETS = {
    "request": Target(tokens.JSON, _request),
    "assignment": Target(tokens.JSON, _assignment),
    "result": Target(tokens.RESULT, _result),
    "dead_letter": Target(tokens.DEAD, _dead_letter),
    "enqueue": Target((*tokens.JSON, *tokens.CDX, b'"sha1hex": "a"'), _enqueue),
    "cdx": Target(tokens.CDX, _cdx),
    "find": Target(tokens.JSON, _find),
    "intake": Target(tokens.JSON, _intake),
    "landing": Target(tokens.HTML, _landing),
    "warc": Target(tokens.WARC, _warc),
    "http": Target(tokens.HTTP, _http),
}
