import asyncio
import time
from pathlib import Path

from slowjobs import command, kinds, outcomes, settings


def run(script: str, *, tmp_path: Path, seconds: float = 20) -> outcomes.Outcome:
    pool = settings.Pool(
        name="pool",
        handler=settings.Handler(command=("/bin/sh", "-c", script)),
        result_topic="results",
        directory=tmp_path,
        task_timeout_seconds=seconds,
    )
    return asyncio.run(command.CommandHandler(pool).process(kinds.Request(b'{"file_id": "a"}', {}, '["a"]')))


def test_the_output_of_exit_0_is_the_result(tmp_path: Path) -> None:
    assert run("cat", tmp_path=tmp_path) == outcomes.Result(b'{"file_id": "a"}')


def test_a_command_that_writes_without_end_is_ended_and_rejected(tmp_path: Path) -> None:
    for _ in range(5):
        outcome = run("cat /dev/zero", tmp_path=tmp_path)
        assert isinstance(outcome, outcomes.Reject)
        assert outcome.reason == "result-too-large"


def test_what_a_command_leaves_running_holds_up_nothing(tmp_path: Path) -> None:
    start = time.monotonic()
    assert run("sleep 15 & cat", tmp_path=tmp_path) == outcomes.Result(b'{"file_id": "a"}')
    assert time.monotonic() - start < 10


def test_a_command_over_its_time_limit_is_ended_and_tried_again(tmp_path: Path) -> None:
    outcome = run("sleep 15", tmp_path=tmp_path, seconds=0.2)
    assert outcome == outcomes.Retry("still running after 0.2 s: ended")
