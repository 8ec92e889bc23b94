"""One round: requests, faults among them, an end to all, and a judgement."""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from secrets import token_hex
from typing import TYPE_CHECKING

from chaos.account import Account, Figures
from chaos.arena import CAP
from chaos.faults import Allowed, Scene, find
from chaos.load import Load
from support.sampler import Sampler
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from chaos.arena import Arena

#: what a round sends.
REQUESTS = 300
#: beyond what the slowest recovery takes on a busy machine.
PATIENCE_SECONDS = 45.0


@dataclass
class Round:
    """What was played, and what came of it. ``complaints``: the promises that were broken."""

    seed: int
    faults: tuple[str, ...]
    requests: int = REQUESTS
    #: of a thousand requests, so many last longer than msg-timeout.
    long: int = 12
    #: the faults last at least so long, whatever is drawn.
    fault_seconds: float = 0.0
    #: after the last fault, in which all has to come to its end.
    patience_seconds: float = PATIENCE_SECONDS
    figures: Figures = field(default_factory=Figures)
    complaints: list[str] = field(default_factory=list)
    #: processes that ended by themselves and were started again.
    restarts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    #: from the end of the last fault to that of the last request.
    settled_seconds: float = 0.0
    #: the command that plays it again.
    repeat: str = ""
    #: the folder with logs, of a round that failed.
    kept: str = ""


def play(arena: Arena, round_: Round) -> None:
    """Play ``round_`` and fill in what came of it."""
    begun = time.monotonic()
    round_.repeat = (
        f"{arena.command} SEED={round_.seed} ROUNDS=1 FAULTS={'+'.join(round_.faults)} REQUESTS={round_.requests}"
    )
    arena.restarts.clear()
    try:
        _play(arena, round_)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next round is to be played
        is_promise = isinstance(error, AssertionError)
        round_.complaints.append(str(error) if is_promise else traceback.format_exc(limit=-3))
    round_.restarts = list(arena.restarts)
    round_.seconds = time.monotonic() - begun


def _play(arena: Arena, round_: Round) -> None:
    random = Random(round_.seed)
    name = f"r{round_.seed}-{token_hex(2)}"  # an arena may play the same round again
    load = Load(arena, name, random, long=round_.long)
    account = Account(arena, name, load)
    with Sampler(arena.held) as held:
        _strike(Scene(arena, account, random), load, round_)
        load.finish()
        struck = time.monotonic()
        try:
            _settle(arena, account, round_.patience_seconds)
        except AssertionError as error:
            round_.complaints.append(str(error))
    round_.settled_seconds = time.monotonic() - struck
    most = max((count for sample in held.samples for count in sample.values()), default=0)
    round_.figures = account.figures()
    round_.complaints += judge(round_.figures, most - CAP, allowed(round_.faults))


def _strike(scene: Scene, load: Load, round_: Round) -> None:
    """Send the requests and have the faults happen meanwhile, the first one ending last."""
    parts = len(round_.faults) + 1
    load.send(round_.requests - round_.requests // parts * len(round_.faults))
    with ExitStack() as last:
        for name in round_.faults:
            scene.arena.pause(scene.random.uniform(0.1, 1.5))
            fault = find(name)
            last.enter_context(fault.strike(scene))
            load.send(round_.requests // parts)
        drawn = (scene.random.uniform(*find(name).seconds) for name in round_.faults)
        scene.arena.pause(max(round_.fault_seconds, *drawn))


def _settle(arena: Arena, account: Account, patience_seconds: float) -> None:
    """Wait until all has come to its end, nothing is under way, and the bridge's own books say so, too."""

    def none(look: Callable[[], Collection[object] | int], seconds: float, what: str) -> None:
        wait_until(look, seconds * arena.slowness, what, accept=lambda left: not left, while_true=arena.tend)

    none(account.lost, patience_seconds, "an end of all requests")
    none(arena.held, 20, "NSQ to hold nothing")
    none(account.rowless, 20, "the rows in PostgreSQL")
    none(arena.uncommitted, 10, "all to be committed as done")
    none(arena.missing, 10, "the bridge to miss nothing")


def allowed(faults: tuple[str, ...]) -> Allowed:
    """Return what may happen beyond once while all of ``faults`` do."""
    return sum((find(name).allowed for name in faults), Allowed())


def judge(figures: Figures, above_cap: int, limits: Allowed) -> list[str]:
    """Say which promises were broken."""
    seen = {**vars(figures), "above_cap": above_cap}
    most = {"lost": 0, "wrongly_dead": 0, "mixed": 0, "rowless": 0, **vars(limits)}
    return [f"{name}: {seen[name]}, at most {limit} allowed" for name, limit in most.items() if seen[name] > limit]
