"""How a request is checked and keyed. Bridge, persister and ``enqueue`` ask here, so that they always agree."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slowjobs import settings

#: levels of arrays and objects; deeper JSON breaks parsers further down the line.
MAX_DEPTH = 100
#: bytes of a key in UTF-8; PostgreSQL's indexes take 2,704.
MAX_KEY_BYTES = 2000

#: digits; sys.set_int_max_str_digits' default.
_MAX_DIGITS = 4300

#: what an ingest request can ask for (design, "Kinds").
INGEST_TYPES = ("pdf", "xml", "html", "src", "component", "dataset", "file")
_URL = re.compile(r"(https?|ftp)://[^/\s]", re.IGNORECASE)
#: as ``ingest_file_result`` insists.
_TERMINAL_PATTERNS = {"terminal_dt": re.compile(r"[0-9]{14}"), "terminal_sha1hex": re.compile(r"[0-9a-f]{40}")}

JsonObject = dict[str, Any]
T = TypeVar("T")
D = TypeVar("D")

#: What PostgreSQL's jsonb cannot hold: half of a UTF-16 pair on its own.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class RejectedError(Exception):
    """A request that its kind cannot accept. ``reason`` is one of the dead letters' reasons (design, "Data")."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason = reason
        self.error = error


@dataclass(frozen=True)
class Request:
    """One request: the bytes as they came (never written anew, so nothing of it changes), its key and its result's."""

    raw: bytes
    members: JsonObject
    key: str
    result_key: str


def parse(raw: bytes, kind: settings.Kind) -> Request:
    """Check ``raw`` and find its keys. Raises RejectedError."""
    return accept(raw, parse_object(raw), kind)


def accept(raw: bytes, members: JsonObject, kind: settings.Kind) -> Request:
    """Check what was parsed already. Raises RejectedError."""
    key = key_text(members, kind.key)
    if kind.type == "ingest":
        _check_ingest(members)
    return Request(raw, members, key, result_key(members, key, kind))


def result_key(members: JsonObject, key: str, kind: settings.Kind) -> str:
    """Return the key of the result of a request with ``key``. Raises RejectedError."""
    return key if kind.result_key == kind.key else key_text(members, kind.result_key)


