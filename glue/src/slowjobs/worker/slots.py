"""A pool's slots: which lane is asked for how much, and which request starts next.

nsqd sends what RDY allows, so asking is all that a worker decides, and asking for more than free slots can start would
hoard. A lane that has work answers within a millisecond; one that was asked and stays silent for some milliseconds is
taken to be empty, and is listened to from then on while a slot is free, one message at a time. Which lane is asked, and
which of the requests that came starts, is start-time fair queueing (``fair``). docs/architecture.md, "The slots".
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slowjobs.worker import fair

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slowjobs import nsq

#: seconds that a lane which is asked gets to send, the way to nsqd and back on top. With sync-every=1 nsqd writes to
#: disk between two messages; the first of a lane that was silent lies ready.
_NEXT_MESSAGE_SECONDS = 0.02
_FIRST_MESSAGE_SECONDS = 0.005
#: seconds; a timer of the event loop may be that early.
_TIMER_SLACK_SECONDS = 0.0005


class Source:
    """One connection: a lane on one nsqd host. RDY is what is in flight on it and ``asked`` for, or 0."""

    def __init__(self, lane: str, subscription: nsq.Subscription) -> None:
        self.lane = lane
        self.subscription = subscription
        #: messages that came and are not answered.
        self.in_flight = 0
        #: messages that may come beyond those.
        self.asked = 0
        #: it was asked, and nothing came.
        self.silent = False
        #: it is not asked any more: it will be closed after its last answer.
        self.leaving = False
        #: nothing is in flight.
        self.idle = asyncio.Event()
        self.idle.set()
        #: when it was opened, or last brought a message; the event loop's time.
        self.asked_since = -math.inf
        self._ready = 0

    def ask(self, count: int) -> None:
        """Let ``count`` more messages come."""
        if count > self.asked:
            self.asked_since = asyncio.get_running_loop().time()
        self.asked = count
        self._tell()

    def arrived(self) -> None:
        """Count a message that came."""
        self.in_flight += 1
        self.idle.clear()
        self.asked = max(0, self.asked - 1)
        self.silent = False
        self.asked_since = asyncio.get_running_loop().time()

    def finish(self, message: nsq.Message) -> None:
        """Tell nsqd that the message is done."""
        self.forget()
        self.subscription.finish(message)

    def requeue(self, message: nsq.Message, milliseconds: int) -> None:
        """Put the message back, to be delivered again after ``milliseconds``."""
        self.forget()
        self.subscription.requeue(message, milliseconds)

    def forget(self) -> None:
        """Count a message out: it is answered now, or nsqd has given it to somebody."""
        # RDY before the answer: nsqd would send another message in its place.
        self.in_flight -= 1
        self._tell()
        if not self.in_flight:
            self.idle.set()

    def leave(self) -> None:
        """Let nothing more come, also where nsqd counts less in flight than there is: a channel was emptied."""
        self.leaving, self.asked, self._ready = True, 0, 0
        self.subscription.ready(0)

    def _tell(self) -> None:
        wanted = self.in_flight + self.asked if self.asked else 0
        # Closed is as good while what is in flight uses RDY up.
        if wanted > self._ready or self._ready > self.in_flight + self.asked:
            self._ready = wanted
            self.subscription.ready(wanted)

    def coming(self, now: float) -> int:
        """Return how many messages may be on their way: that cannot be called back."""
        return self.asked if self.in_question_until > now else 0

    @property
    def in_question_until(self) -> float:
        """Until when a message may be on its way; the event loop's time, minus infinity if none is asked for."""
        if not self.asked:
            return -math.inf
        wait = _FIRST_MESSAGE_SECONDS if self.silent else _NEXT_MESSAGE_SECONDS
        return self.asked_since + wait + self.subscription.round_trip_seconds


