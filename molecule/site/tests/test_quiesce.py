"""A standstill for a migration of the database, the way back, and a restart of everything, under load."""

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from conftest import (
    ROOT,
    ansible,
    container,
    digests,
    enqueue_digests,
    finished,
    pipe,
    playbook,
    rows,
    status,
    wait_until,
)
from testinfra.host import Host

NOTE = "/var/lib/slowjobs/quiesce.json"
#: seconds.
LONGEST = 15
SESSIONS = "select count(*) from pg_stat_activity where application_name like 'slowjobs-%'"


def how_it_is(control: Host) -> tuple[set[tuple[str, ...]], str]:
    """Return what is paused, and which units that write to PostgreSQL are active and enabled."""
    paused: set[tuple[str, ...]] = set()
    for topic in (topic for host in status(control)["nsqd"] for topic in host["topics"]):
        paused |= {(topic["name"],)} if topic["paused"] else set()
        paused |= {(topic["name"], channel["name"]) for channel in topic["channels"] if channel["paused"]}
    shown = "systemctl show --property=Id,ActiveState,UnitFileState slowjobs-persister@{requests,results}.service"
    return paused, control.check_output(f"bash -c '{shown} slowjobs-reenqueue@fixity.timer'")


@pytest.fixture
def load(control: Host) -> Iterator[str]:
    """More requests of 1 to 3 s than slots, which keep all busy, and before them one of LONGEST."""
    run = f"load{time.time_ns()}"
    seconds = [LONGEST, *(1 + number * 0.37 % 2 for number in range(90))]
    enqueue_digests(run, seconds)
    wait_until(lambda: busy(control) == 6 and digests(run).total() >= 6, "work to flow, in every slot", 30)
    yield run
    if control.file(NOTE).exists:  # a test that failed
        playbook("resume.yml")
    each_once = Counter(f"{run}-{number}" for number in range(len(seconds)))
    wait_until(lambda: digests(run).keys() == each_once.keys(), "all of it done", 120)
    assert digests(run) == each_once


def refusal(*names: str, variables: dict[str, object] | None = None, options: Sequence[str] = ()) -> str:
    """What a playbook says that refuses to begin."""
    refused = playbook(*names, variables=variables, options=options)
    assert refused.returncode != 0
    assert "changed=0" in refused.stdout
    said = " ".join(refused.stdout.split())
    assert "Nothing was changed" in said
    return said


def busy(control: Host) -> int:
    return sum(worker["running"] or 0 for worker in status(control)["workers"] if worker["pool"] == "digest")


def test_all_stands_still_soon_after_the_longest_task_and_goes_on_as_it_was(control: Host, load: str) -> None:
    control.check_output("slowjobs pause fixity-priority")
    before = how_it_is(control)
    begun = time.time()
    done = playbook("quiesce.yml")
    assert done.returncode == 0, done.stdout
    # Idle is one thing, to have made sure of it on a busy machine another.
    assert max(max(times) for times in finished(load).values()) - begun <= LONGEST + 10
    assert time.time() - begun <= LONGEST + 30
    assert "digest on svc506: in flight 6, clients 2" in done.stdout
    assert busy(control) == 0
    assert rows(SESSIONS) == ["0"]
    ended = digests(load)
    noted = control.file(NOTE).content_string
    assert "everything is quiesced" in refusal("preflight.yml", variables={"preflight_before_deployment": True})
    assert "everything is quiesced" in refusal("persister.yml")
    assert "everything is quiesced" in refusal("worker.yml", options=["--limit=worker1", "--tags=worker_configure"])

    # A persister of no unit that anybody knows.
    persister = ["slowjobs", "persister", "results", "--config", "/etc/slowjobs/persister-results.toml"]
    pipe("control1", ["systemd-run", "--unit=left-behind", *persister], "")
    wait_until(lambda: control.socket("tcp://10.89.78.12:9303").is_listening, "it to run", 20)
    again = playbook("quiesce.yml", variables={"gate_timeout_seconds": 1})
    control.check_output("systemctl stop left-behind")
    assert again.returncode != 0
    said = " ".join(again.stdout.split())
    assert "slowjobs-persister@results on control1" in said
    assert "the database is not safe to change" in said
    assert control.file(NOTE).content_string == noted
    assert digests(load) == ended, "nothing has begun"

    # A persister that cannot be started keeps no lane paused, and is not forgotten.
    control.check_output("systemctl mask --runtime slowjobs-persister@results.service")
    failed = playbook("resume.yml")
    control.check_output("systemctl unmask --runtime slowjobs-persister@results.service")
    assert failed.returncode != 0
    assert "Got a failure on control1" in " ".join(failed.stdout.split())
    assert how_it_is(control)[0] == before[0]
    assert control.service("slowjobs-persister@requests").is_running
    assert control.file(NOTE).content_string == noted

    resumed = playbook("resume.yml")
    assert resumed.returncode == 0, resumed.stdout
    assert how_it_is(control) == before
    assert not control.file(NOTE).exists
    nothing = playbook("resume.yml")
    assert "Nothing was quiesced" in nothing.stdout
    assert "changed=0" in nothing.stdout
    control.check_output("slowjobs unpause fixity-priority")


