"""What goes wrong in a round, and what may come of it beyond once (docs/architecture.md, "The ledger")."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from chaos.arena import CAP, LANES, MSG_TIMEOUT_SECONDS, SLOTS, WORKERS, Arena, Process
from chaos.on_hosts import Hosts
from chaos.on_processes import Launched, Processes
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from random import Random

    from chaos.account import Account


@dataclass(frozen=True)
class Allowed:
    """How often a round may do what it should do once. Nothing may be lost."""

    duplicates: int = 0
    run_again: int = 0
    overlaps: int = 0
    published_again: int = 0
    #: more than ``max_outstanding`` on NSQ.
    above_cap: int = 0

    def __add__(self, other: Allowed) -> Allowed:
        return Allowed(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


#: what a worker has of NSQ at most: its slots, and one on its way on each connection.
_IN_FLIGHT = SLOTS + len(LANES)
_EVERYWHERE = _IN_FLIGHT * len(WORKERS)
#: what all lanes hold.
_HELD = CAP * len(LANES)

# The rules, and nothing else is allowed. Each number bounds one round with one such fault.
NOTHING = Allowed()
#: A crash can run again what was in flight then.
CRASHED = Allowed(duplicates=_IN_FLIGHT, run_again=_IN_FLIGHT)
#: A handler's process that ends, or stands still beyond its time, is a failed try, and what failed is tried again.
TRY_ENDED = Allowed(run_again=3)
#: Only while a worker is connected, and touches, nobody else gets its requests. Each time-out gives them away again.
CUT_OFF = Allowed(duplicates=2 * _EVERYWHERE, run_again=3 * _EVERYWHERE, overlaps=3 * _EVERYWHERE)
#: What NSQ has lost is published again.
FORGOTTEN = Allowed(published_again=_HELD)
#: nsqd's disk queue replays a few after an unclean stop, beyond the cap, too; its clients are cut off meanwhile.
NSQD_ENDED = CUT_OFF + FORGOTTEN + Allowed(above_cap=_EVERYWHERE)
#: What a person publishes comes on top of the cap.
FOREIGN_REQUESTS = 20
BY_HAND = Allowed(above_cap=FOREIGN_REQUESTS)


@dataclass
class Scene:
    """What a fault has to do with. ``random``: seeded, and the fault's own."""

    arena: Arena
    account: Account
    random: Random


@dataclass(frozen=True)
class Fault:
    """``strike(scene)`` begins it when entered and ends it when left; ``seconds``: how long it lasts, from and to.

    ``hits``: those that no other fault can hit at the same time. ``arena``: what it needs.
    """

    strike: Callable[[Scene], AbstractContextManager[None]]
    allowed: Allowed
    hits: str
    seconds: tuple[float, float]
    arena: type[Arena] = Arena


#: what is written until there is no room for another, or for what is left of it.
_BLOCK = bytes(64 * 1024)
_SHORT = (0.0, 2.0)
#: beyond msg-timeout, and two of a connection's heartbeats.
_LONG = (MSG_TIMEOUT_SECONDS + 0.5, MSG_TIMEOUT_SECONDS + 2.0)
#: beyond msg-timeout, and perhaps beyond two heartbeats at the times that slowjobs really has.
_SILENT = (MSG_TIMEOUT_SECONDS + 0.5, 25.0)
#: which processes a fault is about.
_Choice = Callable[[Scene], Process]


def _bridge(scene: Scene) -> Process:
    return scene.arena.bridge


def _worker(scene: Scene) -> Process:
    return scene.arena.workers[scene.random.choice(WORKERS)]


def _persister(scene: Scene) -> Process:
    return scene.random.choice(list(scene.arena.persisters.values()))


def _nsqd(scene: Scene) -> Process:
    return scene.arena.servers["nsqd"]


def _kafka(scene: Scene) -> Process:
    return scene.arena.servers["kafka"]


def _postgresql(scene: Scene) -> Process:
    return scene.arena.servers["postgresql"]


def _processes(scene: Scene) -> Processes:
    assert isinstance(scene.arena, Processes)
    return scene.arena


def _hosts(scene: Scene) -> Hosts:
    assert isinstance(scene.arena, Hosts)
    return scene.arena


@contextmanager
def _killed(choice: _Choice, scene: Scene) -> Iterator[None]:
    with _down(choice(scene), lambda process: process.kill(), scene):
        yield


@contextmanager
def _stopped(choice: _Choice, scene: Scene) -> Iterator[None]:
    with _down(choice(scene), lambda process: process.stop(), scene):
        yield


@contextmanager
def _down(process: Process, end: Callable[[Process], object], scene: Scene) -> Iterator[None]:
    scene.arena.held_down.add(process)
    end(process)
    yield
    process.start()
    scene.arena.held_down.discard(process)


