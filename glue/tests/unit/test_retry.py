import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slowjobs import retry, settings


@given(st.integers(1, 100_000), st.floats(0.001, 890), st.floats(0.001, 890))
def test_a_delay_is_within_the_cap_and_below_nsqds_limit(attempt: int, base: float, cap: float) -> None:
    delay = retry.delay_seconds(settings.Retry(base_seconds=base, cap_seconds=cap), attempt)
    assert 0 <= delay <= min(cap, base * 2 ** min(attempt, 60))
    assert delay < 15 * 60


def test_what_is_told_to_wait_waits_that_long_and_does_not_come_back_all_at_once() -> None:
    drawn = {retry.at_least(60) for _ in range(50)}
    assert min(drawn) >= 60
    assert max(drawn) <= 66
    assert len(drawn) > 25


def test_delays_of_one_attempt_differ() -> None:
    policy = settings.Retry(base_seconds=5, cap_seconds=600)
    assert len({retry.delay_seconds(policy, 3) for _ in range(50)}) > 25


def test_a_server_that_is_away_is_waited_for_and_other_errors_are_not() -> None:
    tries = 0

    async def work() -> None:
        nonlocal tries
        async for attempt in retry.while_away("a server", ConnectionRefusedError):
            with attempt:
                tries += 1
                if tries == 1:
                    raise ConnectionRefusedError
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(work())
    assert tries == 2
