"""What `slowjobs enqueue` does with files of every sort, and when something comes in its way."""

from __future__ import annotations

import gzip
import json
import shlex
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.system import SLOWJOBS, request
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

CAPTURES = {"type": "job", "key": ["sha1hex"]}
HEADER = " CDX N b a m s k r M S V g"


def _capture(number: int) -> str:
    url = f"https://example.org/{number}"
    return f"org,example)/{number} 20260101000000 {url} application/pdf 200 sha1:{number:040x} - - 9 {number} w"


def _file(system: System, name: str, content: bytes) -> str:
    path = system.folder / name
    path.write_bytes(content)
    return str(path)


def _rejects(system: System, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (system.folder / f"{name}.rejects.jsonl").read_text().splitlines()]


@contextmanager
def _running(system: System, file: str, *, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**system.environment, "SLOWJOBS_CONFIG": str(system.cli_config)}
    argv = [str(SLOWJOBS), "enqueue", system.lane, file]
    with (
        _errors(system).open("wb") as errors,
        subprocess.Popen(
            argv, env=environment, cwd=system.folder, stdin=stdin, stdout=subprocess.DEVNULL, stderr=errors
        ) as running,
    ):
        try:
            yield running
        finally:
            running.kill()


def _write(running: subprocess.Popen[bytes], *lines: bytes) -> None:
    assert running.stdin is not None
    running.stdin.write(b"".join(line + b"\n" for line in lines))
    running.stdin.flush()


def _errors(system: System) -> Path:
    return system.folder / "enqueue-errors.log"


def test_cdx_lines_become_requests_wherever_they_come_from(make_system: MakeSystem) -> None:
    system = make_system(kind=CAPTURES)
    system.setup()
    first = "\r\n".join([HEADER, *map(_capture, range(100)), "", "no capture"]).encode()
    second = "\n".join(
        [" CDX k a V", *(f"{number:040x} https://example.org/{number} -" for number in (100, 101))]
    ).encode()
    name = _file(system, "captures", gzip.compress(first + b"\n") + gzip.compress(second))

    said = system.run("enqueue", system.lane, name, expect=1)
    assert "102 requests acknowledged" in said.stdout
    [reject] = _rejects(system, "captures")
    assert (reject["line"], reject["reason"], reject["request"]) == (103, "not-cdx", "no capture")
    sent = {member["sha1hex"]: member for member in map(json.loads, map(bytes, filter(None, system.sent().values())))}
    assert sent[f"{7:040x}"] == {
        "url": "https://example.org/7", "datetime": "20260101000000", "sha1hex": f"{7:040x}",
        "mimetype": "application/pdf", "warc_path": "w", "warc_csize": 9, "warc_offset": 7,
    }  # fmt: skip
    assert sent[f"{101:040x}"]["datetime"] is None
    assert len(sent) == 102

    # From a pipe; and a JSON file that is called a CDX file is none.
    system.run("enqueue", system.lane, "-", input_=gzip.compress(_capture(200).encode()))
    system.run("enqueue", system.lane, "-", "--format", "cdx", input_=b'{"sha1hex": "x"}\n', expect=1)
    assert len(system.sent()) == 103


def test_a_dry_run_checks_every_line_without_any_server(make_system: MakeSystem) -> None:
    system = make_system()
    system.documents["slowjobs"]["kafka"]["properties"]["bootstrap.servers"] = "127.0.0.1:9"
    system.write()
    name = _file(
        system,
        "requests",
        b"\xef\xbb\xbf" + request("a") + b"\r\n\r\nno JSON\r\n" + b"x" * 3_000_000 + b"\n" + request("b"),
    )
    said = json.loads(system.run("enqueue", system.lane, name, "--dry-run", "--json", expect=1).stdout)
    assert said == said | {
        "lines": 5, "accepted": 2, "acknowledged": 0, "rejected": {"not-json": 1, "too-large": 1}, "next_line": None,
    }  # fmt: skip
    assert [(reject["line"], reject["reason"]) for reject in _rejects(system, "requests")] == [
        (3, "not-json"),
        (4, "too-large"),
    ]


