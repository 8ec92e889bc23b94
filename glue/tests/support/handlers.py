"""Commands that pools of tests run. Each is a line of shell: it starts in a millisecond."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.system import System

#: Notes that it runs, then gives the request back as its result.
NOTING = ("/bin/sh", "-c", 'request=$(cat); echo "$request" >> runs.log; printf %s "$request"')
#: The same, but its result waits until the file "gate" is there.
GATED = (
    "/bin/sh",
    "-c",
    (
        'request=$(cat); echo "$request" >> runs.log; until [ -e gate ]; do sleep 0.05; done;'
        ' echo "$request" >> ends.log; printf %s "$request"'
    ),
)


def open_gate(system: System) -> None:
    (system.pool_folder / "gate").touch()


def runs(system: System) -> Counter[object]:
    """Return ``file_id -> how often its handler began``."""
    return _noted(system, "runs.log")


def ends(system: System) -> Counter[object]:
    """Return ``file_id -> how often its gated handler came to its end``."""
    return _noted(system, "ends.log")


def _noted(system: System, name: str) -> Counter[object]:
    log = system.pool_folder / name
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Counter(json.loads(line)["file_id"] for line in lines)
