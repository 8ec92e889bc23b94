"""Put something else in the place of a part of slowjobs, by its name: "module:NAME", "module:Class.method".

A name that is there no longer raises AttributeError, so that nothing is quietly left as it is.
"""

from __future__ import annotations

import pkgutil
from typing import Any


def get(name: str) -> Any:
    return pkgutil.resolve_name(name)


def put(name: str, value: object) -> None:
    get(name)
    holder, _, attribute = name.replace(":", ".").rpartition(".")
    setattr(pkgutil.resolve_name(holder), attribute, value)
