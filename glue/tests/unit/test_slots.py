"""What a worker asks for, and which request starts. What comes of it with a real nsqd: acceptance/test_lanes.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from slowjobs import nsq
from slowjobs.worker.slots import Slots, Source, Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: no machine is so busy that a decision takes as long.
FAR_AWAY_SECONDS = 4.0
MESSAGE = nsq.Message(b"0123456789abcdef", b"{}", 1)


class Wire:
    """Records what is sent on a connection."""

    round_trip_seconds = FAR_AWAY_SECONDS
    host = "svc506"

    def __init__(self) -> None:
        self.sent: list[str] = []

    def ready(self, count: int) -> None:
        self.sent.append(f"RDY {count}")

    def finish(self, _: nsq.Message) -> None:
        self.sent.append("FIN")


class Pool:
    """Slots with a connection for each lane."""

    def __init__(self, count: int, weights: dict[str, int]) -> None:
        self.slots = Slots(count, weights)
        self.wires = {lane: Wire() for lane in weights}
        self.sources = {lane: Source(lane, cast("nsq.Subscription", wire)) for lane, wire in self.wires.items()}
        for source in self.sources.values():
            self.slots.connected(source)

    def deliver(self, lane: str) -> Turn:
        """Let a message come that may start at once."""
        self.sources[lane].arrived()
        turn = self.slots.claim(lane)
        self.slots.ready(turn)
        return turn

    async def fall_silent(self) -> None:
        """Let the time pass in which the lanes could have answered."""
        for wire in self.wires.values():
            wire.round_trip_seconds = 0
        self.slots.changed()
        await asyncio.sleep(0.05)
        for wire in self.wires.values():
            wire.round_trip_seconds = FAR_AWAY_SECONDS

    def asked(self) -> dict[str, int]:
        return {lane: source.asked for lane, source in self.sources.items()}


def _run(test: Callable[[], Awaitable[None]]) -> None:
    async def _bounded() -> None:
        async with asyncio.timeout(5):
            await test()

    asyncio.run(_bounded())


async def _decided() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_free_slots_are_shared_out_by_weight_and_no_more_is_asked_for() -> None:
    async def _test() -> None:
        pool = Pool(4, {"heavy": 3, "light": 1})
        await _decided()
        assert pool.asked() == {"heavy": 3, "light": 1}

    _run(_test)


def test_silent_lanes_are_listened_to_and_the_others_get_their_slots() -> None:
    async def _test() -> None:
        pool = Pool(4, {"heavy": 3, "light": 1})
        await _decided()
        pool.deliver("light")
        await pool.fall_silent()
        assert pool.slots.running == 1
        assert pool.asked() == {"heavy": 1, "light": 1}, "one message of each lane that is silent by now"

    _run(_test)


def test_without_a_free_slot_nothing_is_asked_for() -> None:
    async def _test() -> None:
        pool = Pool(1, {"heavy": 3, "light": 1})
        await pool.fall_silent()
        assert pool.asked() == {"heavy": 1, "light": 1}, "both are silent"
        turn = pool.deliver("light")
        await pool.fall_silent()
        assert turn.granted.done()
        assert pool.asked() == {"heavy": 0, "light": 0}
        assert pool.wires["heavy"].sent[-1] == "RDY 0"

    _run(_test)


def test_rdy_is_lowered_before_the_answer_that_would_let_another_message_come() -> None:
    async def _test() -> None:
        pool = Pool(1, {"only": 1})
        await _decided()
        pool.deliver("only")
        await _decided()
        pool.sources["only"].finish(MESSAGE)
        assert pool.wires["only"].sent == ["RDY 1", "RDY 0", "FIN"]

    _run(_test)


def test_a_message_of_a_lane_whose_turn_it_is_starts_before_one_that_came_first() -> None:
    async def _test() -> None:
        pool = Pool(1, {"heavy": 3, "light": 1})
        running = pool.deliver("light")
        await pool.fall_silent()
        assert running.granted.done()
        # Silent until now: at the release it is asked together with the lane that has work, and is waited for.
        pool.slots.release(running)
        await _decided()
        assert pool.asked()["heavy"] == 1
        first = pool.deliver("light")
        await _decided()
        assert not first.granted.done()
        second = pool.deliver("heavy")
        await _decided()
        assert second.granted.done()
        assert not first.granted.done()

    _run(_test)


def test_a_parked_request_keeps_another_from_coming() -> None:
    async def _test() -> None:
        pool = Pool(2, {"only": 1})
        await _decided()
        busy = pool.deliver("only")
        await _decided()
        pool.slots.park(1)
        pool.slots.release(busy)
        await _decided()
        assert pool.slots.running == 0
        assert pool.asked() == {"only": 1}
        pool.slots.park(-1)
        await _decided()
        assert pool.asked() == {"only": 2}

    _run(_test)


def test_a_turn_that_is_given_up_frees_what_it_claimed() -> None:
    async def _test() -> None:
        pool = Pool(1, {"only": 1})
        held, waiting = pool.deliver("only"), pool.deliver("only")
        await _decided()
        assert (held.granted.done(), waiting.granted.done()) == (True, False)
        pool.slots.release(waiting)
        pool.slots.release(held)
        await _decided()
        assert pool.slots.running == 0
        assert pool.asked() == {"only": 1}

    _run(_test)


def test_two_hosts_of_a_lane_take_turns_with_the_last_free_slot() -> None:
    async def _test() -> None:
        pool = Pool(1, {"only": 1})
        other = Source("only", cast("nsq.Subscription", Wire()))
        pool.slots.connected(other)
        asked = []
        for _ in range(4):
            await _decided()
            [source] = [source for source in (pool.sources["only"], other) if source.asked]
            asked.append(source)
            source.arrived()
            turn = pool.slots.claim("only")
            pool.slots.ready(turn)
            await _decided()
            pool.slots.release(turn)
        assert asked[0] is not asked[1]
        assert asked[:2] == asked[2:]

    _run(_test)
