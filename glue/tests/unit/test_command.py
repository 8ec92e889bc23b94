import asyncio
import time
from pathlib import Path

import pytest
import structlog

from slowjobs import kinds, outcomes, settings
from slowjobs.worker import command, processes

REQUEST = kinds.Request(b'{"file_id": "a"}', {}, '["a"]', '["a"]')


def handler(script: str, *, tmp_path: Path, seconds: float = 20) -> command.CommandHandler:
    pool = settings.Pool(
        name="pool",
        handler=settings.Handler(command=("/bin/sh", "-c", script)),
        result_topic="results",
        directory=tmp_path,
        task_timeout_seconds=seconds,
    )
    return command.CommandHandler(pool)


def run(script: str, *, tmp_path: Path, seconds: float = 20) -> outcomes.Outcome:
    return asyncio.run(handler(script, tmp_path=tmp_path, seconds=seconds).process(REQUEST))


def result(outcome: outcomes.Outcome) -> bytes:
    assert isinstance(outcome, outcomes.Result)
    return outcome.raw


def test_the_output_of_exit_0_is_the_result(tmp_path: Path) -> None:
    assert result(run("cat", tmp_path=tmp_path)) == b'{"file_id": "a"}'


@pytest.mark.parametrize(
    ("status", "kind"), [(75, outcomes.Retry), (69, outcomes.Busy), (65, outcomes.Reject), (1, outcomes.Failed)]
)
def test_an_exit_status_is_an_outcome_and_the_end_of_stderr_its_reason(
    status: int, kind: type[outcomes.Retry | outcomes.Busy | outcomes.Reject | outcomes.Failed], tmp_path: Path
) -> None:
    outcome = run(f"echo the archive is closed >&2; exit {status}", tmp_path=tmp_path)
    assert isinstance(outcome, kind)
    assert "the archive is closed" in outcome.reason


def test_what_a_command_prints_on_stderr_is_in_the_journal_with_its_request(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as events:
        run("echo one >&2; echo two >&2; printf three >&2; cat", tmp_path=tmp_path)
    lines = [(event["key"], event["line"]) for event in events if event["event"] == "handler.output"]
    assert lines == [('["a"]', "one"), ('["a"]', "two"), ('["a"]', "three")]


def test_a_command_that_writes_without_end_is_ended_and_rejected(tmp_path: Path) -> None:
    for _ in range(5):
        outcome = run("cat /dev/zero", tmp_path=tmp_path)
        assert isinstance(outcome, outcomes.Reject)
        assert outcome.code == "result-too-large"


def test_what_a_command_leaves_running_holds_up_nothing(tmp_path: Path) -> None:
    start = time.monotonic()
    assert result(run("sleep 15 & cat", tmp_path=tmp_path)) == b'{"file_id": "a"}'
    assert time.monotonic() - start < 10


def test_a_command_over_its_time_limit_is_ended_and_tried_again(tmp_path: Path) -> None:
    outcome = run("sleep 15", tmp_path=tmp_path, seconds=0.2)
    assert isinstance(outcome, outcomes.Failed)
    assert outcome.reason == "still running after 0.2 s: ended"


def test_a_command_that_does_not_die_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited_for: list[asyncio.Event] = []

    async def wait_for_killed(gone: asyncio.Event, process: int | None) -> None:
        waited_for.append(gone)
        await patiently(gone, process)

    patiently = processes.wait_for_killed
    monkeypatch.setattr(processes, "wait_for_killed", wait_for_killed)
    monkeypatch.setattr(processes, "kill_group", lambda _: None)
    monkeypatch.setattr(processes, "KILLED_SECONDS", 0.2)

    async def run() -> None:
        start = time.monotonic()
        outcome = await handler("exec sleep 15", tmp_path=tmp_path, seconds=0.2).process(REQUEST)
        assert isinstance(outcome, outcomes.Failed)
        assert time.monotonic() - start < 5
        await waited_for[0].wait()  # asyncio has killed it

    with structlog.testing.capture_logs() as events:
        asyncio.run(run())
    assert [event["event"] for event in events] == ["handler.not_ended"]


def test_a_command_that_a_signal_ends_has_failed_by_that_signal(tmp_path: Path) -> None:
    outcome = run("echo farewell >&2; kill -9 $$", tmp_path=tmp_path)
    assert isinstance(outcome, outcomes.Failed)
    assert outcome.reason == "ended by SIGKILL: farewell"
