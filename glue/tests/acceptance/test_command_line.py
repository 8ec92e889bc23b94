"""What an operator types, and what other programs read."""

from __future__ import annotations

import http.server
import json
import os
import pty
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest

from support import handlers
from support.system import DEAD_LETTERS, EVENTS, SLOWJOBS, request
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

LANE_MEMBERS = {
    "name", "kafka_topic", "nsq_topic", "unfinished", "unpublished", "outstanding", "waiting", "in_flight", "deferred",
    "max_outstanding", "paused", "missing", "missing_since", "unaccounted", "holding", "oldest_seconds",
}  # fmt: skip
NSQD_MEMBERS = {"host", "state", "reachable", "healthy", "version", "start_time", "topics"}
TOPIC_MEMBERS = {"name", "paused", "depth", "channels"}
CHANNEL_MEMBERS = {"name", "paused", "depth", "in_flight", "deferred", "clients"}
WORKER_MEMBERS = {"host", "pool", "reachable", "slots", "running", "parked", "draining", "config", "nsqd"}
SERVICE_MEMBERS = {"name", "host", "reachable", "config", "publishes_to", "nsqd"}


def _status(system: System, expect: int | None) -> dict[str, Any]:
    said = system.run("status", "--json", expect=expect)
    document: dict[str, Any] = json.loads(said.stdout)
    return document


def test_status_counts_what_waits_runs_and_is_deferred(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=4, lane={"max_outstanding": 50})
    system.setup()
    system.send_requests(range(80))
    system.start()
    wait_until(lambda: len(handlers.runs(system)), 30, "four handlers to run", accept=lambda count: count == 4)
    wait_until(system.outstanding, 10, "a full lane", accept=lambda held: held == 50)
    # Its commit is there, and what the bridge says of the oldest.
    status = wait_until(
        lambda: _status(system, expect=0),
        20,
        "what is not done",
        accept=lambda said: said["lanes"][0]["unfinished"] == 80 and said["lanes"][0]["oldest_seconds"],
    )
    assert status["v"] == 1
    assert set(status) == {"v", "lanes", "nsqd", "workers", "services", "errors"}
    assert status["errors"] == []

    [lane] = status["lanes"]
    assert set(lane) == LANE_MEMBERS
    assert lane == lane | {
        "name": system.lane,
        "kafka_topic": system.kafka_topic,
        "nsq_topic": system.lane,
        "unfinished": 80,
        "unpublished": 30,
        "outstanding": 50,
        "waiting": 46,
        "in_flight": 4,
        "deferred": 0,
        "max_outstanding": 50,
        "paused": False,
        "missing": 0,
        "missing_since": None,
        "unaccounted": 0,
        "holding": False,
    }
    assert 0 < lane["oldest_seconds"] < 60

    [nsqd] = status["nsqd"]
    assert set(nsqd) == NSQD_MEMBERS
    assert (nsqd["host"], nsqd["state"], nsqd["reachable"], nsqd["healthy"]) == ("svc506", "active", True, True)
    assert nsqd["version"] == "1.3.0"
    [topic] = [topic for topic in nsqd["topics"] if topic["name"] == system.lane]
    assert set(topic) == TOPIC_MEMBERS
    [channel] = topic["channels"]
    assert set(channel) == CHANNEL_MEMBERS
    assert (channel["name"], channel["depth"], channel["in_flight"], channel["clients"]) == (system.pool, 46, 4, 1)

    [worker] = status["workers"]
    assert set(worker) == WORKER_MEMBERS
    assert worker == worker | {
        "host": "worker1", "pool": system.pool, "reachable": True, "slots": 4, "running": 4, "parked": 0,
        "draining": False,
    }  # fmt: skip
    services = {service["name"]: service for service in status["services"]}
    assert {"slowjobs-bridge", "slowjobs-persister@requests", "slowjobs-persister@results"} <= set(services)
    assert all(set(service) == SERVICE_MEMBERS and service["reachable"] for service in status["services"])
    assert services["slowjobs-bridge"]["publishes_to"] == "svc506"
    assert services["slowjobs-bridge"]["nsqd"] == ["svc506"]
    assert services["slowjobs-bridge"]["config"] == system.bridge.state()["config"]
    assert all(process.config_in_force() for process in system.processes)

    # The same for a person.
    table = system.run("status").stdout
    for shown in (system.lane, "svc506", "worker1", "1.3.0"):
        assert shown in table


