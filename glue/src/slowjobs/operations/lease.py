"""A lease on the control host: of playbooks that must not run at the same time one does, until it ends or is gone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from slowjobs import documents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Lease:
    """Who holds it, since when and until when unless it is renewed: seconds since 1970."""

    holder: str
    since: float
    until: float

    def __str__(self) -> str:
        left = max(0.0, self.until - time.time())
        return f"{self.holder}, since {documents.moment(self.since)}; it ends in {left:.0f} s unless it is renewed"


class HeldError(Exception):
    """Somebody else has it; ``str()`` says who."""


def look(path: Path) -> None:
    """Return if nobody has it. Raises HeldError."""
    with _open(path) as file:
        if held := _read(file):
            raise HeldError(str(held))


def take(path: Path, holder: str, seconds: float) -> None:
    """Take it for so many ``seconds``, or renew it. Raises HeldError."""
    with _open(path) as file:
        held = _read(file)
        if held and held.holder != holder:
            raise HeldError(str(held))
        now = time.time()
        _write(file, {"holder": holder, "since": held.since if held else now, "until": now + seconds})


def drop(path: Path, holder: str) -> None:
    """Give it up, if it is ``holder``'s."""
    with _open(path) as file:
        held = _read(file)
        if held and held.holder == holder:
            _write(file, {})


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    # Never removed, so that all lock the same file.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read(file: IO[str]) -> Lease | None:
    try:
        lease = Lease(**json.load(file))
    except (TypeError, ValueError):
        return None  # nobody has it
    return lease if time.time() < lease.until else None


def _write(file: IO[str], document: dict[str, object]) -> None:
    file.seek(0)
    file.truncate()
    json.dump(document, file)
