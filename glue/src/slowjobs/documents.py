"""The documents of ours on Kafka and NSQ (design, "Data"): how each is written and read.

A request or a result is never parsed and written again: our member is spliced into the bytes as they came, so that
numbers, spaces and the order of members stay what their author wrote.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from slowjobs import kinds

if TYPE_CHECKING:
    from slowjobs import settings

#: of every document here; a reader refuses others.
VERSION = 1
#: the member of ours in a request on NSQ and in a result.
MEMBER = "_slowjobs"
#: bytes; what ``write_assignment`` adds is less: a key that needs an escape for every byte, and the longest topic.
_MOST_ADDED_BYTES = 2 * kinds.MAX_KEY_BYTES + 500


class UnknownVersionError(Exception):
    """A document of ours of a version that this program does not know."""


class TornError(Exception):
    """A message on NSQ that holds another request than the bridge put there: nsqd's disk was full, or is broken."""


@dataclass(frozen=True)
class Position:
    """Where a request is on Kafka."""

    topic: str
    partition: int
    offset: int

    @property
    def partition_of(self) -> tuple[str, int]:
        """The topic and the partition."""
        return self.topic, self.partition

    def as_json(self) -> list[str | int]:
        """Return ``[topic, partition, offset]``."""
        return [self.topic, self.partition, self.offset]

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True)
class Assignment:
    """A message on NSQ: a request, and what the bridge says of it. ``position`` is None when a person published it."""

    request: kinds.Request
    position: Position | None


def now(plus_seconds: float = 0) -> str:
    """Return the time as all documents write it: UTC, microseconds, ``Z``."""
    return moment(time.time() + plus_seconds)


def moment(since_1970: float) -> str:
    """Return a time in seconds since 1970 as all documents write it."""
    written = datetime.fromtimestamp(since_1970, UTC)
    return written.isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds(at: str) -> float:
    """Return a time that ``now`` wrote as seconds since 1970. Raises ValueError for another text."""
    if not at.endswith("Z"):
        raise ValueError(f"expected a time in UTC, got {at[:80]!r}")
    return datetime.fromisoformat(at).timestamp()


def write_assignment(
    raw: bytes, position: Position, kind: settings.Kind, max_bytes: int
) -> tuple[kinds.Request, bytes]:
    """Check a request and return it with the body of its NSQ message, at most ``max_bytes``.

    Raises kinds.RejectedError. The bridge makes a dead letter of it then, and the persister no row.
    """
    request = kinds.parse(raw, kind)
    ours = {"v": VERSION, "position": position.as_json(), "key": request.key, "crc32": zlib.crc32(_open(raw))}
    body = splice(raw, ours)
    kinds.check_size(body, max_bytes)
    return request, body


def longest_position(topic: str) -> Position:
    """Return a position for a request that has none yet: what is not too large with this one never is."""
    return Position(topic, 2**31 - 1, 2**63 - 1)


def check_request(raw: bytes, position: Position, kind: settings.Kind, max_bytes: int) -> kinds.Request:
    """Check a request as ``write_assignment`` does, at less cost: only what is near ``max_bytes`` is written.

    Raises kinds.RejectedError.
    """
    if len(raw) > max_bytes - _MOST_ADDED_BYTES:
        return write_assignment(raw, position, kind, max_bytes)[0]
    return kinds.parse(raw, kind)


def read_assignment(body: bytes, kind: settings.Kind) -> Assignment:
    """Read an NSQ message. Raises kinds.RejectedError, UnknownVersionError, or TornError."""
    members = kinds.parse_object(body)
    ours = members.pop(MEMBER, None)
    if ours is None:
        return Assignment(kinds.accept(body, members, kind), None)
    check_version(ours)
    try:
        position, key = _position(ours["position"]), str(ours["key"])
    except KeyError:
        raise kinds.RejectedError("member-type", f"{MEMBER!r} is not as the bridge writes it") from None
    raw = without_ours(body)
    if ours.get("crc32") not in (None, zlib.crc32(_open(raw))):  # none: of an older bridge
        raise TornError(f"it says that it is {position}, and holds another request")
    # The bridge has checked it, and its key stays what the bridge said.
    return Assignment(kinds.Request(raw, members, key, kinds.result_key(members, key, kind)), position)


def write_result(result: bytes, about: dict[str, Any]) -> bytes:
    """Return a result document. ``result``: the handler's JSON object, ``about``: the members of ours."""
    return splice(result, {"v": VERSION, **about})


