"""Python handlers in real child processes, without a queue."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from slowjobs import kafka, kinds, outcomes, settings
from slowjobs.worker import handler
from support import handlers
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "obedient.py").write_text(handlers.OBEDIENT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def events() -> Iterator[list[structlog.typing.EventDict]]:
    """Return what the journal gets."""
    with structlog.testing.capture_logs() as captured:
        yield captured  # type: ignore[misc]


def pool(folder: Path, *, python: str = "obedient:Obedient", slots: int = 1, **others: Any) -> settings.Pool:
    handler_options = {name: others.pop(name) for name in ("preload", "options") if name in others}
    return settings.Pool(
        name="pool",
        handler=settings.Handler(python=python, interpreter=Path(sys.executable), **handler_options),
        result_topic="results",
        directory=folder,
        slots=slots,
        **others,
    )


def request(do: str, key: str = "a", **members: object) -> kinds.Request:
    document = {"do": do, **members}
    return kinds.Request(json.dumps(document).encode(), document, json.dumps([key]), json.dumps([key]))


@asynccontextmanager
async def started(of: settings.Pool) -> AsyncIterator[handler.Handler]:
    made = handler.make(of)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def tries(of: settings.Pool, *requests: kinds.Request) -> list[outcomes.Outcome]:
    """Return what comes of ``requests``, one after the other."""

    async def run() -> list[outcomes.Outcome]:
        async with started(of) as python:
            return [await python.process(one) for one in requests]

    return asyncio.run(run())


def answer(outcome: outcomes.Outcome) -> dict[str, Any]:
    assert isinstance(outcome, outcomes.Result), vars(outcome)
    document: dict[str, Any] = json.loads(outcome.raw)
    return document


def failure(outcome: outcomes.Outcome) -> str:
    assert isinstance(outcome, outcomes.Failed), vars(outcome)
    return outcome.reason


def lines(events: list[structlog.typing.EventDict]) -> list[tuple[str | None, str]]:
    return [(event["key"], event["line"]) for event in events if event["event"] == "handler.output"]


def noted(folder: Path, name: str, count: int) -> list[int]:
    """Wait for ``count`` process ids in a file that handlers write."""
    return wait_until(
        lambda: [int(word) for word in (folder / name).read_text().split()],
        10,
        f"{count} process ids in {name}",
        accept=lambda pids: len(pids) >= count,
    )


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: handlers.living(pids), 1, "no process left", accept=lambda left: not left)


def nursery(worker: int | None = None) -> int:
    """Return the process that the children of ``worker``, by default this test, are forked from."""
    worker = worker or os.getpid()
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text(encoding="utf-8").split()
    [found] = [int(pid) for pid in children if "slowjobs.worker.child" in command_line(int(pid))]
    return found


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


# What a handler answers


def test_the_dict_that_a_handler_returns_is_the_result(folder: Path) -> None:
    options = {"database": "db1", "depth": 3}
    [outcome] = tries(pool(folder, options=options), request("echo", text="ü"))
    assert answer(outcome) == {"request": {"do": "echo", "text": "ü"}, "options": options}
    assert isinstance(outcome, outcomes.Result)
    assert "ü".encode() in outcome.raw


def test_a_handler_gets_the_key_and_runs_in_the_pools_folder_without_the_workers_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    [outcome] = tries(pool(folder), request("where", key="k"))
    place = answer(outcome)
    assert (place["cwd"], place["path"]) == (str(folder), str(folder))
    assert "CREDENTIALS_DIRECTORY" not in place["environment"]
    assert (folder / "runs.log").read_text(encoding="utf-8").split(maxsplit=1)[1].strip() == '["k"]'


def test_what_a_handler_does_not_want_is_skipped(folder: Path) -> None:
    unwanted, wanted = tries(pool(folder, python="obedient:Choosy"), request("unwanted"), request("nothing"))
    assert isinstance(unwanted, outcomes.Skipped)
    assert answer(wanted)


def test_a_handler_says_retry_busy_and_reject_itself(folder: Path) -> None:
    retry, later, busy, reject = tries(
        pool(folder),
        request("raise_", what="outcomes.Retry(2.5, 'not yet')"),
        request("raise_", what="outcomes.Retry()"),
        request("raise_", what="outcomes.Busy(delay=7, reason='full')"),
        request("raise_", what="outcomes.Reject('never', code='not-ours')"),
    )
    assert isinstance(retry, outcomes.Retry)
    assert (retry.delay, retry.reason) == (2.5, "not yet")
    assert isinstance(later, outcomes.Retry)
    assert later.delay is None
    assert isinstance(busy, outcomes.Busy)
    assert (busy.delay, busy.reason) == (7, "full")
    assert isinstance(reject, outcomes.Reject)
    assert (reject.reason, reject.code) == ("never", "not-ours")


@pytest.mark.parametrize(
    ("do", "what", "reason"),
    [
        ("raise_", "ValueError('no such page')", "ValueError: no such page"),
        ("raise_", "SystemExit(3)", "SystemExit: 3"),
        ("raise_", "KeyboardInterrupt()", "KeyboardInterrupt"),
        ("raise_", "ValueError('half a pair: ' + chr(0xd800))", "half a pair: \\ud800"),
        ("raise_", "ValueError('long ' * 100000 + 'end')", "long end"),
        ("raise_", "outcomes.Retry(float('nan'))", "delay"),
        ("return_", "[1]", "returned list, expected a dict"),
        ("return_", "None if False else 3", "returned int, expected a dict"),
        ("return_", "{'n': float('nan')}", "ValueError"),
        ("return_", "{'when': object()}", "not JSON serializable"),
        ("return_", "{'text': chr(0xd800)}", "UnicodeEncodeError"),
    ],
)
def test_an_unexpected_error_is_one_failed_try_and_the_child_goes_on(
    do: str, what: str, reason: str, folder: Path
) -> None:
    before, failed, after = tries(pool(folder), request("nothing"), request(do, what=what), request("nothing"))
    assert reason in failure(failed)
    assert len(failure(failed)) <= 2000
    assert answer(before)["pid"] == answer(after)["pid"]


def test_a_result_too_large_for_kafka_is_rejected(folder: Path) -> None:
    largest = kafka.MAX_BODY_BYTES - len('{"text": ""}')
    fits, large = tries(
        pool(folder), *(request("return_", what=f"{{'text': 'x' * {size}}}") for size in (largest, largest + 1))
    )
    assert len(answer(fits)["text"]) == largest
    assert isinstance(large, outcomes.Reject)
    assert large.code == "result-too-large"


def test_a_request_of_many_megabytes_arrives_whole(folder: Path) -> None:
    [outcome] = tries(pool(folder), request("echo", text="x" * 10_000_000))
    assert len(answer(outcome)["request"]["text"]) == 10_000_000


# Processes that end


@pytest.mark.parametrize(
    ("do", "reason"), [(request("exit", status=3), "exit 3"), (request("segfault"), "ended by SIGSEGV")]
)
def test_a_child_that_dies_is_one_failed_try_and_the_others_go_on(do: kinds.Request, reason: str, folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, slots=2)) as python:
            beside = asyncio.create_task(python.process(request("sleep", seconds=0.3)))
            await asyncio.sleep(0)
            assert reason in failure(await python.process(do))
            assert answer(await python.process(request("nothing")))
            assert answer(await beside)

    asyncio.run(run())


def test_a_try_over_its_time_limit_is_ended_with_all_that_it_has_started(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, task_timeout_seconds=0.5)) as python:
            start = time.monotonic()
            assert "still running after 0.5 s" in failure(await python.process(request("hang", pids=3)))
            assert time.monotonic() - start < 1.5
            pids = noted(folder, "pids.log", 3)
            await asyncio.to_thread(wait_until_gone, pids)
            assert answer(await python.process(request("nothing")))["pid"] not in pids

    asyncio.run(run())


def test_a_cancelled_try_is_ended_with_all_that_it_has_started(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder)) as python:
            trying = asyncio.create_task(python.process(request("hang", pids=3)))
            pids = await asyncio.to_thread(noted, folder, "pids.log", 3)
            trying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await trying
            assert handlers.living(noted(folder, "made.log", 1)) == []
            await asyncio.to_thread(wait_until_gone, pids)
            assert answer(await python.process(request("nothing")))

    asyncio.run(run())


def test_closing_leaves_nothing_behind(folder: Path) -> None:
    async def run() -> list[int]:
        async with started(pool(folder, slots=3)) as python:
            await python.process(request("leave-behind", pids=3))
            return [*noted(folder, "pids.log", 3), *noted(folder, "made.log", 3), nursery()]

    wait_until_gone(asyncio.run(run()))


#: a worker of its own, which can be killed: it runs one request that hangs.
WORKER = """
import asyncio, sys
from pathlib import Path
sys.path += sys.argv[2:]
import test_python_handlers as tests

