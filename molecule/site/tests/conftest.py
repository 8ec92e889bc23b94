"""The hosts of the scenario, and what a user of the site sees there."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).parents[3]
INVENTORY = ROOT / "molecule" / "inventory" / "hosts.yml"
PREFIX = "slowjobs-test-"
NETWORK = "10.89.78"
ADDRESSES = {
    name: f"{NETWORK}.{last}"
    for name, last in {"data1": 11, "control1": 12, "svc506": 13, "svc507": 14, "worker1": 15, "worker2": 16}.items()
}
WORKERS = ("worker1", "worker2")

#: prints when each result of a topic was ready, by the ids that begin with a word.
FINISHED = """
import collections, json, sys, confluent_kafka
servers, topic, run = sys.argv[1:]
consumer = confluent_kafka.Consumer({"bootstrap.servers": servers, "group.id": "tests", "enable.partition.eof": True})
partitions = consumer.list_topics(topic).topics[topic].partitions
consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in partitions])
found = collections.defaultdict(list)
while partitions:
    message = consumer.poll(30)
    if message.error():
        del partitions[message.partition()]
    else:
        about = json.loads(message.value())["_slowjobs"]
        [name] = json.loads(about["key"])
        if name.startswith(run):
            found[name].append(about["finished"])
print(json.dumps(found))
"""


def container(name: str) -> Host:
    return testinfra.get_host(f"podman://{PREFIX}{name}")


def pipe(host: str, command: list[str], text: str) -> str:
    """Run a command with something on its standard input."""
    argv = ["podman", "exec", "--interactive", PREFIX + host, *command]
    return subprocess.run(argv, input=text, text=True, capture_output=True, check=True).stdout


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{journals()}"
        time.sleep(0.5)


def journals() -> str:
    """Return what the services said last, for a failure."""
    command = "journalctl --unit 'slowjobs-*' --lines 20 --no-pager --output cat"
    return "\n".join(f"--- {name}\n{container(name).check_output(command)}" for name in ("control1", *WORKERS))


@pytest.fixture(scope="session")
def control() -> Host:
    return container("control1")


def status(control: Host) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(control.run("slowjobs status --json").stdout)
    return document


def enqueue(requests: list[dict[str, object]], lane: str = "fixity-check") -> None:
    pipe("control1", ["slowjobs", "enqueue", lane, "-"], "".join(json.dumps(one) + "\n" for one in requests))


def rows(query: str) -> list[str]:
    psql = ["runuser", "-u", "postgres", "--", "psql", "-At", "-v", "ON_ERROR_STOP=1", "slowjobs"]
    return pipe("data1", psql, query).splitlines()


def enqueue_digests(run: str, seconds: list[float]) -> None:
    """Send a request for each time that one is to take."""
    documents = [{"id": f"{run}-{number}", "text": run, "seconds": each} for number, each in enumerate(seconds)]
    enqueue([dict(document) for document in documents], "digest")


def finished(run: str) -> dict[str, list[float]]:
    """Return when each request of a run was done, once for each of its results."""
    python = ["/opt/slowjobs/current/bin/python", "-c", FINISHED, f"{ADDRESSES['data1']}:9092", "digest-results", run]
    found: dict[str, list[str]] = json.loads(pipe("control1", python, ""))
    return {name: [datetime.fromisoformat(each).timestamp() for each in times] for name, times in found.items()}


def digests(run: str) -> Counter[str]:
    """Return how many results there are of each request of a run."""
    return Counter({name: len(times) for name, times in finished(run).items()})


def ansible(
    *names: str,
    variables: dict[str, object] | None = None,
    options: Sequence[str] = (),
    inventory: Path = INVENTORY,
) -> list[str]:
    return [
        str(Path(sys.executable).parent / "ansible-playbook"),
        f"--inventory={inventory}",
        f"--extra-vars={json.dumps(variables or {})}",
        *options,
        *(str(ROOT / "playbooks" / name) for name in names),
    ]


def playbook(
    *names: str,
    variables: dict[str, object] | None = None,
    options: Sequence[str] = (),
    inventory: Path = INVENTORY,
) -> subprocess.CompletedProcess[str]:
    command = ansible(*names, variables=variables, options=options, inventory=inventory)
    # Molecule has it in colours, which stand in the middle of sentences.
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "false"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
