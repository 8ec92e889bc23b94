"""``slowjobs try``: a handler on a file of requests. No server runs here: a queue is not asked."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support import handlers, toml
from support.system import SLOWJOBS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.acceptance

NOWHERE = "127.0.0.1:9"


def write(folder: Path, *, lanes: dict[str, Any] | None = None, **pool: Any) -> Path:
    (folder / "obedient.py").write_text(handlers.OBEDIENT, encoding="utf-8")
    document = {
        "service": "worker",
        "host": "worker1",
        "state_address": NOWHERE,
        "kafka": {"properties": {"bootstrap.servers": NOWHERE}},
        "nsqd": {"active": "svc506", "hosts": {"svc506": {"tcp_address": NOWHERE, "http_address": NOWHERE}}},
        "kinds": {"page": {"type": "job", "key": ["do"]}, "file": {"type": "job", "key": ["file_id"]}},
        "lanes": lanes or {"pages": {"kind": "page", "pool": "p"}},
        "pool": {
            "name": "p",
            "result_topic": "results",
            "directory": str(folder),
            "handler": {"python": "obedient:Choosy", "interpreter": sys.executable},
            **pool,
        },
    }
    config = folder / "worker-p.toml"
    config.write_text(toml.dumps(document), encoding="utf-8")
    return config


def run_try(
    config: Path, requests: list[dict[str, Any] | str], *options: str, expect: int
) -> subprocess.CompletedProcess[str]:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in requests]
    done = subprocess.run(
        [str(SLOWJOBS), "try", "p", "-", "--config", str(config), *options],
        input="\n".join(texts),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done


def test_each_request_is_tried_once_and_told_with_its_outcome(tmp_path: Path) -> None:
    requests: list[dict[str, Any] | str] = [
        {"do": "return_", "what": "{'status': 'fine', 'n': 1}"},
        {"do": "unwanted"},
        "",
        {"do": "raise_", "what": "ValueError('no such page')"},
        {"do": "raise_", "what": "outcomes.Reject('never')"},
        {"do": "raise_", "what": "outcomes.Retry(60, 'later')"},
        {"do": "raise_", "what": "outcomes.Busy(60, 'full')"},
        {"do": "return_", "what": "{'status': 7}"},
        {"do": "return_", "what": "{'status': 'blocked'}"},
        {"do": 1.5},
        "no JSON",
    ]
    config = write(tmp_path, retry_statuses=["blocked"])
    document = json.loads(run_try(config, requests, "--json", expect=1).stdout)
    assert document["v"] == 1
    assert [(one["outcome"], one["key"]) for one in document["tries"]] == [
        ("result", '["return_"]'),
        ("skipped", '["unwanted"]'),
        ("failed", '["raise_"]'),
        ("reject", '["raise_"]'),
        ("retry", '["raise_"]'),
        ("busy", '["raise_"]'),
        ("failed", '["return_"]'),
        ("retry", '["return_"]'),
        ("reject", None),
        ("reject", None),
    ]
    assert document["tries"][0]["result"] == {"status": "fine", "n": 1}
    assert all(one["seconds"] >= 0 for one in document["tries"])
    reasons = [one["reason"] for one in document["tries"][2:]]
    for reason, part in zip(
        reasons,
        ("no such page", "never", "later", "full", "'status'", "blocked", "member-type", "not-json"),
        strict=True,
    ):
        assert part in reason


def test_a_person_reads_outcomes_results_and_reasons(tmp_path: Path) -> None:
    requests: list[dict[str, Any] | str] = [
        {"do": "echo"},
        {"do": "print_", "text": "printed"},
        {"do": "raise_", "what": "ValueError('bad')"},
    ]
    done = run_try(write(tmp_path), requests, expect=1)
    assert "result" in done.stdout
    assert '{"request": {"do": "echo"}, "options": {}}' in done.stdout
    assert "ValueError: bad" in done.stdout
    assert "3 tried: 2 result, 1 failed" in done.stdout
    assert "printed" in done.stderr


def test_results_and_skips_alone_are_a_success_also_of_a_command(tmp_path: Path) -> None:
    assert "2 tried" in run_try(write(tmp_path), [{"do": "nothing"}, {"do": "unwanted"}], expect=0).stdout
    config = write(tmp_path, handler={"command": ["/bin/cat"]})
    assert "1 tried: 1 result" in run_try(config, [{"do": "anything"}], expect=0).stdout


def test_a_lane_is_to_be_named_only_where_kinds_differ(tmp_path: Path) -> None:
    pages, files = {"kind": "page", "pool": "p"}, {"kind": "file", "pool": "p"}
    run_try(write(tmp_path, lanes={"a": pages, "b": pages}), [{"do": "nothing"}], expect=0)
    config = write(tmp_path, lanes={"pages": pages, "files": files})
    assert "--lane" in run_try(config, [{"do": "nothing"}], expect=2).stderr
    run_try(config, [{"do": "nothing", "file_id": "f"}], "--lane", "files", expect=0)
    assert "file_id" in run_try(config, [{"do": "nothing"}], "--lane", "files", expect=1).stdout
    assert "no lane 'other'" in run_try(config, [], "--lane", "other", expect=2).stderr


def test_a_handler_that_cannot_be_imported_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    config = write(tmp_path, handler={"python": "absent:Handler", "interpreter": sys.executable})
    assert "No module named 'absent'" in run_try(config, [], expect=2).stderr


def test_an_import_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text("import os; os.kill(os.getpid(), 9)", encoding="utf-8")
    config = write(tmp_path, handler={"python": "killed:Handler", "interpreter": sys.executable})
    assert "failed: pool.handler.python: killed:Handler" in run_try(config, [], expect=1).stderr
