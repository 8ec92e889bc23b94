"""Seconds of the world. All are short; ``shorten`` makes the ledger's own margins as short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slowjobs.bridge import ledger

if TYPE_CHECKING:
    import pytest

MSG_TIMEOUT = 8.0
LONGEST_TRY = 20.0
RUN_LIMIT = LONGEST_TRY + MSG_TIMEOUT
LONGEST_DELAY = 8.0
READING = 2.0
#: by which the clocks of two hosts differ, at most.
CLOCKS = 3.0
#: a step on the network, at most; and a batch on its way to nsqd, when the network is slow.
STEP = 0.3
SLOW = 12.0
#: from the last fault to the end of all work, at most.
PATIENCE = 300.0


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the ledger's margins fit these times."""
    monkeypatch.setattr(ledger, "EMPTY_MARGIN_SECONDS", 3.0)
    monkeypatch.setattr(ledger, "OVERDUE_MARGIN_SECONDS", 6.0)
    monkeypatch.setattr(ledger, "DEFERRED_MARGIN_SECONDS", 4.0)
    monkeypatch.setattr(ledger, "CLOCK_SECONDS", CLOCKS)
