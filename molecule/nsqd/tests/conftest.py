"""The hosts of the scenario, asked through podman: a command through Ansible would take a second."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).parents[3]
INVENTORY = ROOT / "molecule" / "inventory" / "hosts.yml"
PREFIX = "slowjobs-test-"
ACTIVE_ADDRESS = "10.89.78.13"
SPARE_ADDRESS = "10.89.78.14"

#: asks nsqd over HTTP, with what every host has
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], method=sys.argv[2], data=sys.stdin.buffer.read() or None)
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=10).read())
"""


def container(name: str) -> Host:
    return testinfra.get_host(f"podman://{PREFIX}{name}")


@pytest.fixture(scope="session")
def active() -> Host:
    return container("svc506")


@pytest.fixture(scope="session")
def spare() -> Host:
    return container("svc507")


class Nsqd:
    """nsqd of a host, asked from the control host."""

    def __init__(self, address: str = ACTIVE_ADDRESS) -> None:
        self.http = f"http://{address}:4151"

    def ask(self, path: str, method: str = "GET", data: str = "") -> str:
        command = ["podman", "exec", "-i", f"{PREFIX}control1", "python3", "-c", ASK, self.http + path, method]
        return subprocess.run(command, input=data, text=True, capture_output=True, check=True).stdout

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("/stats?format=json&include_mem=false"))
        return found

    def channel(self, topic: str) -> dict[str, Any]:
        [found] = [found for found in self.stats()["topics"] if found["topic_name"] == topic]
        [channel] = found["channels"]
        return dict(channel)

    def make(self, topic: str) -> None:
        self.ask(f"/topic/create?topic={topic}", "POST")
        self.ask(f"/channel/create?topic={topic}&channel=pool", "POST")

    def publish(self, topic: str, count: int) -> None:
        self.ask(f"/mpub?topic={topic}", "POST", "\n".join(f'{{"n":{n}}}' for n in range(count)))

    def answers(self) -> bool:
        try:
            return self.ask("/ping") == "OK"
        except subprocess.CalledProcessError:
            return False


@pytest.fixture
def nsqd() -> Nsqd:
    return Nsqd()


@pytest.fixture
def topic(nsqd: Nsqd, request: pytest.FixtureRequest) -> Iterator[str]:
    """A topic of this test's own, with one channel."""
    name = request.node.name[:60]
    nsqd.make(name)
    yield name
    nsqd.ask(f"/topic/delete?topic={name}", "POST")


def play(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ansible-playbook", f"--inventory={INVENTORY}", *arguments, str(ROOT / "playbooks" / "nsqd.yml")]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.2)