@dataclass(eq=False)
class Turn:
    """A request's claim to a slot. It is ``ready`` when its handler may begin."""

    lane: str
    ready: bool = False
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Slots:
    """The slots of one worker and the connections that fill them.

    At most ``count`` requests run. With those that wait for a turn and those that are parked they are no more than
    ``count``, but for what was on its way when a slot was taken: at most one a connection.
    """

    def __init__(self, count: int, weights: Mapping[str, int]) -> None:
        self.count = count
        self.running = 0
        self._parked = 0
        self._fair = fair.FairQueue(weights)
        self._sources: dict[str, list[Source]] = {lane: [] for lane in weights}
        self._turns: dict[str, deque[Turn]] = {lane: deque() for lane in weights}
        self._next_step: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def configure(self, count: int, weights: Mapping[str, int]) -> None:
        """Go on with other slots, lanes or weights. What still waits of a lane that goes is not granted any more."""
        self.count = count
        self._fair.configure(weights)
        self._sources = {lane: self._sources.get(lane, []) for lane in weights}
        self._turns = {lane: self._turns.get(lane, deque()) for lane in weights}
        self.changed()

    # What the worker tells

    def connected(self, source: Source) -> None:
        """Ask this connection, too."""
        self._sources[source.lane].append(source)
        self.changed()

    def disconnected(self, source: Source) -> None:
        """Ask this connection no more: it is lost, or leaves."""
        if source in self._sources.get(source.lane, ()):
            self._sources[source.lane].remove(source)
            source.ask(0)
            self.changed()

    def claim(self, lane: str) -> Turn:
        """Return a claim to a slot."""
        turn = Turn(lane)
        self._turns[lane].append(turn)
        self.changed()
        return turn

    def ready(self, turn: Turn) -> None:
        """Let the turn come."""
        turn.ready = True
        self.changed()

    def release(self, turn: Turn) -> None:
        """Free the slot, or give up waiting for one."""
        if turn.granted.done() and not turn.granted.cancelled():
            self.running -= 1
        elif turn in self._turns.get(turn.lane, ()):
            self._turns[turn.lane].remove(turn)
        self.changed()

    def park(self, difference: int) -> None:
        """Count requests that wait here without a slot: no others come in their place."""
        self._parked += difference
        self.changed()

    def changed(self) -> None:
        """Look again, once the event loop has dealt with what else came."""
        if self._next_step is None:
            self._next_step = asyncio.get_running_loop().call_soon(self._step)

    # What is decided

    def _step(self) -> None:
        self._next_step = None
        now = asyncio.get_running_loop().time() + _TIMER_SLACK_SECONDS
        sources = [source for sources in self._sources.values() for source in sources]
        for source in sources:
            if source.asked and source.in_question_until <= now:
                source.silent = True
        self._ask(now)
        self._start(now)
        self._look_again_at(min((until for s in sources if (until := s.in_question_until) > now), default=None))

    def _look_again_at(self, when: float | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self.changed) if when is not None else None

    def _ask(self, now: float) -> None:
        """Ask the lanes whose turn it is for as much as free slots can start, and listen to those that were silent."""
        waiting = Counter({lane: len(turns) for lane, turns in self._turns.items()})
        room = self.count - self.running - self._parked
        more = self._more(waiting, room, now)
        has_room = room > waiting.total()
        for lane, sources in self._sources.items():
            # The host that was not asked for longest first.
            talking = sorted((source for source in sources if not source.silent), key=lambda source: source.asked_since)
            for number, source in enumerate(talking):
                share = (more[lane] + len(talking) - 1 - number) // len(talking)
                source.ask(source.coming(now) + share)
            for source in sources:
                if source.silent and (has_room or not source.coming(now)):
                    source.ask(1 if has_room else 0)

    def _more(self, waiting: Counter[str], room: int, now: float) -> Counter[str]:
        """Return ``lane -> messages`` to ask for: the next turns, less what waits here or is on its way already."""
        talking = {lane: [s for s in sources if not s.silent] for lane, sources in self._sources.items()}
        claims = {lane: math.inf if talking[lane] else waiting[lane] for lane in self._sources}
        left = waiting + Counter({lane: sum(s.coming(now) for s in sources) for lane, sources in talking.items()})
        budget = room - left.total()
        more: Counter[str] = Counter()
        for lane in self._fair.turns(claims, room):
            if left[lane] > 0:
                left[lane] -= 1
            elif budget > 0:
                more[lane] += 1
                budget -= 1
        return more

    def _start(self, now: float) -> None:
        """Give free slots to turns in the lanes' order, keeping those of messages that may be on their way."""
        if not any(turn.ready for turns in self._turns.values() for turn in turns):
            return
        claims = {
            lane: len(turns) + sum(source.coming(now) for source in self._sources[lane])
            for lane, turns in self._turns.items()
        }
        seen: Counter[str] = Counter()
        granted = []
        for lane in self._fair.turns(claims, self.count - self.running):
            if seen[lane] < len(self._turns[lane]):
                turn = self._turns[lane][seen[lane]]
                seen[lane] += 1
                if turn.ready and not turn.granted.done():
                    granted.append(turn)
        for turn in granted:
            self._turns[turn.lane].remove(turn)
            self._fair.started(turn.lane)
            self.running += 1
            turn.granted.set_result(None)
