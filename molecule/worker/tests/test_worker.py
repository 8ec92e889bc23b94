"""What changes, restarts and drains of the workers mean for the requests that they run, on two hosts with systemd."""

import contextlib
import copy
import json
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.host import Host

ROOT = Path(__file__).parents[3]
INVENTORY = ROOT / "molecule" / "inventory" / "hosts.yml"
PREFIX = "slowjobs-test-"
KAFKA, NSQD = "10.89.78.11:9092", "10.89.78.13:4151"
ADDRESSES = {"worker1": "10.89.78.15", "worker2": "10.89.78.16"}
PORTS = {"fixity": 9310, "digest": 9311}
ENVIRONMENTS = "/opt/slowjobs/pools/digest/environments"
#: the figures of an inventory that these tests change.
SITE: dict[str, Any] = {
    name: document
    for file in ("pools", "lanes")
    for name, document in yaml.safe_load((INVENTORY.parent / f"group_vars/all/{file}.yml").read_text()).items()
}

#: asks over HTTP, as the one host that the firewalls let.
ASK = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], data=sys.stdin.buffer.read() or None, timeout=10).read().decode())
"""

#: writes a whole topic to standard output.
CONSUME = """
import sys, confluent_kafka
servers, topic = sys.argv[1:]
consumer = confluent_kafka.Consumer({"bootstrap.servers": servers, "group.id": "tests", "enable.partition.eof": True})
partitions = consumer.list_topics(topic).topics[topic].partitions
consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in partitions])
while partitions:
    message = consumer.poll(30)
    if message.error():
        del partitions[message.partition()]
    else:
        print(message.value().decode())
