import asyncio
from collections.abc import Iterator

import pytest
import structlog

from slowjobs.worker import processes


@pytest.fixture
def events() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as captured:
        yield captured  # type: ignore[misc]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(events: list[structlog.typing.EventDict]) -> list[str]:
    return [event["line"] for event in events if event["event"] == "handler.output"]


def test_lines_come_whole_however_they_were_written(events: list[structlog.typing.EventDict]) -> None:
    lines = processes.Lines(processes.Journal(), key="k")
    for part in (b"on", b"e\ntwo\n\n", b" \nth", b"ree"):
        lines.feed(part)
    lines.finish()
    assert shown(events) == ["one", "two", "three"]
    assert {event["key"] for event in events} == {"k"}
    assert lines.last == "three"


def test_a_long_line_is_cut(events: list[structlog.typing.EventDict]) -> None:
    lines = processes.Lines(processes.Journal())
    for _ in range(100):
        lines.feed(b"x" * 10_000)
    lines.feed(b"\nnext\n")
    assert shown(events) == ["x" * processes.LINE_BYTES + "…", "next"]


def test_no_character_ends_a_line_for_the_journal_or_hides_it(events: list[structlog.typing.EventDict]) -> None:
    processes.Lines(processes.Journal()).feed(b"a\0<3>b\x1b[2Kc\xff\td\r\n")
    assert shown(events) == ["a\\x00<3>b\\x1b[2Kc\\xff\td"]


def test_a_flood_is_left_out_with_a_word_and_lines_come_again_after_it(
    events: list[structlog.typing.EventDict],
) -> None:
    clock = Clock()
    lines = processes.Lines(processes.Journal(clock))
    for _ in range(10):
        lines.feed(b"y\n" * 30_000)
    assert 0 < len(shown(events)) < 5000
    assert [event["event"] for event in events].count("handler.output_left_out") == 1
    clock.now += 60
    events.clear()
    lines.feed(b"quiet again\n")
    assert shown(events) == ["quiet again"]


def test_lines_are_left_out_with_a_word_only_when_there_are_too_many(
    events: list[structlog.typing.EventDict],
) -> None:
    lines = processes.Lines(processes.Journal())
    lines.feed(b"y\n" * 1000)
    assert [event["event"] for event in events] == ["handler.output"] * 1000
    lines.feed(b"one more\n")
    lines.feed(b"and more\n")
    assert [event["event"] for event in events[1000:]] == ["handler.output_left_out"]


def test_waiting_ends_in_time_also_in_a_task_that_was_cancelled() -> None:
    async def wait() -> bool:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await processes.wait([asyncio.Event()], 0.05)
        return True

    async def run() -> bool:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        return await waiting

    assert not asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "text"), [(0, "exit 0"), (3, "exit 3"), (-9, "ended by SIGKILL"), (-40, "ended by signal 40")]
)
def test_an_end_is_told_by_status_or_signal(status: int, text: str) -> None:
    assert processes.how_it_ended(status) == text