def test_after_an_interruption_the_command_that_it_prints_sends_the_rest(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    wanted = {request(number) for number in range(150_000)}
    lines = list(wanted)
    lines[0:0] = lines[100_000:100_000] = [b"bad"]  # the rejects file is continued, too
    name = _file(system, "requests with spaces.gz", gzip.compress(b"\n".join(lines), compresslevel=1))
    with _running(system, name) as running:
        wait_until(system.sent, 30, "the first requests")
        running.terminate()
        assert running.wait(30) == 143
    assert 0 < len(system.sent()) < len(wanted), "it was not interrupted in the middle"

    [command] = [line for line in _errors(system).read_text().splitlines() if line.strip().startswith("slowjobs ")]
    system.run(*shlex.split(command)[1:], expect=1)
    values = list(system.sent().values())
    assert set(values) == wanted
    assert len(values) - len(wanted) <= 10_000, "more was sent twice than can have been on its way"
    assert {reject["line"] for reject in _rejects(system, "requests with spaces.gz")} == {1, 100_001}


def test_what_was_acknowledged_before_an_interruption_is_not_sent_again(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    lines = [request(number) for number in range(100)]
    with _running(system, "-", stdin=subprocess.PIPE) as running:
        _write(running, *lines[:60])
        wait_until(lambda: len(system.sent()), 30, "the first 60", accept=lambda count: count == 60)
        running.send_signal(signal.SIGINT)  # it waits for more lines
        assert running.wait(30) == 130
    assert "--from-line 61" in _errors(system).read_text()
    system.run("enqueue", system.lane, "-", "--from-line", "61", input_=b"\n".join(lines))
    assert sorted(filter(None, system.sent().values())) == sorted(lines)


def test_of_a_file_that_is_cut_off_all_is_sent_that_is_there(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    lines = [request(number) for number in range(20_000)]
    name = _file(system, "cut.gz", gzip.compress(b"\n".join(lines))[:-100])
    said = system.run("enqueue", system.lane, name, "--json", expect=1)
    report = json.loads(said.stdout)
    assert 15_000 < report["acknowledged"] < 20_000
    assert report["next_line"] == report["acknowledged"] + 1
    assert set(system.sent().values()) == set(lines[: report["acknowledged"]])
    assert "cut off" in said.stderr
    assert f"--from-line {report['next_line']}" in said.stderr


def test_kafka_away_is_waited_for_and_said_each_time_but_not_at_every_try(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    kafka = system.services.kafka
    kafka.stop()
    with _running(system, "-", stdin=subprocess.PIPE) as running:
        _write(running, request("first"))
        wait_until(lambda: _errors(system).read_text(), 20, "word of Kafka", accept=lambda said: "Waiting" in said)
        kafka.start()
        wait_until(lambda: len(system.sent()), 30, "the first", accept=lambda count: count == 1)
        kafka.stop()
        _write(running, request("second"))
        assert running.stdin is not None
        running.stdin.close()
        wait_until(
            lambda: _errors(system).read_text(), 20, "another word", accept=lambda said: said.count("Waiting") >= 2
        )
        kafka.start()
        assert running.wait(30) == 0
    assert sorted(filter(None, system.sent().values())) == [request("first"), request("second")]
    # A broker that is just coming back names no brokers for a moment, itself included: as if it were away once more.
    assert 2 <= _errors(system).read_text().count("does not answer") <= 4


def test_only_what_kafka_finds_too_large_is_refused(make_system: MakeSystem) -> None:
    """A broker refuses a whole batch for one message, and batches are larger than this topic takes."""
    system = make_system()
    system.services.kafka.create_topic(system.kafka_topic, config={"max.message.bytes": "20000"})
    system.setup()
    lines = [request(number, text="x" * 1000) for number in range(300)]
    large = request("large", text="x" * 30_000)
    name = _file(system, "requests", b"\n".join([*lines[:150], large, *lines[150:]]))
    said = system.run("enqueue", system.lane, name, expect=1)
    assert "1 refused by Kafka" in said.stdout
    assert set(system.sent().values()) == set(lines)
    [reject] = _rejects(system, "requests")
    assert (reject["line"], reject["reason"]) == (151, "not-sent")


def test_a_topic_that_is_missing_is_named(make_system: MakeSystem) -> None:
    system = make_system()
    said = system.run("enqueue", system.lane, "-", input_=request("x"), expect=1)
    assert f"Kafka topic {system.kafka_topic} is missing" in said.stderr
