"""How a request is checked and keyed. Bridge, persister and ``enqueue`` ask here, so that they always agree."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slowjobs import settings

#: levels of arrays and objects; deeper JSON breaks parsers further down the line.
MAX_DEPTH = 100
#: bytes of a key in UTF-8; PostgreSQL's indexes take 2,704.
MAX_KEY_BYTES = 2000

#: digits; sys.set_int_max_str_digits' default.
_MAX_DIGITS = 4300

JsonObject = dict[str, Any]

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
    """One request: the bytes as they came (never written anew, so nothing of it changes), and its key."""

    raw: bytes
    members: JsonObject
    key: str


def parse(raw: bytes, kind: settings.Kind) -> Request:
    """Check ``raw`` and find its key. Raises RejectedError."""
    members = parse_object(raw)
    return Request(raw, members, request_key(members, kind.key))


def parse_object(raw: bytes) -> JsonObject:
    """Return the JSON object in ``raw``. Raises RejectedError for what PostgreSQL or a handler could choke on."""
    text = _decode(raw)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_integer)
    except RecursionError:
        raise RejectedError("too-deep", f"over {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise RejectedError("not-json", _one_line(error)) from None
    if not isinstance(value, dict):
        raise RejectedError("not-an-object", f"expected a JSON object, got {_json_type(value)}")
    _check_depth(value)
    if "\\u" in text:
        # Only an escape can bring these in: raw ones are no JSON or no UTF-8.
        _check_characters(value)
    return value


def request_key(members: JsonObject, names: Sequence[str]) -> str:
    """Return the text of the JSON array of the key's members, as PostgreSQL's jsonb writes it."""
    values = []
    for name in names:
        if name not in members:
            raise RejectedError("member-missing", f"{name!r} is missing")
        value = members[name]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RejectedError("member-type", f"{name!r}: expected a string or an integer, got {_json_type(value)}")
        values.append(value)
    key = json.dumps(values, ensure_ascii=False)
    size = len(key.encode())
    if size > MAX_KEY_BYTES:
        raise RejectedError("key-too-long", f"{size} bytes, at most {MAX_KEY_BYTES}")
    return key


def check_size(body: bytes, max_bytes: int) -> None:
    """Raise RejectedError for what nsqd would refuse, and with it the whole batch."""
    if len(body) > max_bytes:
        raise RejectedError("too-large", f"{len(body)} bytes, at most {max_bytes} on NSQ")


def job_outcome(result: JsonObject) -> tuple[str, bool]:
    """Return status and hit of a result of type ``job``: "success" and true if absent. Raises RejectedError."""
    status, hit = result.get("status", "success"), result.get("hit", True)
    if not isinstance(status, str):
        raise RejectedError("member-type", f"'status': expected a string, got {_json_type(status)}")
    if not isinstance(hit, bool):
        raise RejectedError("member-type", f"'hit': expected true or false, got {_json_type(hit)}")
    return status, hit


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


def _check_depth(value: JsonObject) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for container in level for item in _items(container)]
        if not level:
            return
    raise RejectedError("too-deep", f"over {MAX_DEPTH} levels")


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
