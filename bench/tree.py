"""What processes and all their descendants use, as /proc says."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
#: what a process that ends while one looks raises
_GONE = (FileNotFoundError, ProcessLookupError)


class Process(NamedTuple):
    """One process.

    ``started`` tells it from a later one with the same id; ``cpu_ticks`` include children that were waited for.
    """

    pid: int
    state: str
    parent: int
    started: str
    cpu_ticks: int


def of(roots: Iterable[int]) -> list[Process]:
    """Return ``roots`` and their descendants."""
    roots = set(roots)
    found = []
    children: dict[int, list[Process]] = {}
    for process in _all():
        children.setdefault(process.parent, []).append(process)
        if process.pid in roots:
            found.append(process)
    for process in found:
        found.extend(children.get(process.pid, []))
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return user and system time of ``roots`` and their descendants, those that have ended included."""
    return sum(process.cpu_ticks for process in of(roots)) / _TICKS_A_SECOND


def pss_bytes(roots: Iterable[int]) -> int:
    """Return the memory of ``roots`` and their descendants: what is shared is divided by those who share it."""
    total = 0
    for process in of(roots):
        with contextlib.suppress(*_GONE):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total * 1024


def rss_bytes(pid: int) -> int:
    """Return how much of a process' memory is resident."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024


def signal_all(roots: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to ``roots`` and their descendants."""
    _signal(of(roots), number)


def end(roots: Iterable[int], seconds: float) -> None:
    """Let ``roots`` stop in good order, at most ``seconds``; kill what is left of them and their descendants."""
    roots = list(roots)
    tree = of(roots)
    _signal(tree, signal.SIGCONT)
    _signal([process for process in tree if process.pid in roots], signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while (left := _living(tree)) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(left, signal.SIGKILL)


def _all() -> list[Process]:
    return [process for entry in Path("/proc").iterdir() if entry.name.isdigit() and (process := _read(entry))]


def _read(entry: Path) -> Process | None:
    try:
        stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    except _GONE:
        return None
    # The name, in parentheses, can hold anything.
    fields = stat.rpartition(")")[2].split()
    return Process(int(entry.name), fields[0], int(fields[1]), fields[19], sum(int(ticks) for ticks in fields[11:15]))


def _living(processes: Iterable[Process]) -> list[Process]:
    now = {(process.pid, process.started) for process in _all() if process.state != "Z"}
    return [process for process in processes if (process.pid, process.started) in now]


def _signal(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
