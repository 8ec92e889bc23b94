"""Work that goes on while hosts are changed, and an account of what became of it: for the scenarios of operations."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
#: another inventory of the same shape, for trials.
INVENTORY = Path(os.environ.get("LOAD_INVENTORY", ROOT / "molecule" / "inventory" / "hosts.yml"))
HOSTS: dict[str, dict[str, str]] = yaml.safe_load(INVENTORY.read_text())["all"]["hosts"]
PREFIX: str = yaml.safe_load((INVENTORY.parent / "group_vars/all/local_hosts.yml").read_text())["local_hosts_prefix"]
LANE, RESULTS, EVENTS = "digest", "digest-results", "slowjobs-events"
#: requests that wait on Kafka: so many that the bridge never lacks any, so few that the last ones soon come to an end.
BACKLOG = 120
UNATTENDED = "--extra-vars=gate_confirm=false"
#: what a move writes when it begins to wait for the old host.
DRAINS = "TASK [gate : Wait for requests that"

#: asks over HTTP, as the one host that the firewalls let; posts what else it is given.
ASK = """
import sys, urllib.request
url, *body = sys.argv[1:]
print(urllib.request.urlopen(url, *[text.encode() for text in body], timeout=10).read().decode())
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


def run_on(host: str, *command: str, text: str = "") -> str:
    """Run a command on a host and return what it wrote."""
    argv = ["podman", "exec", "--interactive", PREFIX + host, *command]
    done = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command} on {host}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def publish_by_hand(host: str) -> None:
    """Publish a request to an nsqd as somebody with curl would."""
    url = f"http://{HOSTS[host]['slowjobs_address']}:4151/pub?topic={LANE}"
    run_on("control1", "python3", "-c", ASK, url, json.dumps({"id": "by-hand", "text": "by hand", "seconds": 0}))


