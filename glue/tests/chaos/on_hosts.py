"""The arena of hosts: six containers with systemd that ``site.yml`` has been deployed on, as on any others.

The harness is at home on the control host: it enters that host's network, for the firewalls let nobody else in. While
that host is cut off, so is the harness.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import urllib.request
from collections import defaultdict
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from chaos.arena import LANES, MSG_TIMEOUT_SECONDS, POOL, WORKERS, Arena
from chaos.notes import BEGINS, Note, busy, read_notes
from support.kafka import KafkaClient, Tail
from support.nsqd import NsqdClient
from support.postgresql import PASSWORD, USER
from support.system import JOB

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Sequence

_ROOT = Path(__file__).parents[3]
_INVENTORY = Path(__file__).with_name("inventory")
#: as in the inventory.
_PREFIX = "slowjobs-chaos-"
_HOSTS = ("data1", "control1", "svc506", *WORKERS)
_POOL = "chaos"
_RESULTS = "chaos-results"
#: where a handler may write on a host, and what it wrote stays when its worker is started anew.
_NOTES_FOLDER = "/dev/shm"  # noqa: S108 - the containers' own
#: what the inventory would say of slowjobs.
_VARIABLES = {
    "slowjobs_kinds": {"chaos": JOB},
    "slowjobs_pools": {
        _POOL: {
            **POOL,
            "handler": {"python": "handler:Handler", "options": {"folder": _NOTES_FOLDER}},
            "files": [{"src": "../handler.py", "dest": "handler.py"}],
            "result_topic": _RESULTS,
        }
    },
    "slowjobs_lanes": {lane: {**settings, "kind": "chaos", "pool": _POOL} for lane, settings in LANES.items()},
    "nsqd_msg_timeout_seconds": MSG_TIMEOUT_SECONDS,
    "slowjobs_postgresql_password": PASSWORD,
}
#: nothing comes to the host or leaves it, and nobody is told.
_CUT_OFF = """
table inet chaos {
    chain in { type filter hook input priority -300; iifname != "lo" drop; }
    chain out { type filter hook output priority -300; oifname != "lo" drop; }
}
"""


class Host:
    """A container, reached through its namespaces: `podman exec` takes half a second each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        pid, self.address = _output(
            *("podman", "inspect", f"{_PREFIX}{name}"),
            "--format={{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
        ).split()
        self._pid = int(pid)

    def run(self, *command: str, text: str = "") -> str:
        """Run a command as root and return what it wrote."""
        return _output("nsenter", f"--target={self._pid}", "--all", "--", *command, text=text)

    def path(self, path: str) -> Path:
        """Return where a file of the host is for us."""
        return Path(f"/proc/{self._pid}/root{path}")

    @contextmanager
    def network(self) -> Iterator[None]:
        """Have this thread, and those that it starts, on the host's network."""
        with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{self._pid}/ns/net").open() as other:
            _enter(other.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Have its connections silent on both sides."""
        self.run("nft", "--file", "-", text=_CUT_OFF)
        try:
            yield
        finally:
            self.run("nft", "delete", "table", "inet", "chaos")

    def signal(self, process: int, signal_: signal.Signals) -> None:
        with suppress(AssertionError):  # it may have ended
            self.run("kill", f"-{signal_.name}", str(process))

    def notes(self) -> list[Note]:
        path = self._notes_path
        return read_notes(path) if path.exists() else []

    def forget_notes(self) -> None:
        with suppress(FileNotFoundError):
            os.truncate(self._notes_path, 0)

    def at_work(self) -> list[Callable[[signal.Signals], None]]:
        return [partial(self.signal, pid) for pid in busy(self.notes()) if self.path(f"/proc/{pid}").exists()]

    @property
    def _notes_path(self) -> Path:
        return self.path(f"{_NOTES_FOLDER}/runs.log")


def _output(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Unit:
    """A service of a host's systemd, which starts it again when it is killed; a start ends when it answers."""

    def __init__(self, host: Host, name: str) -> None:
        self.name = name
        self._host = host

    def start(self) -> None:
        self._systemctl("start")

    def stop(self) -> None:
        self._systemctl("stop")

    def kill(self) -> None:
        self._signal("KILL")

    def freeze(self) -> None:
        self._signal("STOP")

    def thaw(self) -> None:
        self._signal("CONT")

    def _signal(self, name: str) -> None:
        self._systemctl("kill", "--kill-whom=main", f"--signal={name}")

    def _systemctl(self, *arguments: str) -> None:
        self._host.run("systemctl", *arguments, self.name)


class Hosts(Arena):
    """An arena with hosts that can be cut off, at the times that slowjobs really has."""

    command = "make chaos HOSTS=1"
    slowness = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.lanes = {lane: lane for lane in LANES}
        self.pool, self.result_topic = _POOL, _RESULTS
        self.hosts = hosts = {name: Host(name) for name in _HOSTS}
        self.kafka = KafkaClient(f"{hosts['data1'].address}:9092")
        self.nsqd = NsqdClient(f"{hosts['svc506'].address}:4151")
        self.bridge = Unit(hosts["control1"], "slowjobs-bridge")
        self.persisters = {
            name: Unit(hosts["control1"], f"slowjobs-persister@{name}") for name in ("requests", "results")
        }
        self.workers = {name: Unit(hosts[name], f"slowjobs-worker@{_POOL}") for name in WORKERS}
        self.servers = {
            "kafka": Unit(hosts["data1"], "kafka"),
            "nsqd": Unit(hosts["svc506"], "nsqd"),
            "postgresql": Unit(hosts["data1"], "postgresql@17-main"),
        }
        self._tails: dict[str, Tail] = {}

    @classmethod
    @contextmanager
    def deployed(cls) -> Iterator[Hosts]:
        """Make the hosts and deploy to them; take them away at the end, whatever happens."""
        _play("playbooks/local-down.yml")  # what a run that was killed left behind
        with ExitStack() as stack:
            stack.callback(_play, "playbooks/local-down.yml")
            for playbook in ("playbooks/local-up.yml", "site.yml"):
                _play(playbook)
            arena = cls()
            stack.enter_context(arena.hosts["control1"].network())
            stack.callback(arena._discard)
            yield arena

    def _discard(self) -> None:
        for tail in self._tails.values():
            tail.close()

    def tend(self) -> None:
        """Leave it to systemd."""

    def keep(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, host in self.hosts.items():
            (folder / f"{name}.log").write_text(host.run("journalctl", "--no-pager", "--output=short-iso-precise"))
            if name in WORKERS:
                (folder / f"{name}-runs.log").write_text("".join(f"{note}\n" for note in host.notes()))

    def _tail(self, topic: str) -> Tail:
        if topic not in self._tails:
            self._tails[topic] = self.kafka.tail(topic)
        return self._tails[topic]

    def rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        host = self.hosts["data1"].address
        connection = psycopg2.connect(host=host, dbname="slowjobs", user=USER, password=PASSWORD, connect_timeout=5)
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())

    def missing(self) -> int:
        with urllib.request.urlopen(f"http://{self.hosts['control1'].address}:9301/state", timeout=5) as answer:
            return sum(lane["missing"] for lane in json.load(answer)["lanes"].values())

    def notes(self) -> list[Note]:
        return _merged([self.hosts[name].notes() for name in WORKERS])

    def forget_notes(self) -> None:
        for name in WORKERS:
            self.hosts[name].forget_notes()

    def at_work(self) -> list[Callable[[signal.Signals], None]]:
        return [handler for name in WORKERS for handler in self.hosts[name].at_work()]


def _merged(hosts: Sequence[Sequence[Note]]) -> list[Note]:
    """Return the notes of all hosts in order, where a run that begins during one on another host overlaps it.

    A run whose process died is none: nobody noted when.
    """
    runs: defaultdict[int, list[tuple[int, float, float]]] = defaultdict(list)
    for host, noted in enumerate(hosts):
        begun: dict[int, float] = {}
        for note in noted:
            if note.what in BEGINS:
                begun[note.process] = note.at
            else:
                runs[note.number].append((host, begun[note.process], note.at))
    merged = [
        note._replace(what="overlap")
        if note.what in BEGINS and any(o != host and b <= note.at < e for o, b, e in runs[note.number])
        else note
        for host, noted in enumerate(hosts)
        for note in noted
    ]
    return sorted(merged, key=lambda note: note.at)


def _play(playbook: str) -> None:
    print(f"ansible-playbook {playbook}", file=sys.stderr, flush=True)  # noqa: T201 - it takes minutes
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [program, f"--inventory={_INVENTORY}", f"--extra-vars={json.dumps(_VARIABLES)}", playbook]
    # In a session of its own: what is typed at a terminal ends us, and we end it.
    done = subprocess.run(command, cwd=_ROOT, text=True, capture_output=True, start_new_session=True, check=False)
    if done.returncode != 0:
        sys.exit(f"ansible-playbook {playbook}: {done.returncode}\n{done.stdout}{done.stderr}")
