"""`slowjobs gate`: one figure for plays, which is the truth or is not there."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from slowjobs import documents, settings
from support import handlers
from support.sampler import Sampler
from support.system import request
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance


def _gate(system: System, *arguments: str) -> str:
    return system.run("gate", *arguments).stdout.rstrip("\n")


def _document(system: System, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_gate(system, *arguments, "--json"))
    return document


def test_each_figure_follows_the_system(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=1, lanes={"one": {}, "two": {}})
    one, two = system.lanes.values()
    system.setup()
    system.start(system.bridge)
    assert _gate(system, "publishing") == "svc506"
    digest = hashlib.sha256(system.bridge.config.read_bytes()).hexdigest()
    assert _gate(system, "config", "slowjobs-bridge", "control1") == digest
    assert _gate(system, "clients", "svc506") == "0"

    system.send_requests(range(3), lane="one")
    wait_until(system.outstanding, 30, "them on NSQ", accept=lambda held: held == 3)
    system.start(system.worker)
    wait_until(lambda: handlers.runs(system), 30, "one to run")
    document = _document(system, "empty", "svc506")
    assert (document["v"], document["figure"], document["host"]) == (1, 3, "svc506")
    nothing = {"waiting": 0, "in_flight": 0, "deferred": 0, "published": 0, "paused": False}
    assert document["lanes"] == {one: nothing | {"waiting": 2, "in_flight": 1}, two: nothing}
    assert _document(system, "clients", "svc506")["lanes"] == {one: 1, two: 1}
    assert _gate(system, "clients", "svc506") == "2"

    assert _gate(system, "arriving", "svc506", "--for", "1s") == "0"
    handlers.open_gate(system)
    wait_until(system.outstanding, 20, "them done", accept=lambda held: held == 0)
    assert _gate(system, "empty", "svc506") == "0"


def test_a_host_that_is_published_to_is_not_empty_however_fast_its_workers_are(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    system.start(system.worker)
    nsqd = system.services.nsqd
    with Sampler(lambda: nsqd.publish(system.lane, request("by hand")), a_second=1):
        # Almost always nothing is there when it looks.
        assert int(_gate(system, "empty", "svc506")) > 0
        assert 1 <= int(_gate(system, "arriving", "svc506", "--for", "2s")) <= 4
    assert _document(system, "arriving", "svc506", "--for", "0s")["publishers"] == []


def test_what_cannot_be_read_is_no_figure(make_system: MakeSystem) -> None:
    system = make_system(lanes={"one": {}, "two": {}})
    system.setup()
    for arguments in (("publishing",), ("config", "slowjobs-bridge", "control1")):
        assert "stopped" in system.run("gate", *arguments, expect=1).stderr
    assert "svc506" in system.run("gate", "empty", "no-such-host", expect=2).stderr
    assert "slowjobs-bridge" in system.run("gate", "config", "slowjobs-bridge", "worker1", expect=2).stderr

    nsqd, two = system.services.nsqd, system.lanes["two"]
    nsqd.post(f"/channel/delete?topic={two}&channel={system.pool}")
    for figure in ("empty", "clients", "arriving"):
        said = system.run("gate", figure, "svc506", expect=1)
        assert said.stdout == ""
        assert f"{two}/{system.pool}" in said.stderr
    nsqd.stop()
    # A status of its own: who waits for an nsqd to become empty goes on without one that is gone, and only then.
    said = system.run("gate", "empty", "svc506", "--json", expect=6)
    assert (said.stdout, "Traceback" in said.stderr) == ("", False)


def test_who_may_write_to_postgresql_is_a_running_persister_or_a_session_of_ours(make_system: MakeSystem) -> None:
    system = make_system()
    system.setup()
    assert _gate(system, "writers") == "0"
    persister = system.persisters["requests"]
    system.start(persister)
    document = _document(system, "writers")
    assert (document["figure"], document["sessions"]) == (1, []), "it has nothing to write and is not connected"
    assert document["persisters"] == ["slowjobs-persister@requests on control1"]
    system.send_requests(["a"])
    wait_until(lambda: _document(system, "writers")["figure"], 20, "its session", accept=lambda figure: figure == 2)
    [session] = _document(system, "writers")["sessions"]
    assert (session["program"], session["address"]) == ("slowjobs-persister-requests", "127.0.0.1")

    persister.freeze()
    assert "slowjobs-persister@requests on control1: no answer" in system.run("gate", "writers", expect=1).stderr
    persister.thaw()
    persister.stop()
    assert _gate(system, "writers") == "0"
    system.services.postgresql.stop()
    assert system.run("gate", "writers", expect=1).stdout == ""


def test_what_the_bridge_gave_to_a_host_is_known_without_it(make_system: MakeSystem) -> None:
    system = make_system(handler=handlers.GATED, slots=1)
    system.setup()
    system.start(system.bridge)
    system.send_requests(range(3))
    wait_until(lambda: _gate(system, "unfinished", "svc506"), 30, "its commit", accept=lambda figure: figure == "3")
    system.bridge.stop()
    system.services.nsqd.stop()
    assert _document(system, "unfinished", "svc506")["lanes"] == {system.lane: 3}


def test_what_is_deferred_and_what_ran_twice_is_told_by_the_workers(make_system: MakeSystem) -> None:
    handler = ("/bin/sh", "-c", 'case "$(cat)" in *later*) exit 75;; esac; printf "{}"')
    retry = {"base_seconds": 800, "cap_seconds": 800}
    system = make_system(handler=handler, pool={"retry": retry})
    system.setup()
    system.start(system.bridge, system.worker)
    nobody = {"v": 1, "figure": 0, "host": "svc506", "last_due": None}
    assert _document(system, "deferred", "svc506") == nobody
    begun = documents.now()
    system.send_requests(["later", "now"])
    document = wait_until(lambda: _document(system, "deferred", "svc506"), 30, "one", accept=lambda it: it["figure"])
    assert document["figure"] == 1
    assert begun < document["last_due"] < documents.now(800)

    assert _gate(system, "run-twice") == "0"
    [(partition, offset)] = [where for where, value in system.sent().items() if value == request("now")]
    position = documents.Position(system.kafka_topic, partition, offset)
    kind = settings.JobKind(type="job", key=("file_id",))
    _, again = documents.write_assignment(request("now"), position, kind, 1000)
    system.services.nsqd.publish(system.lane, again)
    twice = wait_until(lambda: _document(system, "run-twice"), 20, "its end", accept=lambda it: it["figure"])
    assert (twice["figure"], twice["positions"]) == (1, [str(position)])
    assert _gate(system, "run-twice", "--within", "0s") == "0"