@contextlib.contextmanager
def again_and_again(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do something in the background, and again after so many ``seconds``."""
    enough = threading.Event()

    def _act() -> None:
        while not enough.wait(seconds):
            action()

    thread = threading.Thread(target=_act)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def switch(verb: str, host: str) -> None:
    """Have podman ``kill`` a host as a power cut would, or ``start`` it again."""
    argv = ["podman", verb, PREFIX + host]
    subprocess.run(argv, check=True, capture_output=True)


def status() -> dict[str, Any]:
    command = ["podman", "exec", f"{PREFIX}control1", "slowjobs", "status", "--json"]
    document: dict[str, Any] = json.loads(subprocess.run(command, text=True, capture_output=True, check=False).stdout)
    return document


def publishes_to() -> str:
    return run_on("control1", "slowjobs", "gate", "publishing").strip()


def other(host: str) -> str:
    return {"svc506": "svc507", "svc507": "svc506"}[host]


def assert_all_work_with(host: str) -> None:
    """See that bridge, workers and inventory know this nsqd host alone, and that the other one is retired."""
    said = status()
    assert said["services"][0]["nsqd"] == [host]
    assert {each["host"]: (each["state"], each["reachable"]) for each in said["nsqd"]} == {
        host: ("active", True),
        other(host): ("spare", False),
    }
    assert publishes_to() == host
    assert {tuple(worker["nsqd"]) for worker in said["workers"]} == {(host,)}
    assert f"nsqd_active_host: {host}" in (INVENTORY.parent / "group_vars/all/nsqd_active_host.yml").read_text()


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.5)


def playbook(name: str, *arguments: str, mitogen: bool = True) -> subprocess.Popen[str]:
    """Begin a playbook, in a process group of its own."""
    program = Path(sys.executable).parent / "ansible-playbook"
    command = [str(program), f"--inventory={INVENTORY}", str(ROOT / "playbooks" / name), *arguments]
    # Molecule has it in colours, which stand in the middle of sentences.
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "false"}
    if not mitogen:
        environment.pop("ANSIBLE_STRATEGY", None)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def play(name: str, *arguments: str, status: int = 0) -> str:
    """Run a playbook to its end and return what it said."""
    running = playbook(name, *arguments)
    said, _ = running.communicate()
    assert running.returncode == status, said
    return said


def begin_move(target: str, *marks: str, patience_seconds: int = 60) -> subprocess.Popen[str]:
    """Begin a move of the queue and return it when it has written a line with each of ``marks`` in turn."""
    patience = f"--extra-vars=nsq_patience_seconds={patience_seconds}"
    move = ("migrate-nsq-host.yml", f"--extra-vars=nsq_target={target}", UNATTENDED, patience)
    # What is to be killed runs as it does elsewhere.
    running = playbook(*move, mitogen=False)
    assert running.stdout
    said = ""
    for mark in marks:
        for line in running.stdout:
            said += line
            if mark in line:
                break
        else:
            raise AssertionError(f"it ended without {mark!r}:\n{said}")
    return running


def break_off(running: subprocess.Popen[str]) -> None:
    """Kill a move. Its last task comes to its end and gives up nothing."""
    tasks = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.kill()
    running.communicate()
    wait_until(lambda: not any(Path("/proc", task).exists() for task in tasks), "its last task to end", 120)
    # Or it would have to end first, after two minutes.
    run_on("control1", "rm", "-f", "/run/slowjobs.lease")


class Load:
    """Requests of 1 to 3 s for one lane, a tenth of them put back for 5 s once or twice."""

    def __init__(self) -> None:
        self.run = f"load{time.time_ns()}"
        self.sent = 0

    def flowing(self) -> contextlib.AbstractContextManager[None]:
        """Keep some waiting on Kafka all the time."""

        def _flow() -> None:
            if self._waiting() < BACKLOG:
                self.send(BACKLOG)

        return again_and_again(_flow, 1)

    def _waiting(self) -> int:
        try:
            said = run_on(
                "control1", "python3", "-c", ASK, f"http://{HOSTS['control1']['slowjobs_address']}:9301/state"
            )
        except AssertionError:
            return BACKLOG  # the bridge begins anew
        return int(json.loads(said)["lanes"][LANE]["fetched"])

    def send(self, count: int) -> None:
        documents = [self._request(self.sent + number) for number in range(count)]
        run_on("control1", "slowjobs", "enqueue", LANE, "-", text="".join(json.dumps(one) + "\n" for one in documents))
        self.sent += count

    def _request(self, number: int) -> dict[str, object]:
        again = {"again": 5} if number % 10 == 0 else {}
        return {"id": f"{self.run}-{number}", "text": self.run, "seconds": 1 + number % 5 / 2, **again}

    def await_end(self, seconds: float) -> None:
        """Return when none of it is on its way any more."""
        wait_until(lambda: not sum(lane["unfinished"] for lane in status()["lanes"]), "all done", seconds)

    def results(self) -> Counter[str]:
        """Return how many results there are of each request."""
        keys = (json.loads(result["_slowjobs"]["key"])[0] for result in consume(RESULTS))
        return Counter(key for key in keys if key.startswith(self.run))

    @property
    def all_once(self) -> Counter[str]:
        return Counter(f"{self.run}-{number}" for number in range(self.sent))


def consume(topic: str) -> Iterator[dict[str, Any]]:
    python, kafka = "/opt/slowjobs/current/bin/python", f"{HOSTS['data1']['slowjobs_address']}:9092"
    return map(json.loads, run_on("control1", python, "-c", CONSUME, kafka, topic).splitlines())


def busy_share(slots: int, begin: float, end: float) -> float:
    """Return how much of the time between two moments the slots had work, by what the workers told."""
    began: dict[str, float] = {}
    busy = 0.0
    for event in consume(EVENTS):
        position = json.dumps(event["position"])
        if event["lane"] != LANE or event["position"] is None:
            continue
        moment = min(max(_seconds(event["at"]), begin), end)
        if event["event"] == "started":
            began[position] = moment
        elif position in began:
            busy += moment - began.pop(position)
    busy += sum(end - moment for moment in began.values())
    return busy / (slots * (end - begin))


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