"""


def container(name: str) -> Host:
    return testinfra.get_host(f"podman://{PREFIX}{name}")


def pipe(host: str, command: list[str], text: str = "") -> str:
    """Run a command with something on its standard input."""
    argv = ["podman", "exec", "--interactive", PREFIX + host, *command]
    return subprocess.run(argv, input=text, text=True, capture_output=True, check=True).stdout


def journals() -> str:
    command = "journalctl --unit 'slowjobs-*' --lines 30 --no-pager --output cat"
    return "\n".join(f"--- {name}\n{container(name).check_output(command)}" for name in ("control1", *ADDRESSES))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{journals()}"
        time.sleep(0.2)


def play(variables: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    """Begin to deploy the workers with other variables."""
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        f"--inventory={INVENTORY}",
        f"--extra-vars={json.dumps(variables)}",
        # Without the firewall, which is as it was.
        "--tags=worker_configure",
        *arguments,
        str(ROOT / "playbooks" / "worker.yml"),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def deploy(variables: dict[str, Any], *arguments: str) -> str:
    """Deploy the workers with other variables and return what the play said."""
    running = play(variables, *arguments)
    said, _ = running.communicate()
    assert running.returncode == 0, f"{said}\n{journals()}"
    return said


def state(host: str, pool: str = "digest") -> dict[str, Any]:
    url = f"http://{ADDRESSES[host]}:{PORTS[pool]}/state"
    document: dict[str, Any] = json.loads(pipe("control1", ["python3", "-c", ASK, url]))
    return document


def shown(host: str, pool: str, *properties: str) -> list[str]:
    """Return what systemd tells of a worker, in the order of the properties."""
    command = f"systemctl show slowjobs-worker@{pool} --property={','.join(properties)}"
    told = dict(line.split("=", 1) for line in container(host).check_output(command).splitlines())
    return [told[name] for name in properties]


def processes() -> dict[tuple[str, str], list[str]]:
    return {(host, pool): shown(host, pool, "MainPID", "InvocationID") for host in ADDRESSES for pool in PORTS}


def requests(run: str, count: int, **members: object) -> list[dict[str, object]]:
    return [{"id": f"{run}-{number}", "text": run, **members} for number in range(count)]


def enqueue(lane: str, documents: list[dict[str, object]]) -> None:
    pipe("control1", ["slowjobs", "enqueue", lane, "-"], "".join(json.dumps(one) + "\n" for one in documents))


def results(run: str) -> list[dict[str, Any]]:
    """Return every result of a run, also those that are there twice."""
    lines = pipe("control1", ["/opt/slowjobs/current/bin/python", "-c", CONSUME, KAFKA, "digest-results"]).splitlines()
    return [result for result in map(json.loads, lines) if json.loads(result["_slowjobs"]["key"])[0].startswith(run)]


def outstanding() -> int:
    topics = json.loads(pipe("control1", ["python3", "-c", ASK, f"http://{NSQD}/stats?format=json"]))["topics"]
    channels = [channel for topic in topics for channel in topic["channels"]]
    return sum(topic["depth"] for topic in topics) + sum(
        channel["depth"] + channel["in_flight_count"] + channel["deferred_count"] for channel in channels
    )


def ids(found: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.loads(result["_slowjobs"]["key"])[0] for result in found)


def each_once(run: str, count: int) -> Counter[str]:
    return Counter(f"{run}-{number}" for number in range(count))


def await_results(run: str, count: int) -> list[dict[str, Any]]:
    """Return the results of a run once there are enough. More than enough is for the caller to find."""
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        found[:] = results(run)
        return len(ids(found)) >= count

    wait_until(are_there, f"{count} results")
    return found


def await_all_results(run: str, count: int) -> list[dict[str, Any]]:
    """Return the results of a run when no more can come: a second one of a request may take as long as msg-timeout."""
    await_results(run, count)
    wait_until(lambda: outstanding() == 0, "nothing on NSQ any more")
    return results(run)


@pytest.fixture
def run() -> str:
    return f"run{time.time_ns()}"


@pytest.fixture
def gate(run: str) -> Iterator[str]:
    """A file that requests may wait for; they go on when the test ends, however it does."""
    path = f"/srv/{run}"
    yield path
    open_gate(path)


def open_gate(path: str) -> None:
    for host in ADDRESSES:
        container(host).check_output("touch %s", path)


@contextlib.contextmanager
def load(run: str) -> Iterator[list[str]]:
    """Send requests of two seconds all the time, about as many as there are slots for; yield the ids of those sent."""
    sent: list[str] = []
    enough = threading.Event()

    def send() -> None:
        while not enough.wait(2):
            batch = requests(f"{run}-{len(sent)}", 8, seconds=2)
            enqueue("digest", batch)
            sent.extend(str(one["id"]) for one in batch)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        enough.set()
        thread.join()


def test_a_class_runs_in_an_environment_of_its_pool_alone(run: str) -> None:
    enqueue("digest", requests(run, 6))
    python = tomllib.loads(container("worker1").file("/etc/slowjobs/worker-digest.toml").content_string)["pool"][
        "handler"
    ]["interpreter"]
    assert container("worker1").file(ENVIRONMENTS).listdir() == [python.split("/")[-3]]
    program = f"import base58, hashlib; print(base58.b58encode(hashlib.sha256(b'{run}').digest()).decode())"
    digest = container("worker1").check_output("%s -c %s", python, program)
    found = await_results(run, 6)
    assert {result["digest"] for result in found} == {digest}
    # The package for what a class raises; not what the package itself requires.
    assert container("worker1").run("%s -c 'import slowjobs.outcomes'", python).rc == 0
    assert container("worker1").run("%s -c 'import aiohttp'", python).rc != 0


def test_stopping_ends_what_runs_and_delivers_it(run: str, gate: str) -> None:
    enqueue("digest", requests(run, 12, until=gate))
    wait_until(lambda: all(len(state(host)["running"]) == 3 for host in ADDRESSES), "all slots in use")
    running = Counter(json.loads(one["key"])[0] for one in state("worker1")["running"])
    assert running.total() == 3
    container("worker1").check_output("systemctl stop --no-block slowjobs-worker@digest")
    wait_until(lambda: bool(state("worker1")["draining"]), "it drains")
    open_gate(gate)
    wait_until(lambda: shown("worker1", "digest", "ActiveState") == ["inactive"], "it is stopped")
    assert shown("worker1", "digest", "Result", "ExecMainStatus") == ["success", "0"]
    found = await_all_results(run, 12)
    assert ids(found) == each_once(run, 12)
    drained = [result for result in found if ids([result]) <= running]
    assert {(result["_slowjobs"]["worker"].split("/")[0], result["_slowjobs"]["attempt"]) for result in drained} == {
        ("worker1", 1)
    }
    container("worker1").check_output("systemctl start slowjobs-worker@digest")


def test_weights_slots_and_lanes_are_reloaded_while_tasks_run(run: str, gate: str) -> None:
    enqueue("digest", requests(run, 4, until=gate))
    wait_until(lambda: sum(len(state(host)["running"]) for host in ADDRESSES) == 4, "all run")
    before, running = processes(), {host: state(host)["running"] for host in ADDRESSES}

    changed = copy.deepcopy(SITE)
    changed["slowjobs_pools"]["digest"] |= {"slots": 4, "drain_timeout_seconds": 700}
    changed["slowjobs_lanes"]["digest"]["weight"] = 2
    changed["slowjobs_lanes"]["digest-more"] = {"kind": "digest", "pool": "digest"}
    # A program's files are read anew by each request.
    changed["slowjobs_pools"]["fixity"]["files"].append({"src": "files/digest/digest.py", "dest": "more.py"})
    deploy(changed)

    assert processes() == before
    assert {host: state(host)["running"] for host in ADDRESSES} == running
    for host in ADDRESSES:
        told = state(host)
        assert (told["slots"], set(told["lanes"]), told["refused"]) == (4, {"digest", "digest-more"}, None)
        assert told["config"] == container(host).file("/etc/slowjobs/worker-digest.toml").sha256sum
        assert shown(host, "digest", "TimeoutStopUSec") == ["12min 10s"]
        assert container(host).file("/opt/slowjobs/pools/fixity/more.py").exists
    # As by hand: the bridge does not know the new lane yet.
    [by_hand] = requests(f"{run}-by-hand", 1)
    pipe("control1", ["python3", "-c", ASK, f"http://{NSQD}/pub?topic=digest-more"], json.dumps(by_hand))
    await_results(f"{run}-by-hand", 1)
    open_gate(gate)
    found = [result for result in await_all_results(run, 5) if result["_slowjobs"]["lane"] == "digest"]
    assert ids(found) == each_once(run, 4)
    assert {result["_slowjobs"]["attempt"] for result in found} == {1}


def test_a_class_that_is_not_there_is_refused_before_a_worker_is_restarted() -> None:
    def looks() -> tuple[object, ...]:
        return processes(), *(container(host).file("/etc/slowjobs/worker-digest.toml").sha256sum for host in ADDRESSES)

    before = looks()
    changed = copy.deepcopy(SITE)
    changed["slowjobs_pools"]["digest"]["handler"]["python"] = "digest:Nope"
    refused = play(changed)
    said, _ = refused.communicate()
    assert refused.returncode != 0
    assert "module 'digest' has no attribute 'Nope'" in said
    assert looks() == before


def another_handler() -> dict[str, Any]:
    changed = copy.deepcopy(SITE)
    changed["slowjobs_pools"]["digest"]["handler"]["options"] = {"algorithm": "sha512"}
    changed["slowjobs_pools"]["digest"]["packages"] = ["base58==2.1.0"]
    return changed


def test_another_handler_restarts_one_host_after_another_and_no_request_twice(run: str) -> None:
    before, old = processes(), container("worker1").file(ENVIRONMENTS).listdir()
    with load(run) as sent:
        deploy(another_handler(), "--extra-vars=worker_serial=1")

    for host in ADDRESSES:
        assert processes()[host, "digest"] != before[host, "digest"]
        assert processes()[host, "fixity"] == before[host, "fixity"]
        # What no worker runs with any more is gone.
        assert len(container(host).file(ENVIRONMENTS).listdir()) == 1
        assert container(host).file(ENVIRONMENTS).listdir() != old
    left, back = "ActiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"
    moments = [int(moment) for host in ADDRESSES for moment in shown(host, "digest", left, back)]
    assert moments == sorted(moments)
    found = await_all_results(run, len(sent))
    # Each run that ends gives a result.
    assert ids(found) == Counter(sent)
    # Both the old and the new handler had their part.
    assert {len(result["digest"]) > 50 for result in found} == {False, True}


def test_another_state_port_takes_a_restart() -> None:
    before = processes()
    changed = another_handler()
    changed["slowjobs_pools"]["fixity"]["state_port"] = 9319
    deploy(changed)
    for host, address in ADDRESSES.items():
        # On the host itself: the firewall was not deployed.
        command = ("python3 -c %s %s < /dev/null", ASK, f"http://{address}:9319/state")
        wait_until(lambda host=host, command=command: container(host).run(*command).rc == 0, "it answers there")
        assert processes()[host, "fixity"] != before[host, "fixity"]
        assert processes()[host, "digest"] == before[host, "digest"]