@contextmanager
def _frozen(choice: _Choice, scene: Scene) -> Iterator[None]:
    process = choice(scene)
    process.freeze()
    yield
    process.thaw()


@contextmanager
def _dying(choice: _Choice, steps: tuple[str, ...], scene: Scene) -> Iterator[None]:
    """Have a process die at one of its ``steps``; whoever tends to the arena starts it again."""
    process = choice(scene)
    assert isinstance(process, Launched)
    process.stop()
    process.die_at = f"{scene.random.choice(steps)}:{scene.random.randint(1, 4)}"
    process.start(ready=False)
    with suppress(AssertionError):  # it may be dead by now
        process.wait_until_ready()
    yield
    died = f"{process.name}: -9"
    wait_until(lambda: died in scene.arena.restarts, 20, f"{process.name} to die", while_true=scene.arena.tend)


@contextmanager
def _handlers_hit(first: signal.Signals, last: signal.Signals, scene: Scene) -> Iterator[None]:
    with suppress(AssertionError):  # beside another fault perhaps none is
        wait_until(scene.arena.at_work, 5, "handlers at work")
    at_work = scene.arena.at_work()
    chosen = scene.random.sample(at_work, min(len(at_work), scene.random.randint(1, 3)))
    for send in chosen:
        send(first)
    yield
    for send in chosen:
        send(last)


@contextmanager
def _connections_reset(scene: Scene) -> Iterator[None]:
    for _ in range(scene.random.randint(1, 4)):
        for proxy in scene.random.sample(_processes(scene).proxies, 2):
            proxy.break_connections()
        scene.arena.pause(scene.random.uniform(0.1, 0.5))
    yield


@contextmanager
def _connections_dead(scene: Scene) -> Iterator[None]:
    """Have a connection stay open while nothing comes through."""
    proxy = scene.random.choice(_processes(scene).proxies)
    proxy.mute, proxy.deaf = scene.random.choice(((True, True), (True, False), (False, True)))
    yield
    proxy.mute = proxy.deaf = False
    proxy.break_connections()


@contextmanager
def _disk_full(scene: Scene) -> Iterator[None]:
    filler = _processes(scene).disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(_BLOCK)
    yield
    filler.unlink()


@contextmanager
def _second_bridge(scene: Scene) -> Iterator[None]:
    arena = _processes(scene)
    arena.held_down.add(arena.bridge)
    arena.second_bridge.start()
    wait_until(lambda: arena.bridge.exit_status, 30, "the first bridge to be fenced", accept=lambda status: status == 5)
    yield
    arena.second_bridge.stop()
    arena.bridge.start()
    arena.held_down.discard(arena.bridge)


@contextmanager
def _lanes_paused(scene: Scene) -> Iterator[None]:
    _tell_channels(scene, "pause", scene.arena.lanes.values())
    yield
    _tell_channels(scene, "unpause", scene.arena.lanes.values())


@contextmanager
def _channel_emptied(scene: Scene) -> Iterator[None]:
    _tell_channels(scene, "empty", [scene.random.choice(list(scene.arena.lanes.values()))])
    yield


def _tell_channels(scene: Scene, what: str, lanes: Iterable[str]) -> None:
    for lane in lanes:
        scene.arena.nsqd.post(f"/channel/{what}?topic={quote(lane)}&channel={quote(scene.arena.pool)}")


@contextmanager
def _published_by_hand(scene: Scene) -> Iterator[None]:
    for number in range(FOREIGN_REQUESTS):
        lane = scene.random.choice(list(scene.arena.lanes.values()))
        body = request(f"by hand {number}", number=1_000_000 + number, seconds=0.05, do="work")
        scene.arena.nsqd.publish(lane, body)
        scene.account.foreign += 1
    yield


def _cut_off(names: Sequence[str], scene: Scene) -> AbstractContextManager[None]:
    return _hosts(scene).hosts[scene.random.choice(names)].cut_off()


@contextmanager
def _nothing(_: Scene) -> Iterator[None]:
    yield


def _restarted(scene: Scene) -> AbstractContextManager[None]:
    return _stopped(scene.random.choice((_bridge, _persister, _kafka, _postgresql)), scene)


_BRIDGE_STEPS = ("before-commit", "before-publish", "before-answer", "after-publish")
_WORKER_STEPS = ("after-started", "after-result", "after-done", "after-finish")

