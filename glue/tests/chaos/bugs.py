"""Bugs to be seeded into a service, each the one that a rule of ours is there for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BUGS: Mapping[str, Callable[[], None]] = {}
