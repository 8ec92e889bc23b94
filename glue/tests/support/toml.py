"""Write TOML; the standard library only reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def dumps(document: Mapping[str, Any], place: tuple[str, ...] = ()) -> str:
    """Return ``document`` as TOML: plain values first, then its tables, then its arrays of tables."""
    plain, tables = [], []
    for name, value in document.items():
        here = (*place, name)
        if isinstance(value, dict):
            tables.append(f"\n[{_dotted(here)}]\n{dumps(value, here)}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables += [f"\n[[{_dotted(here)}]]\n{dumps(item, here)}" for item in value]
        else:
            # JSON's strings, numbers, booleans and arrays of them are TOML's too.
            plain.append(f"{json.dumps(name)} = {json.dumps(value)}\n")
    return "".join([*plain, *tables])


def _dotted(place: tuple[str, ...]) -> str:
    return ".".join(json.dumps(name) for name in place)
