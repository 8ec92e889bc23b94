"""Handlers that fail in every way: retries with a delay, then a dead letter; everything else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import handlers
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem

pytestmark = pytest.mark.acceptance

#: Does what the request's member "do" says, after it has noted that it runs.
OBEDIENT = """\
request=$(cat)
echo "$request" >> runs.log
case "$request" in
    *exit-1*) echo 'the end of stderr' >&2; exit 1 ;;
    *hang*) sleep 600 & echo $! >> grandchildren; sleep 600 ;;
    *killed*) echo 'about to die' >&2; kill -9 $$ ;;
    *rubbish*) echo 'this is no JSON' ;;
    *a-string*) echo '"a string"' ;;
    *two-objects*) echo '{} {}' ;;
    *nothing*) ;;
    *nul*) printf '{"text": "%su0000"}' '\\' ;;
    *not-utf8*) printf '{"text": "\\377"}' ;;
    *reject*) echo 'we do not do this' >&2; exit 65 ;;
    *retry-once*) if [ ! -e tried ]; then touch tried; exit 75; fi; printf '{"status": "second try"}' ;;
    *retry*) exit 75 ;;
    *noisy*) head -c 50000000 /dev/zero >&2; printf '{}' ;;
    *huge*) printf '{"text": "'; head -c 23000000 /dev/zero | tr '\\0' x; printf '"}' ;;
    *miss*) printf '{"status": "not found", "hit": false}' ;;
    *) printf '{"status": "fine"}' ;;
esac
"""
FAILING = ("exit-1", "hang", "killed", "rubbish", "a-string", "two-objects", "nothing", "not-utf8", "retry")
MAX_ATTEMPTS = 2


def test_handlers_that_fail_are_tried_again_and_end_as_dead_letters_and_the_rest_goes_on(
    make_system: MakeSystem,
) -> None:
    system = make_system(
        handler=("/bin/sh", "handler.sh"), slots=6, pool={"task_timeout_seconds": 1.5, "max_attempts": MAX_ATTEMPTS}
    )
    (system.pool_folder / "handler.sh").write_text(OBEDIENT, encoding="utf-8")
    system.setup()
    fine = [f"fine-{number}" for number in range(50)]
    system.send_requests([*FAILING, "reject", "huge", "nul", "retry-once", "noisy", "miss", *fine])
    system.start()

    system.wait_for_results([*fine, "retry-once", "noisy", "miss"], 60)
    letters = {letter["key"][2:-2]: letter for letter in system.wait_for_dead_letters(len(FAILING) + 3, 60)}
    assert set(letters) == {*FAILING, "reject", "huge", "nul"}

    runs = handlers.runs(system)
    for name in FAILING:
        assert letters[name]["reason"] == "attempts-exhausted", letters[name]
        assert letters[name]["attempts"] == MAX_ATTEMPTS, letters[name]
        assert letters[name]["request"] == {"file_id": name}
        assert letters[name]["from"] == "worker"
        assert runs[name] == MAX_ATTEMPTS
    assert "the end of stderr" in letters["exit-1"]["error"]
    assert "about to die" in letters["killed"]["error"]
    assert letters["reject"]["reason"] == "rejected"
    assert "we do not do this" in letters["reject"]["error"]
    assert runs["reject"] == 1
    assert letters["huge"]["reason"] == "result-too-large"
    assert letters["nul"]["reason"] in {"attempts-exhausted", "nul-character"}

    rows = {key[2:-2]: rest for key, *rest in system.rows("SELECT key, status, hit FROM job_result")}
    assert rows["miss"] == ["not found", False]
    assert rows["retry-once"] == ["second try", True]
    assert runs["retry-once"] == 2
    assert rows["noisy"] == ["success", True]
    assert rows["fine-0"] == ["fine", True]

    wait_until(system.outstanding, 10, "NSQ to hold nothing", accept=lambda left: left == 0)
    grandchildren = [int(pid) for pid in (system.pool_folder / "grandchildren").read_text().split()]
    assert len(grandchildren) == MAX_ATTEMPTS
    wait_until(lambda: handlers.living(grandchildren), 5, "no child left", accept=lambda pids: not pids)


def test_a_failed_request_waits_on_nsqd_before_it_is_tried_again(make_system: MakeSystem) -> None:
    system = make_system(handler=("/bin/false",), pool={"retry": {"base_seconds": 60, "cap_seconds": 60}})
    system.setup()
    system.start(system.bridge, system.worker)
    system.send_requests(range(20))
    # Full jitter: some wait less than others, and nearly all longer than this test.
    wait_until(lambda: system.channel()["deferred_count"], 30, "deferred requests", accept=lambda n: n >= 15)
    assert system.dead_letters() == []


def test_a_request_that_kills_its_worker_again_and_again_ends_as_a_dead_letter(make_system: MakeSystem) -> None:
    """A delivery counts even when nobody lived to say what came of it; three more may have been drains and pauses."""
    system = make_system(
        handler=("/bin/sh", "-c", 'request=$(cat); echo "$request" >> runs.log; sleep 600'), pool={"max_attempts": 1}
    )
    system.setup()
    system.send_requests(["deadly"])
    system.start(system.bridge, system.worker)
    for turn in (1, 2, 3, 4):
        wait_until(lambda: handlers.runs(system)["deadly"], 30, f"run {turn}", accept=lambda n, turn=turn: n == turn)
        system.worker.kill()
        system.worker.start()
    [letter] = system.wait_for_dead_letters(1, 30)
    assert letter["reason"] == "attempts-exhausted"
    assert handlers.runs(system)["deadly"] == 4


def test_a_handler_gets_its_request_as_it_was_sent_and_a_clean_place_to_run(make_system: MakeSystem) -> None:
    system = make_system(
        handler=("/bin/sh", "-c", 'cat > request.json; env > environment; pwd > place; printf "{}"'), slots=1
    )
    system.setup()
    system.start(system.bridge, system.worker)
    system.send([b'{"file_id":   "exact", "n": 1.50}'])
    wait_until(system.results, 30, "the result")
    received = (system.pool_folder / "request.json").read_bytes()
    assert received.startswith(b'{"file_id":   "exact", "n": 1.50')
    assert Path((system.pool_folder / "place").read_text().strip()) == system.pool_folder
    # What only the worker may know does not reach the user's program.
    assert "CREDENTIALS_DIRECTORY" not in (system.pool_folder / "environment").read_text()
    [result] = system.results()
    ours = result["_slowjobs"]
    assert {"v", "kind", "lane", "key", "position", "attempt", "worker", "started", "finished"} <= set(ours)
    assert (ours["v"], ours["kind"], ours["lane"], ours["key"]) == (1, system.kind, system.lane, '["exact"]')


def test_handlers_do_not_outlive_a_killed_worker(make_system: MakeSystem) -> None:
    system = make_system(handler=("/bin/sh", "-c", "echo $$ >> pids; exec sleep 600"), slots=2)
    system.setup()
    system.send(request(number) for number in range(2))
    system.start(system.bridge, system.worker)
    pids = wait_until(
        lambda: [int(pid) for pid in (system.pool_folder / "pids").read_text().split()],
        30,
        "two handlers",
        accept=lambda pids: len(pids) == 2,
    )
    system.worker.kill()
    wait_until(lambda: handlers.living(pids), 5, "no handler left", accept=lambda left: not left)