FAULTS: Mapping[str, Fault] = {
    "nothing": Fault(_nothing, NOTHING, "", _SHORT),
    "bridge-killed": Fault(partial(_killed, _bridge), NOTHING, "bridge", _SHORT),
    "bridge-killed-at-a-step": Fault(partial(_dying, _bridge, _BRIDGE_STEPS), NOTHING, "bridge", _SHORT, Processes),
    "bridge-frozen": Fault(partial(_frozen, _bridge), NOTHING, "bridge", _LONG),
    "second-bridge": Fault(_second_bridge, NOTHING, "bridge kafka", _SHORT, Processes),
    "worker-killed": Fault(partial(_killed, _worker), CRASHED, "worker", _SHORT),
    "worker-killed-at-a-step": Fault(partial(_dying, _worker, _WORKER_STEPS), CRASHED, "worker", _SHORT, Processes),
    "worker-frozen": Fault(partial(_frozen, _worker), CUT_OFF, "worker", _LONG),
    "handler-killed": Fault(partial(_handlers_hit, signal.SIGKILL, signal.SIGKILL), TRY_ENDED, "handler", _SHORT),
    "handler-frozen": Fault(partial(_handlers_hit, signal.SIGSTOP, signal.SIGCONT), TRY_ENDED, "handler", _LONG),
    "persister-killed": Fault(partial(_killed, _persister), NOTHING, "persister", _SHORT),
    "persister-frozen": Fault(partial(_frozen, _persister), NOTHING, "persister", _LONG),
    "nsqd-killed": Fault(partial(_killed, _nsqd), NSQD_ENDED, "nsqd", _SHORT),
    "nsqd-restarted": Fault(partial(_stopped, _nsqd), NSQD_ENDED, "nsqd", _SHORT),
    "nsqd-frozen": Fault(partial(_frozen, _nsqd), CUT_OFF, "nsqd", _LONG),
    "kafka-killed": Fault(partial(_killed, _kafka), NOTHING, "kafka", _SHORT),
    "kafka-frozen": Fault(partial(_frozen, _kafka), NOTHING, "kafka", _LONG),
    "postgresql-killed": Fault(partial(_killed, _postgresql), NOTHING, "postgresql", _SHORT),
    "postgresql-frozen": Fault(partial(_frozen, _postgresql), NOTHING, "postgresql", _LONG),
    "worker-restarted": Fault(partial(_stopped, _worker), NOTHING, "worker", _SHORT),
    "restarted": Fault(_restarted, NOTHING, "bridge persister kafka postgresql", _SHORT),
    "connections-reset": Fault(_connections_reset, CUT_OFF, "connections", _SHORT, Processes),
    "connections-dead": Fault(_connections_dead, CUT_OFF, "connections", _LONG, Processes),
    "disk-full": Fault(_disk_full, FORGOTTEN, "nsqd", _SHORT, Processes),
    "lanes-paused": Fault(_lanes_paused, NOTHING, "channel nsqd", _SHORT),
    "channel-emptied": Fault(_channel_emptied, FORGOTTEN, "channel nsqd", _SHORT),
    "published-by-hand": Fault(_published_by_hand, BY_HAND, "channel nsqd", _SHORT),
    # The harness is on the control host, and cut off with it.
    "control-cut-off": Fault(partial(_cut_off, ["control1"]), NOTHING, "bridge persister channel", _SILENT, Hosts),
    "nsqd-cut-off": Fault(partial(_cut_off, ["svc506"]), CUT_OFF, "nsqd channel", _SILENT, Hosts),
    "worker-cut-off": Fault(partial(_cut_off, WORKERS), CUT_OFF, "worker", _SILENT, Hosts),
    "data-cut-off": Fault(partial(_cut_off, ["data1"]), NOTHING, "kafka postgresql", _SILENT, Hosts),
}


def names(arena: type[Arena]) -> list[str]:
    """Return the faults that there are in such an arena."""
    return [name for name, fault in FAULTS.items() if issubclass(arena, fault.arena)]


def find(name: str) -> Fault:
    """Return the fault of that name. Behind a colon the step can be named that a process is to die at."""
    name, _, step = name.partition(":")
    fault = FAULTS[name]
    if not step:
        return fault
    return replace(fault, strike=partial(_dying, {"bridge": _bridge, "worker": _worker}[fault.hits], (step,)))


#: stands for two faults that a seed draws.
PAIR = "pair"


def pair(random: Random, arena: type[Arena] = Processes) -> tuple[str, str]:
    """Draw two faults that can happen at the same time in such an arena."""
    drawn_from = [name for name in names(arena) if name != "nothing"]
    while True:
        one, other = random.sample(drawn_from, 2)
        if not set(FAULTS[one].hits.split()) & set(FAULTS[other].hits.split()):
            # One that waits for a step goes on until the other is over.
            return (other, one) if other.endswith("-step") else (one, other)
