"""Mistakes are named with their place before anything starts: exit status 2."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance


@pytest.fixture
def system(make_system: MakeSystem) -> System:
    return make_system()


def _refused(system: System, name: str) -> str:
    """Start service ``name`` on a configuration that cannot work, and return what it said."""
    system.write()
    config = str(system.folder / f"{name}.toml")
    arguments = {
        "bridge": ["bridge"],
        "worker1": ["worker", system.pool],
        "persister-requests": ["persister", "requests"],
        "slowjobs": ["status"],
    }
    started = system.run(*arguments[name], "--config", config, expect=2)
    offline = system.run("check", "--offline", config, expect=2)
    assert "Traceback" not in started.stderr + offline.stderr
    return started.stderr


def test_every_mistake_is_named_with_its_place(system: System) -> None:
    worker = system.documents["worker1"]
    worker["pool"]["slots"] = "four"
    worker["pool"]["colour"] = "green"
    worker["pool"]["handler"]["command"] = []
    worker["lanes"][system.lane]["max_outstanding"] = 1_000_000
    worker["nsqd"]["hosts"]["svc506"]["tcp_address"] = "no port"
    del worker["kafka"]["properties"]["bootstrap.servers"]
    said = _refused(system, "worker1")
    for place in (
        "pool.slots",
        "pool.colour",
        "pool.handler.command",
        f"lanes.{system.lane}.max_outstanding",
        "nsqd.hosts.svc506.tcp_address",
        "bootstrap.servers",
    ):
        assert place in said, said


def test_a_lane_without_a_pool_is_refused(system: System) -> None:
    del system.documents["bridge"]["lanes"][system.lane]["pool"]
    assert f"lanes.{system.lane}.pool" in _refused(system, "bridge")


def test_a_lane_whose_pool_does_not_exist_is_refused(system: System) -> None:
    system.documents["slowjobs"]["lanes"][system.lane]["pool"] = "nowhere"
    said = _refused(system, "slowjobs")
    assert system.lane in said
    assert "nowhere" in said


def test_a_lane_of_an_unknown_kind_is_refused(system: System) -> None:
    system.documents["bridge"]["lanes"][system.lane]["kind"] = "nonsense"
    said = _refused(system, "bridge")
    assert system.lane in said
    assert "nonsense" in said


@pytest.mark.parametrize("command", ["/does/not/exist", "no-such-program-anywhere", "./missing.sh"])
def test_a_command_that_does_not_exist_is_refused(system: System, command: str) -> None:
    system.documents["worker1"]["pool"]["handler"]["command"] = [command]
    said = _refused(system, "worker1")
    assert "handler.command" in said
    assert command in said


def test_a_password_in_the_dsn_is_refused_and_not_shown(system: System) -> None:
    system.documents["persister-requests"]["postgresql"]["dsn"] += " password=letmein"
    said = _refused(system, "persister-requests")
    assert "postgresql.dsn" in said
    assert "letmein" not in said


def test_a_file_that_is_missing_or_no_toml_is_refused(system: System) -> None:
    missing = str(system.folder / "missing.toml")
    assert missing in system.run("bridge", "--config", missing, expect=2).stderr
    broken = system.folder / "broken.toml"
    broken.write_text("service = [", encoding="utf-8")
    assert str(broken) in system.run("check", "--offline", str(broken), expect=2).stderr


def test_another_services_file_is_refused(system: System) -> None:
    said = system.run("bridge", "--config", str(system.folder / "worker1.toml"), expect=2)
    assert "Traceback" not in said.stderr
    assert "worker" in said.stderr


def test_a_file_without_mistakes_passes_the_offline_check(system: System) -> None:
    for name in system.documents:
        system.run("check", "--offline", str(system.folder / f"{name}.toml"))


@pytest.fixture
def plain_http_server() -> Iterator[str]:
    """Yield the address of something that speaks HTTP and is not nsqd."""

    class _Greeting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"Welcome")

        do_POST = do_GET  # noqa: N815 - the standard library's name

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), _Greeting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("whose", ["kafka", "http-server"])
@pytest.mark.parametrize("port", ["http_address", "tcp_address"])
def test_an_address_where_something_else_answers_is_named(
    system: System, plain_http_server: str, whose: str, port: str
) -> None:
    system.setup()
    address = system.services.kafka.address if whose == "kafka" else plain_http_server
    system.documents["slowjobs"]["nsqd"]["hosts"]["svc506"][port] = address
    system.write()
    said = system.run("check", expect=1)
    assert address in said.stdout + said.stderr
    assert "Traceback" not in said.stderr


def test_kafka_and_postgresql_addresses_where_something_else_answers_are_named(system: System) -> None:
    system.setup()
    services = system.services
    good = system.documents["slowjobs"]["kafka"]["properties"]["bootstrap.servers"]
    system.documents["slowjobs"]["kafka"]["properties"]["bootstrap.servers"] = services.nsqd.tcp_address
    system.write()
    said = system.run("check", expect=1)
    assert "FAILED  Kafka" in said.stdout
    system.documents["slowjobs"]["kafka"]["properties"]["bootstrap.servers"] = good
    system.documents["slowjobs"]["postgresql"]["dsn"] = "host=127.0.0.1 port={} dbname=x user=slowjobs".format(
        good.split(":")[1]
    )
    system.write()
    said = system.run("check", expect=1)
    assert "FAILED  PostgreSQL" in said.stdout
    assert "Traceback" not in said.stderr