async def run():
    async with tests.started(tests.pool(Path(sys.argv[1]), slots=2)) as python:
        await python.process(tests.request("hang", pids=3))

asyncio.run(run())
"""


@contextmanager
def own_worker(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    tests = Path(__file__).parent
    with subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(tests), str(tests.parent)]) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def test_nothing_outlives_a_killed_worker(folder: Path) -> None:
    starting = (
        "import subprocess\n"
        "with open('import.log', 'w') as log:\n"
        "    log.write(str(subprocess.Popen(['sleep', '600']).pid))\n"
    )
    (folder / "obedient.py").write_text(starting + handlers.OBEDIENT, encoding="utf-8")
    with own_worker(folder) as worker:
        pids = [*noted(folder, "pids.log", 3), *noted(folder, "made.log", 2), *noted(folder, "import.log", 1)]
        worker.kill()
        wait_until_gone(pids)


def test_nothing_outlives_a_killed_worker_whose_children_end_before_the_nursery_sees_its_end(folder: Path) -> None:
    with own_worker(folder) as worker:
        pids = noted(folder, "pids.log", 3)
        idle = set(noted(folder, "made.log", 2)) - set(pids)
        late = nursery(worker.pid)
        os.kill(late, signal.SIGSTOP)
        worker.kill()
        try:
            wait_until_gone(list(idle))
        finally:
            os.kill(late, signal.SIGCONT)
        wait_until_gone([late, *pids])


def test_children_go_with_worker_and_nursery_that_are_killed_together(folder: Path) -> None:
    with own_worker(folder) as worker:
        children = noted(folder, "made.log", 2)
        worker.send_signal(signal.SIGSTOP)  # it is not there to end anything either
        os.kill(nursery(worker.pid), signal.SIGKILL)
        try:
            wait_until_gone(children)
        finally:
            for child in children:  # what they have started stays: a service's end is systemd's then
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)


def test_a_worker_that_is_killed_while_its_handler_is_imported_leaves_nothing(folder: Path) -> None:
    slow = "import os, time\nopen('pids.log', 'w').write(f'{os.getpid()}')\ntime.sleep(60)\n"
    (folder / "obedient.py").write_text(slow, encoding="utf-8")
    with own_worker(folder) as worker:
        pids = noted(folder, "pids.log", 1)
        worker.kill()
        wait_until_gone(pids)


def test_when_the_nursery_is_killed_running_tries_fail_nothing_is_left_and_the_next_one_runs(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, slots=2)) as python:
            trying = asyncio.create_task(python.process(request("hang", pids=3)))
            pids = await asyncio.to_thread(noted, folder, "pids.log", 3)
            pids += await asyncio.to_thread(noted, folder, "made.log", 2)
            os.kill(nursery(), signal.SIGKILL)
            assert "ended by SIGKILL" in failure(await trying)
            await asyncio.to_thread(wait_until_gone, pids)
            assert answer(await python.process(request("nothing")))["pid"] not in pids

    asyncio.run(run())


def test_a_signal_for_the_worker_ends_no_handler(folder: Path) -> None:
    """systemd and terminals may send them to all processes of a service."""

    async def run() -> None:
        async with started(pool(folder)) as python:
            beside = asyncio.create_task(python.process(request("sleep", seconds=0.3)))
            await asyncio.sleep(0)
            os.kill(nursery(), signal.SIGTERM)
            os.kill(nursery(), signal.SIGINT)
            assert answer(await beside)
            assert answer(await python.process(request("nothing")))

    asyncio.run(run())


def test_a_process_that_a_handler_forks_does_not_answer_for_it(folder: Path) -> None:
    forking, after = tries(pool(folder), request("fork"), request("nothing"))
    assert answer(forking)["pid"] == answer(after)["pid"]


# Children that make room for others


def test_a_child_makes_room_for_the_next_after_so_many_tries(folder: Path) -> None:
    outcomes_ = tries(pool(folder, recycle=settings.Recycle(tasks=2)), *[request("nothing")] * 5)
    pids = [answer(outcome)["pid"] for outcome in outcomes_]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_a_child_makes_room_for_the_next_when_it_holds_too_much_memory(folder: Path) -> None:
    hoard = request("hoard-memory", bytes=30_000_000)
    outcomes_ = tries(pool(folder, recycle=settings.Recycle(megabytes=60)), *[hoard] * 4)
    pids = [answer(outcome)["pid"] for outcome in outcomes_]
    assert pids[0] == pids[1]
    assert pids[2] == pids[3] != pids[1]


def test_the_next_child_is_ready_beside_the_work(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, slots=1, recycle=settings.Recycle(tasks=1))) as python:
            await python.process(request("nothing"))
            await asyncio.to_thread(noted, folder, "made.log", 2)

    asyncio.run(run())


def test_what_a_recycled_child_has_started_is_ended(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, recycle=settings.Recycle(tasks=1))) as python:
            assert answer(await python.process(request("leave-behind", pids=3)))
            await asyncio.to_thread(wait_until_gone, noted(folder, "pids.log", 3))

    asyncio.run(run())


def test_a_recycled_child_that_does_not_end_by_itself_is_ended(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, recycle=settings.Recycle(tasks=1))) as python:
            pid = answer(await python.process(request("linger")))["pid"]
            await asyncio.to_thread(
                wait_until, lambda: handlers.living([pid]), 5, "its end", accept=lambda left: not left
            )

    asyncio.run(run())


def test_new_settings_change_the_children_and_leave_what_runs_alone(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, slots=3)) as python:
            idle = set(await asyncio.to_thread(noted, folder, "made.log", 3))
            beside = asyncio.create_task(python.process(request("sleep", seconds=0.5)))
            await asyncio.sleep(0)
            python.configure(pool(folder, slots=1, task_timeout_seconds=0.1))
            [left] = await asyncio.to_thread(
                wait_until, lambda: handlers.living(idle), 3, "one child", accept=lambda left: len(left) == 1
            )
            assert answer(await beside)["pid"] == left
            assert "still running after 0.1 s" in failure(await python.process(request("hang", pids=1)))
            python.configure(pool(folder, slots=4))
            made = await asyncio.to_thread(noted, folder, "made.log", 3 + 4)
            assert len(handlers.living(made)) == 4

    asyncio.run(run())


# Loading


def test_a_class_is_imported_once_for_all_children_and_once_in_each_without_preload(folder: Path) -> None:
    (folder / "counting.py").write_text(
        "import os\n"
        "open('imports.log', 'a').write('x')\n"
        "class Counting:\n"
        "    def process(self, request, key=None):\n"
        "        return {}\n",
        encoding="utf-8",
    )
    for preload, imports in ((True, 1), (False, 3)):
        (folder / "imports.log").unlink(missing_ok=True)
        recycle = settings.Recycle(tasks=1)
        tries(pool(folder, python="counting:Counting", preload=preload, recycle=recycle), *[request("-")] * 3)
        # The last try's successor may be there as well, or may not.
        assert (folder / "imports.log").read_text(encoding="utf-8") in {"x" * imports, "x" * (imports + (not preload))}


def test_without_preload_a_child_is_the_same_in_every_other_way(folder: Path) -> None:
    async def run() -> None:
        async with started(pool(folder, preload=False, task_timeout_seconds=2, options={"a": 1}, slots=2)) as python:
            assert answer(await python.process(request("where")))["path"] == str(folder)
            assert answer(await python.process(request("echo")))["options"] == {"a": 1}
            child = answer(await python.process(request("nothing")))["pid"]
            assert "nursery" not in command_line(child), "forked, and not a new interpreter"
            assert "ended by SIGSEGV" in failure(await python.process(request("segfault")))
            assert "still running" in failure(await python.process(request("hang", pids=3)))
            wait_until_gone(noted(folder, "pids.log", 3))
            trying = asyncio.create_task(python.process(request("sleep", seconds=600)))
            made = await asyncio.to_thread(noted, folder, "made.log", 4)
            os.kill(nursery(), signal.SIGKILL)
            assert "ended by SIGKILL" in failure(await trying)
            await asyncio.to_thread(wait_until_gone, made)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("preload", "python", "text", "reason"),
    [
        (True, "absent:Handler", "", "No module named 'absent'"),
        (True, "broken:Handler", "import no_such_module", "No module named 'no_such_module'"),
        (False, "broken:Handler", "import no_such_module", "No module named 'no_such_module'"),
        (True, "broken:Handler", "def", "SyntaxError"),
        (True, "broken:Handler", "class Other: pass", "no attribute 'Handler'"),
        (True, "broken:Handler", "raise SystemExit(3)", "SystemExit: 3"),
        (True, "broken:Handler", "import os; os._exit(3)", "exit 3"),
        (False, "broken:Handler", "import os; os._exit(3)", "exit 3"),
    ],
)
def test_a_handler_that_cannot_be_imported_is_a_mistake_in_the_configuration(
    preload: bool, python: str, text: str, reason: str, folder: Path
) -> None:
    (folder / "broken.py").write_text(text, encoding="utf-8")
    with pytest.raises(settings.ConfigurationError) as raised:
        tries(pool(folder, python=python, preload=preload))
    assert python in str(raised.value)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("preload", "text", "reason"),
    [
        (True, "import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        (False, "import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        (True, "import os; os.fork = lambda: os.open('/absent', 0)", "exit 71"),
    ],
    ids=["nursery killed", "child killed", "no process to be had"],
)
def test_what_another_start_may_mend_is_no_mistake_in_the_configuration(
    preload: bool, text: str, reason: str, folder: Path
) -> None:
    (folder / "broken.py").write_text(f"{text}\nclass Handler: pass", encoding="utf-8")
    with pytest.raises(ChildProcessError, match=reason):
        tries(pool(folder, python="broken:Handler", preload=preload))


def test_a_start_without_descriptors_is_no_mistake_in_the_configuration(folder: Path) -> None:
    async def run() -> None:
        python = handler.make(pool(folder))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await python.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    asyncio.run(run())


def test_a_start_is_given_up_at_once_while_the_handler_is_imported(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import os, time\nopen('pids.log', 'w').write(f'{os.getpid()}')\ntime.sleep(60)\n", encoding="utf-8"
    )

    async def run() -> None:
        python = handler.make(pool(folder, python="slow:Handler"))
        starting = asyncio.create_task(python.start())
        pids = await asyncio.to_thread(noted, folder, "pids.log", 1)
        starting.cancel()
        start = time.monotonic()
        await python.close()
        assert time.monotonic() - start < 2
        assert handlers.living(pids) == []

    asyncio.run(run())


def test_an_interpreter_without_slowjobs_is_a_mistake_in_the_configuration(folder: Path) -> None:
    bare = folder / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    of = pool(folder)
    handler_ = of.handler.model_copy(update={"interpreter": bare})
    with pytest.raises(settings.ConfigurationError, match="slowjobs"):
        tries(of.model_copy(update={"handler": handler_}))


@pytest.mark.parametrize("preload", [True, False])
def test_a_handler_that_cannot_be_made_fails_that_try_and_is_made_for_the_next(preload: bool, folder: Path) -> None:
    async def run() -> None:
        (folder / "no-database").touch()
        async with started(pool(folder, preload=preload)) as python:
            for _ in range(2):
                assert "ConnectionError: no database" in failure(await python.process(request("nothing")))
            (folder / "no-database").unlink()
            assert answer(await python.process(request("nothing")))

    asyncio.run(run())


def test_threads_of_an_import_are_warned_of(folder: Path, events: list[structlog.typing.EventDict]) -> None:
    (folder / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "from obedient import Obedient\n",
        encoding="utf-8",
    )
    assert answer(*tries(pool(folder, python="threaded:Obedient"), request("nothing")))
    [warning] = [event for event in events if event["event"] == "handler.threads"]
    assert "preload to false" in warning["advice"]


# Output


def test_what_a_handler_and_its_children_print_is_in_the_journal_with_the_request(
    folder: Path, events: list[structlog.typing.EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    tries(pool(folder), request("print_", key="1", text="one\ntwo"), request("print_", key="2", text="three"))
    assert lines(events) == [
        *(('["1"]', text) for text in ("one", "two", "to stderr", "from a child", "unfinished")),
        *(('["2"]', text) for text in ("three", "to stderr", "from a child", "unfinished")),
    ]


def test_the_traceback_of_an_unexpected_error_is_in_the_journal(
    folder: Path, events: list[structlog.typing.EventDict]
) -> None:
    tries(pool(folder), request("raise_", what="ValueError('bad')"))
    printed = [line for _, line in lines(events)]
    assert printed[0].startswith("Traceback")
    assert "obedient.py" in printed[1]
    assert printed[-1] == "ValueError: bad"


@pytest.mark.parametrize(
    "disturbing",
    [
        request("write", bytes=[0, 255, 10, 13], times=1000),
        request("write", bytes=[120], times=50_000_000),
        request("close-output"),
        request("flood", lines=1_000_000),
    ],
    ids=["binary", "one endless line", "closed", "flood"],
)
def test_no_output_breaks_or_holds_up_anything(
    disturbing: kinds.Request, folder: Path, events: list[structlog.typing.EventDict]
) -> None:
    async def run() -> None:
        async with started(pool(folder, slots=2)) as python:
            longest, last = 0.0, time.monotonic()
            trying = asyncio.create_task(python.process(disturbing))
            while not trying.done():
                await asyncio.sleep(0.01)
                last, before = time.monotonic(), last
                longest = max(longest, last - before)
            assert answer(await trying)
            assert longest < 0.5, "the worker was held up"
            assert answer(await python.process(request("nothing")))

    asyncio.run(run())
    printed = lines(events)
    assert len(printed) < 2000
    assert all(len(line) < 4 * 8192 + 10 for _, line in printed)
    assert all(line.isprintable() for _, line in printed)
