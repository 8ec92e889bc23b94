"""A lease on the control host: of playbooks that must not run at the same time one does, until it ends or is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from typing import IO, TYPE_CHECKING

from slowjobs import documents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Lease:
    """Who holds it, since when and until when unless it is renewed: seconds since 1970."""

    holder: str
    since: float
    until: float

    def __str__(self) -> str:
        left = max(0.0, self.until - time.time())
        return f"{self.holder}, since {documents.moment(self.since)}; it ends in {left:.0f} s unless it is renewed"


class HeldError(Exception):
    """Somebody has it; ``str()`` says who."""


class LostError(Exception):
    """Somebody else has, or had, it since; ``str()`` says who."""


def look(path: Path) -> None:
    """Return if nobody has it. Raises HeldError."""
    with _open(path) as file:
        if held := _read(file):
            raise HeldError(str(held))


def take(path: Path, holder: str, seconds: float) -> None:
    """Take it for so many ``seconds``. Raises HeldError."""
    with _open(path) as file:
        if held := _read(file):
            raise HeldError(str(held))
        now = time.time()
        _write(file, Lease(holder, since=now, until=now + seconds))


def renew(path: Path, holder: str, seconds: float) -> None:
    """Hold it for so many ``seconds`` from now on. Raises LostError if anybody else has had it since it was taken.

    One that has come to its end is renewed, too: nobody has done anything meanwhile.
    """
    with _open(path) as file:
        last = _read_last(file)
        if last is None or last.holder != holder:
            raise LostError(f"of {last}" if last else "given up")
        _write(file, Lease(holder, last.since, time.time() + seconds))


def drop(path: Path, holder: str) -> None:
    """Give it up, if it is ``holder``'s."""
    with _open(path) as file:
        held = _read(file)
        if held and held.holder == holder:
            _write(file, None)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    # Never removed, so that all lock the same file.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read(file: IO[str]) -> Lease | None:
    last = _read_last(file)
    return last if last and time.time() < last.until else None


def _read_last(file: IO[str]) -> Lease | None:
    try:
        return Lease(**json.load(file))
    except (TypeError, ValueError):
        return None  # nobody has had it, or it was given up


def _write(file: IO[str], lease: Lease | None) -> None:
    file.seek(0)
    file.truncate()
    json.dump(dataclasses.asdict(lease) if lease else {}, file)
