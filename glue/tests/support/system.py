"""One whole slowjobs of a test's own: its names, configuration files and processes, and looks inside them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import toml, warm
from support.nsqd import MSG_TIMEOUT_SECONDS
from support.postgresql import PASSWORD
from support.processes import LocalProcess, free_port
from support.services import ACTIVE
from support.waiting import wait_until
from support.warm import Streams, WarmProcess

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator, Sequence

    from confluent_kafka import Message

    from support.kafka import Tail
    from support.nsqd import Nsqd
    from support.processes import Running
    from support.services import Services

SLOWJOBS = Path(sys.executable).parent / "slowjobs"
DEAD_LETTERS = "slowjobs-dead-letters"
EVENTS = "slowjobs-events"
#: echoes the request as its result, in a millisecond.
ECHO = ("/bin/cat",)
JOB = {"type": "job", "key": ["file_id"]}
INGEST = {"type": "ingest"}


class Service(LocalProcess):
    """A `slowjobs` process with a state port."""

    def __init__(self, name: str, arguments: Sequence[str], *, config: Path, environment: dict[str, str]) -> None:
        self.config = config
        self.state_address = f"127.0.0.1:{free_port()}"
        self._arguments = [*arguments, "--config", str(config)]
        super().__init__(
            name, [str(SLOWJOBS), *self._arguments], log=config.parent / f"{name}.log", environment=environment
        )

    def _begin(self) -> Running:
        streams = Streams(Path(os.devnull), self.log, self.log)
        return WarmProcess(
            self._arguments, environment=self._environment or os.environ, folder=self.log.parent, streams=streams
        )

    def start(self, *, ready: bool = True) -> None:
        super().start()
        if ready:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        wait_until(self.state, 30, f"{self.name} to answer on its state port", while_true=self.trouble)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._get("/state"))
        return state

    def metrics(self) -> str:
        return self._get("/metrics").decode()

    def metric(self, name: str) -> float:
        """Return the sum of a metric over all its labels."""
        lines = [line for line in self.metrics().splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def tell_what_goes_on(self) -> None:
        """Have a service that runs say in its log where each of its tasks and threads is."""
        told = self.log_text().count("service.told")
        self.signal(signal.SIGUSR1)
        wait_until(lambda: self.log_text().count("service.told") > told, 5, "it to tell", while_true=self.trouble)

    def config_in_force(self) -> bool:
        return bool(self.state()["config"] == self._digest())

    def reload(self) -> dict[str, Any]:
        """Have the service read its file again; return its state when it has taken the file or refused it."""
        digest = self._digest()
        self.signal(signal.SIGHUP)
        return wait_until(
            self.state,
            10,
            f"{self.name} to take its file or refuse it",
            accept=lambda state: digest in {state["config"], (state["refused"] or {}).get("config")},
            while_true=self.trouble,
        )

    def release(self, *lanes: str) -> int:
        """Have a worker give back what it holds and has parked of ``lanes`` (all); return how many that were."""
        body = json.dumps({"lanes": lanes} if lanes else {}).encode()
        return int(json.loads(self._call("/release", body))["released"])

    def _digest(self) -> str:
        return hashlib.sha256(self.config.read_bytes()).hexdigest()

    def _get(self, path: str) -> bytes:
        return self._call(path, None)

    def _call(self, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.state_address}{path}", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - as above: a loopback port
            content: bytes = answer.read()
        return content


class System:
    """One pool and its lanes, one kind, one database; a bridge, two persisters, a worker on each of ``worker_hosts``.

    ``kind`` is as in the files: JOB or INGEST. ``persist_results``: the pool's, for persisters and command line.
    ``lane`` holds the settings of the only lane, ``lanes`` those of several: ``short name -> settings``. Wherever a
    lane is an argument it is the short name, and without it the first lane is meant.
    ``nsqd_hosts``: whom workers take from; the first is the active one, a second the draining one.
    ``documents`` are the configuration files before they are written: a test may change them before ``write``.
    """

    def __init__(
        self,
        services: Services,
        *,
        handler: Sequence[str] = ECHO,
        kind: dict[str, Any] = JOB,
        persist_results: str = "full",
        slots: int = 4,
        worker_hosts: Sequence[str] = ("worker1",),
        lane: dict[str, Any] | None = None,
        lanes: dict[str, dict[str, Any]] | None = None,
        pool: dict[str, Any] | None = None,
        nsqd_hosts: Sequence[str] = (ACTIVE,),
    ) -> None:
        name = self.name = uuid.uuid4().hex[:8]
        self.services = services
        settings = lanes or {"lane": lane or {}}
        #: short name -> the lane's name, and that of its Kafka topic and NSQ topic
        self.lanes = {short: f"{short}-{name}" for short in settings}
        self.lane = self.kafka_topic = next(iter(self.lanes.values()))
        self.pool = f"pool-{name}"
        self.kind = f"kind-{name}"
        self.result_topic = f"results-{name}"
        self.database = f"db_{name}"
        self.folder = services.folder / name
        self.pool_folder = self.folder / "pool"
        self.pool_folder.mkdir(parents=True)
        self.environment = self._environment()
        services.postgresql.create_database(self.database)
        self._tails: dict[str, Tail] = {}

        self.bridge = self._service("bridge", ["bridge"])
        self.persisters = {
            instance: self._service(f"persister-{instance}", ["persister", instance])
            for instance in ("requests", "results")
        }
        self.workers = {host: self._service(host, ["worker", self.pool]) for host in worker_hosts}
        self.cli_config = self.folder / "slowjobs.toml"
        self._ingests = kind == INGEST
        self.documents = self._documents(
            kind=kind,
            persist_results=persist_results,
            lanes={
                self.lanes[short]: {"kind": self.kind, "pool": self.pool, **each} for short, each in settings.items()
            },
            pool={
                "name": self.pool,
                "slots": slots,
                "task_timeout_seconds": 60,
                "drain_timeout_seconds": 90,
                "max_attempts": 3,
                "result_topic": self.result_topic,
                "directory": str(self.pool_folder),
                "handler": {"command": list(handler)},
                # Short, so that a test sees all attempts of a request that fails.
                "retry": {"base_seconds": 0.2, "cap_seconds": 0.4},
                **(pool or {}),
            },
            nsqd=self.nsqd_section(*nsqd_hosts),
        )
        self.write()

    # Configuration

    def _environment(self) -> dict[str, str]:
        credentials = self.folder / "credentials"
        credentials.mkdir()
        (credentials / "postgresql_password").write_text(PASSWORD, encoding="utf-8")
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
        return {**kept, "CREDENTIALS_DIRECTORY": str(credentials)}

    def _service(self, name: str, arguments: Sequence[str]) -> Service:
        return Service(name, arguments, config=self.folder / f"{name}.toml", environment=self.environment)

    def nsqd_section(self, active: str, *draining: str) -> dict[str, Any]:
        """Return how a service's file names the nsqd hosts."""
        return {
            "active": active,
            "draining": list(draining),
            "hosts": {
                host: {"tcp_address": nsqd.tcp_address, "http_address": nsqd.http_address}
                for host in (active, *draining)
                for nsqd in [self.services.nsqd_of(host)]
            },
        }

    def _documents(
        self,
        *,
        kind: dict[str, Any],
        persist_results: str,
        lanes: dict[str, Any],
        pool: dict[str, Any],
        nsqd: dict[str, Any],
    ) -> dict[str, dict[str, Any]]:
        services = self.services
        kafka = {"properties": {"bootstrap.servers": services.kafka.address}}
        postgresql = {"dsn": services.postgresql.dsn(self.database)}
        common = {"kinds": {self.kind: kind}, "lanes": lanes}
        result_topics = {self.pool: {"result_topic": self.result_topic, "persist_results": persist_results}}
        bridge_socket = str(self.folder / "bridge.sock")

        documents: dict[str, dict[str, Any]] = {
            "bridge": {
                "service": "bridge",
                "host": "control1",
                "state_address": self.bridge.state_address,
                "bridge_socket": bridge_socket,
                "kafka": kafka,
                "nsqd": {**nsqd, "msg_timeout_seconds": MSG_TIMEOUT_SECONDS},
                "pools": {self.pool: {"task_timeout_seconds": pool["task_timeout_seconds"]}},
                **common,
            }
        }
        for instance, persister in self.persisters.items():
            documents[persister.name] = {
                "service": "persister",
                "instance": instance,
                "host": "control1",
                "state_address": persister.state_address,
                "kafka": kafka,
                "postgresql": postgresql,
                "pools": result_topics,
                **common,
            }
        for host, worker in self.workers.items():
            documents[host] = {
                "service": "worker",
                "host": host,
                "state_address": worker.state_address,
                "kafka": kafka,
                "nsqd": nsqd,
                "pool": pool,
                **common,
            }
        documents["slowjobs"] = {
            "service": "cli",
            "host": "control1",
            "bridge_socket": bridge_socket,
            "kafka": kafka,
            "postgresql": postgresql,
            "nsqd": nsqd,
            "pools": result_topics,
            "services": [
                {"name": "slowjobs-bridge", "host": "control1", "state_address": self.bridge.state_address},
                *(
                    {
                        "name": f"slowjobs-persister@{instance}",
                        "host": "control1",
                        "state_address": persister.state_address,
                    }
                    for instance, persister in self.persisters.items()
                ),
                *(
                    {
                        "name": f"slowjobs-worker@{self.pool}",
                        "host": host,
                        "pool": self.pool,
                        "state_address": worker.state_address,
                    }
                    for host, worker in self.workers.items()
                ),
            ],
            **common,
        }
        # Deep copies: a test that changes one file must not change another.
        return {name: json.loads(json.dumps(document)) for name, document in documents.items()}

    def write(self) -> None:
        for name, document in self.documents.items():
            (self.folder / f"{name}.toml").write_text(toml.dumps(document), encoding="utf-8")

    def reload(self) -> dict[str, Any]:
        """Write the files and have the first worker read its own again; return the state that comes of it."""
        self.write()
        return self.worker.reload()

    # Processes

    @property
    def worker(self) -> Service:
        return next(iter(self.workers.values()))

    @property
    def processes(self) -> list[Service]:
        return [self.bridge, *self.persisters.values(), *self.workers.values()]

    def run(
        self, *arguments: str, input_: bytes | None = None, expect: int | None = 0, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end and check its exit status."""
        environment = {**self.environment, "SLOWJOBS_CONFIG": str(self.cli_config)}
        done = warm.run(arguments, environment=environment, folder=self.folder, input_=input_, seconds=seconds)
        assert expect is None or done.returncode == expect, (
            f"slowjobs {' '.join(arguments)}: expected exit status {expect}, got {done.returncode}\n"
            f"{done.stdout}\n{done.stderr}"
        )
        return done

    def setup(self) -> None:
        self.run("setup")

    def start(self, *services: Service) -> None:
        """Start ``services``, or all of them, and wait until each answers."""
        chosen = services or tuple(self.processes)
        for service in chosen:
            service.start(ready=False)
        for service in chosen:
            service.wait_until_ready()

    def discard(self) -> None:
        for process in self.processes:
            process.discard()
        for tail in self._tails.values():
            tail.close()

    def tell_what_goes_on(self) -> None:
        """Have all services that run say in their logs what they wait for."""
        for process in self.processes:
            with suppress(AssertionError):  # one that hangs is told of by what it does not say
                if process.is_running:
                    process.tell_what_goes_on()

    def logs(self) -> list[tuple[str, str]]:
        """Return ``(name, end of its log)`` of all processes that ran, and of the servers."""
        servers = self.services.nsqds
        return [
            (process.name, process.log_tail(150)) for process in [*self.processes, *servers] if process.log.exists()
        ]

    # What goes in

    def send(self, values: Iterable[bytes | None], *, lane: str | None = None) -> int:
        """Write raw values to the lane's Kafka topic, past every check of ours."""
        return self.services.kafka.produce(self._lane(lane), values)

    def send_requests(self, ids: Iterable[object], *, lane: str | None = None, **members: object) -> int:
        return self.send((request(file_id, **members) for file_id in ids), lane=lane)

    def sent(self, *, lane: str | None = None) -> dict[tuple[int, int], bytes | None]:
        """Return ``(partition, offset) -> value`` of all that is on the lane's Kafka topic."""
        return {(m.partition(), m.offset()): m.value() for m in self.messages(lane=lane)}

    def messages(self, *, lane: str | None = None) -> list[Message]:
        """Return all that is on the lane's Kafka topic, with keys and headers."""
        return self._tail(self._lane(lane)).poll()

    def _lane(self, short: str | None) -> str:
        return self.lane if short is None else self.lanes[short]

    # What comes out

    def results(self) -> list[dict[str, Any]]:
        """Return all documents of the result topic, duplicates included."""
        return [json.loads(value) for value in self._tail(self.result_topic).values()]

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the dead letters of this system's lanes; the topic is shared by all lanes."""
        letters = [json.loads(value, parse_constant=_refuse) for value in self._tail(DEAD_LETTERS).values()]
        return [letter for letter in letters if letter.get("lane") in self.lanes.values()]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return what the workers of this system said (only ``kinds``), in order; the topic is shared by all."""
        # Lanes and pools end in the system's name, so nothing of others is even read.
        mine = [json.loads(value) for value in self._tail(EVENTS).values() if self.name.encode() in value]
        return [event for event in mine if not kinds or event["event"] in kinds]

    def story(self, file_id: object) -> list[dict[str, Any]]:
        """Return the events of one request, in order."""
        positions = [
            [message.topic(), message.partition(), message.offset()]
            for lane in self.lanes.values()
            for message in self._tail(lane).poll()
            if json.loads(message.value() or b"null")["file_id"] == file_id
        ]
        return [event for event in self.events() if event["position"] in positions]

    def request_rows(self) -> dict[str, dict[str, Any]]:
        """Return ``file_id -> the request's members`` of the request table of type ``job``."""
        return {json.loads(key)[0]: row for key, row in self.rows("SELECT key, request FROM job_request")}

    def result_rows(self) -> dict[str, str]:
        """Return ``file_id -> status`` of the result table, ``base_url -> status`` where the kind is INGEST."""
        if self._ingests:
            return dict(self.rows("SELECT base_url, status FROM ingest_file_result"))
        return {json.loads(key)[0]: status for key, status in self.rows("SELECT key, status FROM job_result")}

    def rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return self.services.postgresql.query(self.database, sql, parameters)

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Hold a lock that lets others read the table and not write to it."""
        with closing(self.services.postgresql.connect(self.database)) as connection:
            connection.autocommit = False
            with connection.cursor() as cursor:
                cursor.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
                yield
            connection.rollback()

    def waits_for_lock(self) -> bool:
        """Tell whether someone waits for a lock in this database."""
        return bool(
            self.rows("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        )

    def channel(self, *, lane: str | None = None, nsqd: Nsqd | None = None) -> dict[str, Any]:
        return (nsqd or self.services.nsqd).channel(self._lane(lane), self.pool)

    def outstanding(self) -> int:
        """Return what all nsqd hosts together owe of all lanes."""
        return sum(nsqd.outstanding(lane) for nsqd in self.services.nsqds for lane in self.lanes.values())

    def committed(self, group: str) -> int:
        return self.services.kafka.committed(group, self.kafka_topic)

    def wait_for_results(self, ids: Iterable[object], seconds: float) -> None:
        """Wait until each of ``ids`` has a row in the result table."""
        wanted = set(ids)
        wait_until(
            lambda: wanted - set(self.result_rows()),
            seconds,
            f"{len(wanted)} result rows (what is missing is shown)",
            accept=lambda missing: not missing,
            while_true=self.trouble,
        )

    def wait_for_dead_letters(self, count: int, seconds: float) -> list[dict[str, Any]]:
        return wait_until(
            self.dead_letters,
            seconds,
            f"{count} dead letters",
            accept=lambda letters: len(letters) >= count,
            while_true=self.trouble,
        )

    def trouble(self) -> str | None:
        """Say which of the processes ended although nobody stopped it. A test that stops one says so with ``stop``."""
        for process in self.processes:
            if process.exit_status not in {None, 0, -9}:
                return process.trouble()
        return None

    def _tail(self, topic: str) -> Tail:
        if topic not in self._tails:
            self._tails[topic] = self.services.kafka.tail(topic)
        return self._tails[topic]


def request(file_id: object, **members: object) -> bytes:
    return json.dumps({"file_id": file_id, **members}).encode()


def ingest_request(base_url: str, **members: object) -> bytes:
    """Return a request of type ``ingest``; ``members`` come over and beside those that it must have."""
    required = {"link_source": "doi", "link_source_id": "10.123/abc", "ingest_type": "pdf", "base_url": base_url}
    return json.dumps({**required, **members}).encode()


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON: a strict reader cannot read this")


MakeSystem = Callable[..., System]
