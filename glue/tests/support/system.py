"""One whole slowjobs of a test's own: its names, configuration files and processes, and looks inside them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import toml
from support.postgresql import PASSWORD
from support.processes import LocalProcess, free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from support.kafka import Tail
    from support.services import Services

SLOWJOBS = Path(sys.executable).parent / "slowjobs"
DEAD_LETTERS = "slowjobs-dead-letters"
#: echoes the request as its result, in a millisecond.
ECHO = ("/bin/cat",)


class Service(LocalProcess):
    """A `slowjobs` process with a state port."""

    def __init__(self, name: str, arguments: Sequence[str], *, config: Path, environment: dict[str, str]) -> None:
        self.config = config
        self.state_address = f"127.0.0.1:{free_port()}"
        super().__init__(
            name,
            [str(SLOWJOBS), *arguments, "--config", str(config)],
            log=config.parent / f"{name}.log",
            environment=environment,
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

    def config_in_force(self) -> bool:
        return bool(self.state()["config"] == hashlib.sha256(self.config.read_bytes()).hexdigest())

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.state_address}{path}", timeout=5) as answer:
            content: bytes = answer.read()
        return content


class System:
    """One lane, one pool, one kind, one database; a bridge, two persisters, a worker on each of ``worker_hosts``.

    ``documents`` are the configuration files before they are written: a test may change them before ``write``.
    """

    def __init__(
        self,
        services: Services,
        *,
        handler: Sequence[str] = ECHO,
        slots: int = 4,
        worker_hosts: Sequence[str] = ("worker1",),
        lane: dict[str, Any] | None = None,
        pool: dict[str, Any] | None = None,
        nsqd: dict[str, Any] | None = None,
    ) -> None:
        name = uuid.uuid4().hex[:8]
        self.services = services
        self.lane = self.kafka_topic = f"lane-{name}"
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
        self.documents = self._documents(
            lane={"kind": self.kind, "pool": self.pool, **(lane or {})},
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
            nsqd=nsqd or {},
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

    def _documents(
        self, *, lane: dict[str, Any], pool: dict[str, Any], nsqd: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        services = self.services
        kafka = {"properties": {"bootstrap.servers": services.kafka.address}}
        address = {"tcp_address": services.nsqd.tcp_address, "http_address": services.nsqd.http_address}
        nsq = {"active": "svc506", "hosts": {"svc506": address}, **nsqd}
        postgresql = {"dsn": services.postgresql.dsn(self.database)}
        lanes = {"kinds": {self.kind: {"type": "job", "key": ["file_id"]}}, "lanes": {self.lane: lane}}
        result_topics = {self.pool: {"result_topic": self.result_topic}}

        documents: dict[str, dict[str, Any]] = {
            "bridge": {
                "service": "bridge",
                "host": "control1",
                "state_address": self.bridge.state_address,
                "kafka": kafka,
                "nsqd": nsq,
                **lanes,
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
                **lanes,
            }
        for host, worker in self.workers.items():
            documents[host] = {
                "service": "worker",
                "host": host,
                "state_address": worker.state_address,
                "kafka": kafka,
                "nsqd": nsq,
                "pool": pool,
                **lanes,
            }
        documents["slowjobs"] = {
            "service": "cli",
            "host": "control1",
            "kafka": kafka,
            "postgresql": postgresql,
            "nsqd": nsq,
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
            **lanes,
        }
        # Deep copies: a test that changes one file must not change another.
        return {name: json.loads(json.dumps(document)) for name, document in documents.items()}

    def write(self) -> None:
        for name, document in self.documents.items():
            (self.folder / f"{name}.toml").write_text(toml.dumps(document), encoding="utf-8")

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
        done = subprocess.run(
            [str(SLOWJOBS), *arguments],
            input=input_,
            stdin=subprocess.DEVNULL if input_ is None else None,
            capture_output=True,
            env={**self.environment, "SLOWJOBS_CONFIG": str(self.cli_config)},
            cwd=self.folder,
            timeout=seconds,
            check=False,
        )
        text = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        assert expect is None or text.returncode == expect, (
            f"slowjobs {' '.join(arguments)}: expected exit status {expect}, got {text.returncode}\n"
            f"{text.stdout}\n{text.stderr}"
        )
        return text

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

    def logs(self) -> list[tuple[str, str]]:
        """Return ``(name, end of its log)`` of all processes that ran, and of the servers."""
        servers = [self.services.nsqd]
        return [(process.name, process.log_tail(60)) for process in [*self.processes, *servers] if process.log.exists()]

    # What goes in

    def send(self, values: Iterable[bytes | None]) -> int:
        """Write raw values to the lane's Kafka topic, past every check of ours."""
        return self.services.kafka.produce(self.kafka_topic, values)

    def send_requests(self, ids: Iterable[object], **members: object) -> int:
        return self.send(request(file_id, **members) for file_id in ids)

    def sent(self) -> dict[tuple[int, int], bytes | None]:
        """Return ``(partition, offset) -> value`` of all that is on the lane's Kafka topic."""
        return {(m.partition(), m.offset()): m.value() for m in self._tail(self.kafka_topic).poll()}

    # What comes out

    def results(self) -> list[dict[str, Any]]:
        """Return all documents of the result topic, duplicates included."""
        return [json.loads(value) for value in self._tail(self.result_topic).values()]

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return this lane's dead letters; the topic is shared by all lanes."""
        letters = [json.loads(value, parse_constant=_refuse) for value in self._tail(DEAD_LETTERS).values()]
        return [letter for letter in letters if letter["lane"] == self.lane]

    def request_rows(self) -> dict[str, dict[str, Any]]:
        """Return ``file_id -> the request's members`` of the request table."""
        return {json.loads(key)[0]: row for key, row in self.rows("SELECT key, request FROM job_request")}

    def result_rows(self) -> dict[str, str]:
        """Return ``file_id -> status`` of the result table."""
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

    def channel(self) -> dict[str, Any]:
        return self.services.nsqd.channel(self.lane, self.pool)

    def outstanding(self) -> int:
        return self.services.nsqd.outstanding(self.lane)

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


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON: a strict reader cannot read this")


MakeSystem = Callable[..., System]
