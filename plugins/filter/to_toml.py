"""Write a mapping as TOML: the inventory's words become the configuration files of our services."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = """
name: to_toml
author: the slowjobs project
short_description: A mapping as a TOML document
description:
  - Members keep their order, but those that are no tables come first, as TOML needs it.
  - TOML knows no null. A member that is null is an error, named with its place.
positional: _input
options:
  _input:
    description: What to write. Strings, integers, floats, booleans, and lists and mappings of these.
    type: dict
    required: true
"""

EXAMPLES = """
text: "{{ {'pool': {'name': 'fixity', 'slots': 4}} | to_toml }}"
"""

RETURN = """
_value:
  description: The document, with a newline at its end.
  type: str
"""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_table_list(value: object) -> bool:
    return _is_list(value) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def _string(value: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON leaves as it is.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: object, place: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"to_toml: {place or 'the document'}: a key must be text, got {key!r}; quote it in the YAML")
    return str(key) if _BARE_KEY.fullmatch(key) else _string(key)


def _inside(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _value(value: object, place: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        members = (f"{_key(key, place)} = {_value(item, _inside(place, key))}" for key, item in value.items())
        return "{" + ", ".join(members) + "}"
    if _is_list(value):
        return "[" + ", ".join(_value(item, f"{place}[{number}]") for number, item in enumerate(value)) + "]"
    raise TypeError(f"to_toml: {place}: TOML has no form for {type(value).__name__} {value!r}")


def _table(table: Mapping[Any, Any], header: str, place: str) -> list[str]:
    plain, tables = [], []
    for key, value in table.items():
        name, inside = _key(key, place), _inside(place, key)
        path = f"{header}.{name}" if header else name
        if isinstance(value, Mapping):
            tables += ["", f"[{path}]", *_table(value, path, inside)]
        elif _is_table_list(value):
            for number, item in enumerate(value):
                tables += ["", f"[[{path}]]", *_table(item, path, f"{inside}[{number}]")]
        else:
            plain.append(f"{name} = {_value(value, inside)}")
    return plain + tables


def to_toml(document: Mapping[Any, Any]) -> str:
    """Return ``document`` as TOML text that ends with a newline.

    Raises TypeError, with the place, for what TOML cannot hold: null, a key that is no text, and the like.
    """
    if not isinstance(document, Mapping):
        raise TypeError(f"to_toml: expected a mapping, got {type(document).__name__}")
    return "\n".join(_table(document, "", "")).lstrip("\n") + "\n"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, object]:
        """Return the filters by name."""
        return {"to_toml": to_toml}
