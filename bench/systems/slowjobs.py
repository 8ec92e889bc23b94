"""slowjobs: Kafka, the bridge and nsqd as servers, and a worker with a Python handler."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

from support import toml
from support.kafka import Kafka
from support.nsqd import Nsqd
from support.processes import free_port
from support.waiting import wait_until
from system import HERE, System

if TYPE_CHECKING:
    from pathlib import Path

LANE, POOL, KIND, RESULTS = "bench", "noop", "noop", "bench-results"
#: as `slowjobs setup` makes them.
PARTITIONS = 6
#: of the environment that the project's other tools use.
BIN = HERE.parent / ".venv" / "bin"


class _Nsqd(Nsqd):
    """nsqd as the role starts it but for fewer fsyncs; of a flag that is given twice the last counts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._argv += ["--sync-every=100", "--msg-timeout=30s"]


class Slowjobs(System):
    """One lane; a request is finished after Kafka has acknowledged its result."""

    name = "slowjobs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._kafka = Kafka(folder / "kafka")
        self._nsqd = _Nsqd(folder / "nsqd")
        for server in (self._kafka, self._nsqd):
            self.servers.append(server)
            server.start()
        for topic, partitions in {LANE: PARTITIONS, RESULTS: PARTITIONS, "slowjobs-events": 1}.items():
            self._kafka.create_topic(topic, partitions=partitions)
        self._results = self._kafka.tail(RESULTS)
        self._keys: set[bytes] = set()
        #: requests in all, and those of earlier starts
        self._enqueued = self._earlier = 0
        bridge = self._config("bridge", host="control1")
        self._start_server("bridge", [str(BIN / "slowjobs"), "bridge", "--config", str(bridge)])

    def start(self, slots: int) -> None:
        """Start a worker with ``slots`` slots."""
        self._earlier = self._enqueued
        pool = {
            "name": POOL,
            "slots": slots,
            "result_topic": RESULTS,
            "directory": str(HERE),
            "handler": {"python": "noop:Noop", "interpreter": str(BIN / "python")},
        }
        address = f"127.0.0.1:{free_port()}"
        config = self._config("worker", host="worker1", state_address=address, pool=pool)
        self._start_worker("worker", [str(BIN / "slowjobs"), "worker", POOL, "--config", str(config)])
        wait_until(lambda: _state(address)["nsqd"], 60, "the worker to consume", while_true=self.trouble)

    def enqueue(self, tasks: int, seconds: float) -> None:
        """Write the requests to Kafka."""
        first, self._enqueued = self._enqueued, self._enqueued + tasks
        self._kafka.produce(
            LANE, (json.dumps({"id": number, "seconds": seconds}).encode() for number in range(first, self._enqueued))
        )

    def finished(self) -> int:
        """Count the keys on the result topic: a result can be there twice."""
        read = len(self._results.messages)
        self._keys.update(message.key() for message in self._results.poll()[read:])
        return len(self._keys) - self._earlier

    def close(self) -> None:
        """End everything."""
        self._results.close()
        super().close()

    def _config(self, service: str, **more: Any) -> Path:
        document = {
            "service": service,
            "state_address": f"127.0.0.1:{free_port()}",
            "kafka": {"properties": {"bootstrap.servers": self._kafka.address}},
            "nsqd": {
                "active": "svc506",
                "hosts": {
                    "svc506": {"tcp_address": self._nsqd.tcp_address, "http_address": self._nsqd.http_address},
                },
            },
            "kinds": {KIND: {"type": "job", "key": ["id"]}},
            "lanes": {LANE: {"kind": KIND, "pool": POOL}},
            **more,
        }
        path = self.folder / f"{service}.toml"
        path.write_text(toml.dumps(document), encoding="utf-8")
        return path


def _state(address: str) -> Any:
    with urllib.request.urlopen(f"http://{address}/state", timeout=5) as answer:
        return json.load(answer)