@dataclass(frozen=True)
class Origin:
    """Where a result comes from, in its worker's words. ``position``: the request's, None if a person published it."""

    kind: str
    lane: str
    key: str
    finished: str
    position: Position | None


def read_result(raw: bytes) -> tuple[kinds.JsonObject, Origin]:
    """Return a result's members and where it comes from. Raises kinds.RejectedError, or UnknownVersionError."""
    members = kinds.parse_object(raw)
    ours = members.pop(MEMBER, None)
    if ours is None:
        raise kinds.RejectedError("member-missing", f"{MEMBER!r} is missing: no worker of ours wrote this")
    check_version(ours)
    texts = {name: ours.get(name) for name in ("kind", "lane", "key", "finished")}
    if "position" not in ours or not all(isinstance(text, str) for text in texts.values()):
        raise kinds.RejectedError("member-type", f"{MEMBER!r} is not as a worker writes it")
    return members, Origin(**texts, position=None if ours["position"] is None else _position(ours["position"]))


@dataclass(frozen=True)
class DeadLetter:
    """Why a request came to no result.

    ``sender``: "bridge", "worker" or "persister"; ``raw``: the request as it came.
    """

    lane: str
    reason: str
    error: str
    sender: str
    raw: bytes | None
    position: Position | None = None
    key: str | None = None
    attempts: int = 0

    def write(self, max_bytes: int) -> bytes:
        """Return the document, with the request as JSON where it is an object and in base64 where it is not.

        One that would be larger than ``max_bytes`` goes without the request, and says so.
        """
        document = self._write(self.raw, self.error)
        if len(document) <= max_bytes:
            return document
        size = len(self.raw or b"")
        return self._write(None, f"{self.error} (the request, {size} bytes, is too large for a dead letter)")

    def _write(self, raw: bytes | None, error: str) -> bytes:
        document: dict[str, Any] = {
            "v": VERSION,
            "lane": self.lane,
            "position": self.position.as_json() if self.position else None,
            "key": self.key,
            "reason": self.reason,
            "error": error,
            "attempts": self.attempts,
            "from": self.sender,
            "at": now(),
        }
        request = b"null"
        if raw is not None:
            try:
                kinds.parse_object(raw)
                request = raw
            except kinds.RejectedError:
                document["request_base64"] = base64.b64encode(raw).decode()
        return _with_member(json.dumps(document, ensure_ascii=False).encode(), "request", request)


Outcome = Literal["result", "skipped", "dead", "discarded"]


@dataclass(frozen=True)
class Event:
    """What a worker does with a request, for the ledger (design, "Data"). ``up`` is about no request.

    The bridge tells of its own dead letters with ``done``. ``worker``: host, pool and process, or host and "bridge".
    ``outcome``: of ``done``; ``until``: of ``requeued``; ``at``: when it happened.
    """

    event: Literal["started", "requeued", "done", "abandoned", "up"]
    worker: str
    lane: str | None = None
    position: Position | None = None
    attempt: int | None = None
    nsqd: str | None = None
    until: str | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    at: str = field(default_factory=now)

    def as_json(self) -> dict[str, Any]:
        """Return its members."""
        return {**vars(self), "position": self.position.as_json() if self.position else None}

    def write(self) -> bytes:
        """Return the document."""
        return json.dumps({"v": VERSION, **self.as_json()}, ensure_ascii=False).encode()


#: what each event cannot leave out: the ledger counts on it.
_NEEDED = {
    "started": ("worker", "at", "position", "nsqd"),
    "requeued": ("worker", "at", "position", "nsqd", "until"),
    "done": ("worker", "at", "position", "outcome"),
    "abandoned": ("worker", "at", "position"),
    "up": ("worker", "at"),
}
_TEXTS = ("worker", "lane", "nsqd", "until", "outcome", "reason", "at")
_OUTCOMES = (None, *get_args(Outcome))


def read_event(raw: bytes) -> Event:
    """Read an event. Raises kinds.RejectedError, or UnknownVersionError."""
    members = kinds.parse_object(raw)
    if not isinstance(members.get("v"), int):
        raise kinds.RejectedError("member-missing", "'v' is missing: nobody of ours wrote this")
    check_version(members)
    _check_event(members)
    position = None if members.get("position") is None else _position(members["position"])
    texts: dict[str, Any] = {name: members.get(name) for name in _TEXTS}
    return Event(members["event"], position=position, attempt=members.get("attempt"), **texts)


