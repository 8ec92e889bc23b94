"""Python handlers in a whole system: what their tries become, and who goes with whom."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from support import handlers
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

MAX_ATTEMPTS = 2


def _system(make_system: MakeSystem, **pool: Any) -> System:
    handler = {"python": "obedient:Choosy", "interpreter": sys.executable, "options": {"name": "ours"}}
    system = make_system(slots=4, pool={"handler": handler, "max_attempts": MAX_ATTEMPTS, **pool})
    (system.pool_folder / "obedient.py").write_text(handlers.OBEDIENT, encoding="utf-8")
    return system


def test_each_try_of_a_python_handler_becomes_what_it_should(make_system: MakeSystem) -> None:
    system = _system(make_system, task_timeout_seconds=1.5, retry_statuses=["blocked"], recycle={"tasks": 10})
    system.setup()
    fine = [f"fine-{number}" for number in range(100)]
    system.send_requests(fine, do="echo")
    system.send_requests(["unwanted"], do="unwanted")
    system.send_requests(["rejected"], do="raise_", what="outcomes.Reject('we do not do this', code='not-ours')")
    dying = {
        "raised": {"do": "raise_", "what": "ValueError('no such page')"},
        "retried": {"do": "raise_", "what": "outcomes.Retry(0.1, 'not yet')"},
        "crashed": {"do": "segfault"},
        "exited": {"do": "exit", "status": 3},
        "hung": {"do": "hang", "pids": 3},
        "no-object": {"do": "return_", "what": "[1]"},
        "bad-status": {"do": "return_", "what": "{'status': 7}"},
        "blocked": {"do": "return_", "what": "{'status': 'blocked'}"},
    }
    for name, members in dying.items():
        system.send_requests([name], **members)
    system.start()

    system.wait_for_results(fine, 60)
    letters = {letter["key"][2:-2]: letter for letter in system.wait_for_dead_letters(len(dying) + 1, 60)}
    assert set(letters) == {"rejected", *dying}
    assert (letters["rejected"]["reason"], letters["rejected"]["attempts"]) == ("not-ours", 1)
    assert "we do not do this" in letters["rejected"]["error"]
    for name, part in {
        "raised": "ValueError: no such page",
        "retried": "not yet",
        "crashed": "SIGSEGV",
        "exited": "exit 3",
        "hung": "still running after 1.5 s",
        "no-object": "expected a dict",
        "bad-status": "'status'",
        "blocked": "blocked",
    }.items():
        assert letters[name]["reason"] == "attempts-exhausted", letters[name]
        assert letters[name]["attempts"] == MAX_ATTEMPTS, letters[name]
        assert part in letters[name]["error"], letters[name]
    [echoed] = [result for result in system.results() if result["_slowjobs"]["key"] == '["fine-0"]']
    assert (echoed["request"], echoed["options"]) == ({"file_id": "fine-0", "do": "echo"}, {"name": "ours"})

    # Skipped: done, without a result and without a dead letter.
    wait_until(system.outstanding, 10, "NSQ to hold nothing", accept=lambda left: left == 0)
    assert "unwanted" not in system.result_rows()
    left_behind = [int(pid) for pid in (system.pool_folder / "pids.log").read_text().split()]
    assert handlers.living(left_behind) == []
    assert "ValueError: no such page" in system.worker.log_text()


def test_python_handlers_do_not_outlive_a_killed_worker(make_system: MakeSystem) -> None:
    system = _system(make_system)
    system.setup()
    system.start(system.bridge, system.worker)
    system.send_requests(["hung"], do="hang", pids=3)
    files = [system.pool_folder / "pids.log", system.pool_folder / "made.log"]
    pids = wait_until(
        lambda: [int(pid) for file in files for pid in file.read_text().split()],
        30,
        "the handler, what it has started, and its idle siblings",
        accept=lambda pids: len(pids) == 3 + 4,
    )
    system.worker.kill()
    wait_until(lambda: handlers.living(pids), 1, "no handler left", accept=lambda left: not left)


def test_a_worker_whose_handler_cannot_be_imported_says_so_and_is_not_restarted(make_system: MakeSystem) -> None:
    system = _system(make_system)
    (system.pool_folder / "obedient.py").write_text("import no_such_module", encoding="utf-8")
    system.setup()
    system.worker.start(ready=False)
    assert system.worker.wait(30) == 2
    assert "obedient:Choosy" in system.worker.log_text()
    assert "No module named 'no_such_module'" in system.worker.log_text()