def test_a_quiesce_that_was_broken_off_is_undone(control: Host) -> None:
    before = how_it_is(control)
    nowhere = subprocess.DEVNULL
    # What is to be killed runs as it does elsewhere: without Mitogen.
    plain = {name: value for name, value in os.environ.items() if name != "ANSIBLE_STRATEGY"}
    with subprocess.Popen(
        ansible("quiesce.yml"), cwd=ROOT, env=plain, stdout=nowhere, stderr=nowhere, start_new_session=True
    ) as broken_off:
        wait_until(lambda: how_it_is(control)[0] != before[0], "it to pause", 30)
        os.killpg(broken_off.pid, signal.SIGKILL)
    assert json.loads(control.file(NOTE).content_string)["paused"] == {"svc506": []}
    assert playbook("resume.yml").returncode == 0
    assert how_it_is(control) == before
    assert not control.file(NOTE).exists


def test_a_restart_of_all_takes_every_service_and_doubles_nothing(control: Host, load: str) -> None:
    def starts() -> list[str]:
        units = "nsqd.service slowjobs-{bridge,intake}.service 'slowjobs-persister@*' 'slowjobs-worker@*'"
        command = f'bash -c "systemctl show --value --property=InvocationID {units}"'
        hosts = [container(host) for host in ("svc506", "control1", "worker1", "worker2")]
        return [line for host in hosts for line in host.check_output(command).split()]

    before = starts()
    done = playbook("restart.yml")
    assert done.returncode == 0, done.stdout
    after = starts()
    assert len(after) == len(before)
    assert set(before) & set(after) == set()
    assert not any(lane["paused"] for lane in status(control)["lanes"])
    assert load


@pytest.mark.parametrize("name", ["quiesce.yml", "resume.yml"])
def test_a_standstill_is_of_all_hosts(name: str) -> None:
    assert "Got --limit worker1, wanted all hosts" in refusal(name, options=["--limit=worker1"])


def test_work_is_let_go_on_without_an_nsqd_that_does_not_answer(control: Host) -> None:
    before = how_it_is(control)
    control.check_output("slowjobs pause --all")
    # What a restart leaves behind that was broken off.
    note = {"since": "2026-11-23T03:00:00Z", "paused": {"svc506": ["digest"]}}
    pipe("control1", ["install", "-D", "/dev/stdin", NOTE], json.dumps(note))
    assert "a restart is under way, or was broken off" in refusal("setup.yml")
    container("svc506").check_output("systemctl stop nsqd")
    try:
        resumed = playbook("resume.yml")
    finally:
        container("svc506").check_output("systemctl start nsqd")
    assert resumed.returncode == 0, resumed.stdout
    said = " ".join(resumed.stdout.split())
    assert "nsqd on svc506 does not answer, so what is paused there stays paused" in said
    told = re.search("`(slowjobs unpause [^`]+)`", said)
    assert told is not None, said
    assert "digest" not in told[1]
    control.check_output(f"{told[1]} && slowjobs unpause digest")
    assert not control.file(NOTE).exists
    assert how_it_is(control) == before