def _check_event(members: kinds.JsonObject) -> None:
    event, attempt = members.get("event"), members.get("attempt")
    if not isinstance(event, str) or event not in _NEEDED:
        raise kinds.RejectedError("member-type", f"'event': expected one of {', '.join(_NEEDED)}")
    for name in _NEEDED[event]:
        if members.get(name) is None:
            raise kinds.RejectedError("member-missing", f"{name!r} is missing")
    for name in _TEXTS:
        if not isinstance(members.get(name), str | None):
            raise kinds.RejectedError("member-type", f"{name!r}: expected a text")
    if members.get("outcome") not in _OUTCOMES or not isinstance(attempt, int | None):
        raise kinds.RejectedError("member-type", "'attempt' or 'outcome' is not as a worker writes it")
    for name in ("at", "until"):
        try:
            if members.get(name) is not None:
                seconds(members[name])
        except ValueError as error:
            raise kinds.RejectedError("member-type", f"{name!r}: {error}") from None


def read_dead_letter(raw: bytes) -> dict[str, Any]:
    """Return the members of a dead letter, or of a marker (``replayed_id``).

    Raises kinds.RejectedError, or UnknownVersionError.
    """
    # A request may have all the levels that there are, and is a member here.
    document = kinds.parse_object(raw, max_depth=kinds.MAX_DEPTH + 1)
    check_version(document)
    if replayed_id(document) is None:
        for name in ("lane", "reason", "error", "from", "at"):
            if not isinstance(document.get(name), str):
                raise kinds.RejectedError("member-type", f"{name!r}: expected a text")
        if document.get("position") is not None:
            _position(document["position"])
    return document


def write_replayed(id_: int) -> bytes:
    """Return the marker that says: the request of dead letter ``id_`` was sent again."""
    return json.dumps({"v": VERSION, "replayed": id_}).encode()


def replayed_id(document: dict[str, Any]) -> int | None:
    """Return which dead letter a marker is about; None for a dead letter itself."""
    id_ = document.get("replayed")
    return id_ if isinstance(id_, int) and not isinstance(id_, bool) else None


def dead_request(raw: bytes) -> bytes | None:
    """Return the request that a dead letter carries, byte for byte; None where it was too large to be carried.

    Raises kinds.RejectedError, or UnknownVersionError.
    """
    document = read_dead_letter(raw)
    in_base64 = document.get("request_base64")
    if in_base64 is not None:
        try:
            return base64.b64decode(in_base64, validate=True)
        except (TypeError, ValueError) as error:
            raise kinds.RejectedError("member-type", f"'request_base64': {error}") from None
    if not isinstance(document.get("request"), dict):
        return None
    # Our member comes last, and no text before it can hold these quotes without a backslash.
    _, found, request = raw.partition(b'"request": ')
    if not found:
        raise kinds.RejectedError("member-type", "'request' is not as we write it")
    return request.rstrip()[:-1]


def splice(raw: bytes, ours: dict[str, Any]) -> bytes:
    """Return the JSON object ``raw`` with ``ours`` as its last member; a member of that name before it loses."""
    return _with_member(raw, MEMBER, json.dumps(ours, ensure_ascii=False).encode())


def _with_member(raw: bytes, name: str, value: bytes) -> bytes:
    body = _open(raw)
    comma = b"" if body.endswith(b"{") else b", "
    return b'%s%s"%s": %s}' % (body, comma, name.encode(), value)


def _open(raw: bytes) -> bytes:
    """Return a JSON object without its end: what stays as it is when a member is added, and taken away again."""
    return raw.rstrip()[:-1].rstrip()


def without_ours(body: bytes) -> bytes:
    """Undo ``splice``: inside a string the quotes would be escaped, so the last match is the member itself.

    Raises kinds.RejectedError for what was not written by ``splice``.
    """
    before, found, _ = body.rpartition(b'"%s": ' % MEMBER.encode())
    if not found:
        raise kinds.RejectedError("member-type", f"{MEMBER!r} is not as we write it")
    return before.rstrip().removesuffix(b",") + b"}"


def _position(value: Any) -> Position:
    match value:
        case [str(topic), int(partition), int(offset)]:
            return Position(topic, partition, offset)
        case _:
            raise kinds.RejectedError("member-type", f"expected [topic, partition, offset], got {str(value)[:80]!r}")


def check_version(ours: Any) -> None:
    """Raise UnknownVersionError unless these are the members of a document of this version."""
    version = ours.get("v") if isinstance(ours, dict) else None
    if version != VERSION:
        raise UnknownVersionError(f"expected version {VERSION} of ours, got {version!r}: upgrade slowjobs here")