def test_status_with_half_the_system_down_prints_the_rest_and_exits_1(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.documents["slowjobs"]["nsqd"]["hosts"]["svc507"] = {
        "tcp_address": "127.0.0.1:9",
        "http_address": "127.0.0.1:9",
    }
    system.write()
    system.start(system.bridge, system.worker)
    status = _status(system, expect=1)
    states = {host["host"]: (host["state"], host["reachable"]) for host in status["nsqd"]}
    assert states == {"svc506": ("active", True), "svc507": ("spare", False)}
    reachable = {service["name"]: service["reachable"] for service in status["services"]}
    assert reachable["slowjobs-bridge"] is True
    assert reachable["slowjobs-persister@requests"] is False
    assert "persister@requests" in str(status["errors"])
    assert "svc507" not in str(status["errors"]), "a stopped spare is no error"

    # Another half: what is not done is known without the bridge.
    system.worker.stop()
    system.send_requests(range(3))
    wait_until(system.outstanding, 20, "them in NSQ", accept=lambda held: held == 3)
    system.bridge.kill()
    [lane] = _status(system, expect=1)["lanes"]
    assert (lane["unfinished"], lane["unpublished"], lane["outstanding"], lane["holding"]) == (3, 0, 3, None)
    system.start(*system.processes)
    wait_until(lambda: _status(system, expect=0)["lanes"][0]["unfinished"], 20, "all done", accept=lambda n: n == 0)
    assert _status(system, expect=0)["errors"] == []
    system.services.kafka.stop()
    status = _status(system, expect=1)
    [lane] = status["lanes"]
    assert lane["unpublished"] is None
    assert lane["waiting"] == 0
    assert status["workers"][0]["reachable"] is True
    assert "kafka" in str(status["errors"]).lower()
    system.services.kafka.start()
    wait_until(lambda: _status(system, expect=None)["errors"], 30, "Kafka to answer", accept=lambda errors: not errors)

    system.services.nsqd.stop()
    status = _status(system, expect=1)
    [lane] = status["lanes"]
    assert lane["outstanding"] is None
    assert lane["unpublished"] == 0
    assert "svc506" in str(status["errors"])
    said = system.run("status", expect=1)
    assert "Traceback" not in said.stdout + said.stderr


@contextmanager
def _watching(system: System, *, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**system.environment, "SLOWJOBS_CONFIG": str(system.cli_config), "TERM": "xterm", "COLUMNS": "100"}
    argv = [str(SLOWJOBS), "status", "--watch", "--interval", "0.2"]
    with subprocess.Popen(argv, stdout=stdout, stderr=subprocess.STDOUT, env=environment) as watching:
        try:
            yield watching
        finally:
            watching.kill()


def _read_until(shown: IO[bytes], text: str) -> str:
    seen = ""
    while text not in seen:
        part = os.read(shown.fileno(), 65536).decode(errors="replace")
        assert part, f"its end, and no {text!r} in {seen}"
        seen += part
    return seen


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_status_watch_follows_what_changes_until_it_is_interrupted(make_system: MakeSystem, where: str) -> None:
    system = make_system()
    system.setup()
    out, into = pty.openpty() if where == "terminal" else os.pipe()
    with _watching(system, stdout=into) as watching, os.fdopen(out, "rb", buffering=0) as shown:
        os.close(into)
        seen = _read_until(shown, "error: slowjobs-bridge on control1")
        assert system.lane in seen
        system.start(system.bridge)
        seen = _read_until(shown, "publishes to svc506")
        # At a terminal the picture changes in its place; in a file each comes below the last.
        assert ("\x1b[1A" in seen) == (where == "terminal")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
        assert "Traceback" not in seen


def test_status_watch_prints_no_json(make_system: MakeSystem) -> None:
    assert "--watch" in make_system().run("status", "--watch", "--json", expect=2).stderr


def test_setup_makes_what_is_missing_says_so_and_does_nothing_the_second_time(make_system: MakeSystem) -> None:
    system = make_system()
    services = system.services
    missing = system.run("setup", "--check", expect=1)
    for name in (system.kafka_topic, system.result_topic, system.pool, "job_request", "job_result"):
        assert name in missing.stdout
    assert system.kafka_topic not in services.kafka.topics(), "--check makes nothing"

    said = json.loads(system.run("setup", "--json").stdout)
    made = {item["name"] for item in said["items"] if item["state"] == "made"}
    channel = f"{system.lane}/{system.pool}"
    assert {system.kafka_topic, system.result_topic, channel, "job_request", "job_result"} <= made
    topics = services.kafka.topics()
    assert {system.kafka_topic, system.result_topic, DEAD_LETTERS, EVENTS} <= topics
    assert services.kafka.partitions(system.kafka_topic) == services.kafka.partitions(system.result_topic) == 6
    assert services.kafka.partitions(DEAD_LETTERS) == services.kafka.partitions(EVENTS) == 1
    for topic in (system.result_topic, DEAD_LETTERS):
        config = services.kafka.topic_config(topic)
        assert config["max.message.bytes"] == str(21 * 1024 * 1024)
        assert config["retention.ms"] == str(91 * 24 * 60 * 60 * 1000)
    assert services.kafka.topic_config(system.kafka_topic)["retention.ms"] == str(91 * 24 * 60 * 60 * 1000)
    assert services.kafka.topic_config(EVENTS)["retention.ms"] == str(7 * 24 * 60 * 60 * 1000)
    assert system.channel()["depth"] == 0
    assert system.rows("SELECT count(*) FROM job_request") == [(0,)]

    again = json.loads(system.run("setup", "--json").stdout)
    assert {item["state"] for item in again["items"]} == {"present"}
    system.run("setup", "--check")


def test_the_inventory_decides_over_the_settings_of_topics(make_system: MakeSystem) -> None:
    system = make_system()
    system.documents["slowjobs"]["kafka"]["topic_config"] = {"retention.ms": "3600000"}
    system.write()
    system.setup()
    assert system.services.kafka.topic_config(system.kafka_topic)["retention.ms"] == "3600000"


def test_setup_goes_as_far_as_it_can_and_names_what_it_could_not_make(make_system: MakeSystem) -> None:
    system = make_system()
    system.services.nsqd.stop()
    said = system.run("setup", expect=1)
    assert "svc506" in said.stdout + said.stderr
    assert "Traceback" not in said.stderr
    assert system.kafka_topic in system.services.kafka.topics()
    assert system.rows("SELECT count(*) FROM job_request") == [(0,)]


class _WrongClock(http.server.BaseHTTPRequestHandler):
    """Answers as a service on a host whose clock is ten seconds behind."""

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("Date", self.date_time_string(time.time() - 10))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_check_compares_clocks(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start(system.worker)
    said = json.loads(system.run("check", "--json").stdout)
    [finding] = [finding for finding in said["findings"] if finding["subject"] == "clocks"]
    # Services that are stopped are no matter of their clocks.
    assert finding["answer"] == "those of 2 hosts agree; no answer from control1"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _WrongClock) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        worker = {"name": "slowjobs-worker@other", "host": "worker2", "pool": system.pool}
        address = f"127.0.0.1:{server.server_address[1]}"
        system.documents["slowjobs"]["services"].append({**worker, "state_address": address})
        system.write()
        said_of_it = system.run("check", expect=1).stdout
        server.shutdown()
    assert "FAILED  clocks: worker2 is 10 s behind this host" in said_of_it
    assert "timedatectl" in said_of_it


def test_check_proves_every_connection(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.run("check")
    assert json.loads(system.run("check", "--json").stdout)["v"] == 1
    system.services.postgresql.stop()
    said = system.run("check", expect=1)
    assert "FAILED  PostgreSQL" in said.stdout


def test_enqueue_sends_what_is_good_and_writes_the_rest_with_reasons_to_a_rejects_file(
    make_system: MakeSystem,
) -> None:
    system = make_system()
    system.setup()
    good = [request(f"file-{number}") for number in range(300)]
    bad = {
        b"no JSON": "not-json",
        b'"text"': "not-an-object",
        b'{"path": "/x"}': "member-missing",
        b'{"file_id": 1.5}': "member-type",
        b'{"file_id": "a\\u0000"}': "nul-character",
        b'{"file_id": "\xff"}': "not-json",
        request("large", text="x" * 1024 * 1024): "too-large",
    }
    requests = system.folder / "requests.jsonl"
    requests.write_bytes(b"\n".join([*good[:150], *bad, b"", *good[150:]]))  # no newline at the end

    said = system.run("enqueue", system.lane, str(requests), expect=1)
    assert set(system.sent().values()) == set(good)
    rejects = [json.loads(line) for line in (system.folder / "requests.jsonl.rejects.jsonl").read_text().splitlines()]
    assert [reject["reason"] for reject in rejects] == list(bad.values())
    assert [reject["line"] for reject in rejects] == list(range(151, 151 + len(bad)))
    assert "300 requests acknowledged" in said.stdout
    assert "2 not sent: not-json" in said.stdout

    # From a pipe, and this time all of it good.
    system.run("enqueue", system.lane, "-", input_=request("piped") + b"\n")
    assert request("piped") in system.sent().values()


def test_enqueue_refuses_a_lane_that_does_not_exist(make_system: MakeSystem) -> None:
    system = make_system()
    said = system.run("enqueue", "no-such-lane", "-", input_=request("x"), expect=2)
    assert "no-such-lane" in said.stderr
    assert system.lane in said.stderr, "what there is helps"


def test_dead_list_shows_each_dead_letter_and_its_reason(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start(system.bridge)
    system.send([b"no JSON", b'{"path": "/x"}', b'{"file_id": "%s"}' % (b"k" * 3000)])
    system.wait_for_dead_letters(3, 30)
    listed = json.loads(system.run("dead", "list", "--json").stdout)
    mine = [letter for letter in listed["dead_letters"] if letter["lane"] == system.lane]
    assert sorted(letter["reason"] for letter in mine) == ["key-too-long", "member-missing", "not-json"]
    assert len({letter["id"] for letter in mine}) == 3
    table = system.run("dead", "list").stdout
    assert system.lane in table
    assert "member-missing" in table


def test_json_output_is_one_document_and_nothing_else(make_system: MakeSystem) -> None:
    system = make_system()
    for arguments in (("setup",), ("check",), ("dead", "list")):
        document = json.loads(system.run(*arguments, "--json").stdout)
        assert document["v"] == 1


def test_every_command_explains_itself(make_system: MakeSystem) -> None:
    system = make_system()
    overview = system.run("--help").stdout
    for command in ("bridge", "worker", "persister", "setup", "check", "status", "enqueue", "dead"):
        assert command in overview
    assert "--json" in system.run("status", "--help").stdout
    system.run("no-such-command", expect=2)
