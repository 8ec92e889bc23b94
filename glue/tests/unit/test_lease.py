"""One playbook at a time: who has the lease keeps it while it is renewed, and no longer."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from slowjobs import cli
from slowjobs.operations import lease

if TYPE_CHECKING:
    from pathlib import Path


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease.look(path)
    lease.take(path, "move by anna", 60)
    told = r"move by anna, since 20.*; it ends in (60|59) s"
    with pytest.raises(lease.HeldError, match=told):
        lease.take(path, "move by ben", 60)
    with pytest.raises(lease.HeldError, match=told):
        lease.look(path)
    lease.drop(path, "move by ben")
    with pytest.raises(lease.HeldError):
        lease.look(path)
    lease.drop(path, "move by anna")
    lease.take(path, "move by ben", 60)


def test_renewing_keeps_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease.take(path, "anna", 10)
    before = json.loads(path.read_text())
    lease.renew(path, "anna", 20)
    after = json.loads(path.read_text())
    assert after["since"] == before["since"]
    assert after["until"] >= before["until"] + 10


def test_one_that_is_not_renewed_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease.take(path, "anna", 0)
    lease.take(path, "ben", 60)
    with pytest.raises(lease.HeldError, match="ben"):
        lease.take(path, "anna", 60)


def test_who_was_held_up_goes_on_unless_somebody_else_has_been_there(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease.take(path, "anna", 0)
    lease.renew(path, "anna", 0)
    lease.take(path, "ben", 60)
    with pytest.raises(lease.LostError, match="of ben, since 20"):
        lease.renew(path, "anna", 60)
    lease.drop(path, "ben")
    with pytest.raises(lease.LostError, match="given up"):
        lease.renew(path, "anna", 60)


def test_what_is_no_lease_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    for text in ("", "{}", "[1]", '{"holder": "anna"}', "\0"):
        path.write_text(text)
        lease.look(path)


def test_a_command_runs_under_the_lease_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    arguments = ["lease", "--file", str(path), "--holder"]
    ran = CliRunner().invoke(cli.main, [*arguments, "anna", "gate", "--help"])
    assert (ran.exit_code, "figure of the running system" in ran.stdout) == (0, True)
    assert json.loads(path.read_text())["until"] > time.time() + 100
    renewed = CliRunner().invoke(cli.main, [*arguments, "anna", "--renew", "gate", "--help"])
    assert renewed.exit_code == 0
    lost = CliRunner().invoke(cli.main, [*arguments, "carl", "--renew", "gate", "--help"])
    assert (lost.exit_code, lost.stdout) == (4, "")
    assert "the lease of carl was lost: it is of anna, since" in lost.stderr
    refused = CliRunner().invoke(cli.main, [*arguments, "ben", "gate", "--help"])
    assert (refused.exit_code, refused.stdout) == (4, "")
    assert "under way: anna" in refused.stderr