def parse_object(raw: bytes, *, max_depth: int = MAX_DEPTH) -> JsonObject:
    """Return the JSON object in ``raw``. Raises RejectedError for what PostgreSQL or a handler could choke on."""
    text = _decode(raw)
    try:
        value = _decode_json(text)
    except RecursionError:
        raise RejectedError("too-deep", f"over {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise RejectedError("not-json", _one_line(error)) from None
    if not isinstance(value, dict):
        raise RejectedError("not-an-object", f"expected a JSON object, got {_json_type(value)}")
    if text.count("{") + text.count("[") > max_depth:
        _check_depth(value, max_depth)
    if "\\u" in text:
        # Only an escape can bring these in: raw ones are no JSON or no UTF-8.
        _check_characters(value)
    return value


def key_text(members: JsonObject, names: Sequence[str]) -> str:
    """Return the text of the JSON array of these members, as PostgreSQL's jsonb writes it. Raises RejectedError."""
    texts = []
    for name in names:
        if name not in members:
            raise RejectedError("member-missing", f"{name!r} is missing")
        value = members[name]
        if isinstance(value, str):
            texts.append(_quote(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            texts.append(str(value))
        else:
            raise RejectedError("member-type", f"{name!r}: expected a string or an integer, got {_json_type(value)}")
    key = f"[{', '.join(texts)}]"
    size = len(key.encode())
    if size > MAX_KEY_BYTES:
        raise RejectedError("key-too-long", f"{size} bytes, at most {MAX_KEY_BYTES}")
    return key


def check_size(body: bytes, max_bytes: int) -> None:
    """Raise RejectedError for what nsqd would refuse, and with it the whole batch."""
    if len(body) > max_bytes:
        raise RejectedError("too-large", f"{len(body)} bytes, at most {max_bytes} on NSQ")


@dataclass(frozen=True)
class Outcome:
    """What every result says."""

    status: str
    hit: bool


@dataclass(frozen=True)
class IngestOutcome(Outcome):
    """What a result of type ``ingest`` says: the columns of ``ingest_file_result``. ``terminal_dt``: 14 digits."""

    terminal_url: str | None
    terminal_dt: str | None
    terminal_status_code: int | None
    terminal_sha1hex: str | None


def outcome(result: JsonObject, kind: settings.Kind) -> Outcome:
    """Return what a result says. Raises RejectedError for one that its table could not hold.

    A ``job`` may leave out status ("success" then) and hit (true); ``ingest`` has both, and its whole request.
    """
    if kind.type == "job":
        return Outcome(_member(result, "status", str, "success"), _member(result, "hit", bool, True))
    if not _member(result, "request", dict, None):
        raise RejectedError("member-missing", "'request' is missing: a result of type ingest carries its request")
    terminal = _member(result, "terminal", dict, None) or {}
    found = IngestOutcome(
        _required(result, "status", str),
        _required(result, "hit", bool),
        _member(terminal, "terminal_url", str, None) or None,
        _member(terminal, "terminal_dt", str, None) or None,
        _member(terminal, "terminal_status_code", int, None),
        _member(terminal, "terminal_sha1hex", str, None) or None,
    )
    for name, pattern in _TERMINAL_PATTERNS.items():
        value = getattr(found, name)
        if value is not None and not pattern.fullmatch(value):
            raise RejectedError("member-type", f"{name!r}: expected {pattern.pattern}, got {value[:80]!r}")
    return found


def _required(members: JsonObject, name: str, expected: type[T]) -> T:
    value = _member(members, name, expected, None)
    if value is None:
        raise RejectedError("member-missing", f"{name!r} is missing")
    return value


def _member(members: JsonObject, name: str, expected: type[T], absent: D) -> T | D:
    """Return a member, or ``absent``. Raises RejectedError for one of another type; null counts as absent only there.

    ``true`` is no number, whatever Python thinks.
    """
    if name not in members or (members[name] is None and absent is None):
        return absent
    value = members[name]
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        wanted = {str: "a string", bool: "true or false", int: "an integer", dict: "an object"}[expected]
        raise RejectedError("member-type", f"{name!r}: expected {wanted}, got {_json_type(value)}")
    return value


def _check_ingest(members: JsonObject) -> None:
    """Check what the table's columns and every handler rely on; the four are there, as texts or integers."""
    for name in ("link_source", "link_source_id"):
        if not isinstance(members[name], str) or not members[name]:
            raise RejectedError("member-type", f"{name!r}: expected a string that is not empty, got {members[name]!r}")
    if members["ingest_type"] not in INGEST_TYPES:
        got = str(members["ingest_type"])[:80]
        raise RejectedError("member-type", f"'ingest_type': expected one of {', '.join(INGEST_TYPES)}, got {got!r}")
    if not isinstance(members["base_url"], str) or not _URL.match(members["base_url"]):
        got = str(members["base_url"])[:80]
        raise RejectedError("member-type", f"'base_url': expected an http, https or ftp address, got {got!r}")


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectedError("not-json", f"not UTF-8: {_one_line(error)}") from None


def _integer(digits: str) -> int | float:
    # Python reads no longer ones. Only a key's integers count here; for the others any number will do.
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# Made once: json.loads makes a new one at each call that has arguments.
_decode_json = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_integer).decode
_quote = json.encoder.encode_basestring  # json.dumps of a string, without making an encoder for it


def _check_depth(value: JsonObject, max_depth: int) -> None:
    level: list[Any] = [value]
    for _ in range(max_depth):
        level = [item for container in level for item in _items(container)]
        if not level:
            return
    raise RejectedError("too-deep", f"over {max_depth} levels")


def _items(container: JsonObject | list[Any]) -> list[Any]:
    values = container.values() if isinstance(container, dict) else container
    return [value for value in values if isinstance(value, dict | list)]


def _check_characters(value: Any) -> None:
    """Raise RejectedError for a NUL or a lone surrogate anywhere; the depth is known to be bounded."""
    if isinstance(value, str):
        if "\0" in value:
            raise RejectedError("nul-character", f"a string holds U+0000: {value[:80]!r}")
        if _LONE_SURROGATE.search(value):
            raise RejectedError("not-json", f"a string holds half of a surrogate pair: {value[:80]!r}")
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_characters(name)
            _check_characters(member)
    elif isinstance(value, list):
        for item in value:
            _check_characters(item)


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
