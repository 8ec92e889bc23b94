"""The handler of lane fixity-check, run as a pool runs it: one process, a request on stdin, the result on stdout."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "inventory" / "local" / "files" / "fixity" / "check.py"
CONTENT = b"bytes to keep\n"
DIGEST = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


def run(request: dict[str, object]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    return subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def result(request: dict[str, object]) -> dict[str, object]:
    done = run(request)
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_a_file_that_is_whole_matches(file: Path) -> None:
    wanted = {"status": "match", "hit": True, "md5": DIGEST, "size_bytes": len(CONTENT)}
    assert result({"file_id": "a", "path": str(file), "md5": DIGEST.upper()}) == wanted


def test_a_changed_file_is_a_mismatch(file: Path) -> None:
    file.write_bytes(b"")
    wanted = {"status": "mismatch", "hit": False, "md5": "d41d8cd98f00b204e9800998ecf8427e", "size_bytes": 0}
    assert result({"file_id": "a", "path": str(file), "md5": DIGEST}) == wanted


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    wanted = {"status": "missing", "hit": False, "md5": None, "size_bytes": None}
    assert result({"file_id": "a", "path": str(tmp_path / "none"), "md5": DIGEST}) == wanted


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_id": None}, "file_id is missing"),
        ({"path": None}, "path is missing"),
        ({"md5": None}, "md5 is missing"),
        ({"path": "file"}, "wanted an absolute path"),
        ({"path": "/a\0b"}, "wanted an absolute path"),
        ({"path": 7}, "wanted an absolute path"),
        ({"path": os.sep}, "Is a directory"),
        ({"md5": "abc"}, "wanted 32 hexadecimal digits"),
    ],
)
def test_a_request_that_nothing_can_help_is_rejected_with_the_reason(
    file: Path, change: dict[str, object], reason: str
) -> None:
    request = {"file_id": "a", "path": str(file), "md5": DIGEST, **change}
    done = run({name: value for name, value in request.items() if value is not None})
    assert (done.returncode, done.stdout) == (65, "")
    assert reason in done.stderr
