"""A real nsqd on 127.0.0.1."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from support import artefacts
from support.processes import LocalProcess, free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: seconds; short, so that a dead worker's requests come back while a test can wait for it.
MSG_TIMEOUT_SECONDS = 3


class NsqdClient:
    """What is asked of an nsqd, wherever it runs."""

    def __init__(self, http_address: str) -> None:
        self.http_address = http_address

    def get(self, path: str) -> Any:
        return json.loads(self._call("GET", path))

    def post(self, path: str, body: bytes = b"") -> None:
        self._call("POST", path, body)

    def publish(self, topic: str, body: bytes) -> None:
        self.post(f"/pub?topic={quote(topic)}", body)

    def create(self, topic: str, channel: str) -> None:
        self.post(f"/topic/create?topic={quote(topic)}")
        self.post(f"/channel/create?topic={quote(topic)}&channel={quote(channel)}")

    def topic(self, name: str) -> dict[str, Any] | None:
        """Return a topic's part of ``/stats``, or None if there is no such topic."""
        found = self.get(f"/stats?format=json&include_mem=false&topic={quote(name)}")["topics"]
        return found[0] if found else None

    def channel(self, topic: str, name: str) -> dict[str, Any]:
        """Return a channel's part of ``/stats``. The topic and the channel must exist."""
        found = self.topic(topic)
        assert found is not None, f"nsqd has no topic {topic}"
        [channel] = [channel for channel in found["channels"] if channel["channel_name"] == name]
        return dict(channel)

    def outstanding(self, topic: str) -> int:
        """Return what nsqd still owes of a topic: waiting, in flight and deferred, in the topic and its channels."""
        found = self.topic(topic)
        if found is None:
            return 0
        return max(0, found["depth"]) + sum(
            max(0, channel["depth"]) + channel["in_flight_count"] + channel["deferred_count"]
            for channel in found["channels"]
        )

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"http://{self.http_address}{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            content: bytes = answer.read()
        return content


class Nsqd(NsqdClient, LocalProcess):
    """nsqd with the flags that the role gives it, but for a shorter msg-timeout."""

    def __init__(self, folder: Path, *, node_id: int = 506, flags: Sequence[str] = ()) -> None:
        self._data = data = folder / "data"
        data.mkdir(parents=True)
        self.tcp_address = f"127.0.0.1:{free_port()}"
        NsqdClient.__init__(self, f"127.0.0.1:{free_port()}")
        LocalProcess.__init__(
            self,
            folder.name,
            [
                str(artefacts.nsqd()),
                f"--data-path={data}",
                "--mem-queue-size=0",
                "--sync-every=1",
                f"--msg-timeout={MSG_TIMEOUT_SECONDS}s",
                "--max-msg-timeout=6h",
                "--max-req-timeout=15m",
                f"--node-id={node_id}",
                f"--tcp-address={self.tcp_address}",
                f"--http-address={self.http_address}",
                "--https-address=",
                "--broadcast-address=127.0.0.1",
                *flags,
            ],
            log=folder / "nsqd.log",
        )

    def double_first(self, topic: str, channel: str) -> None:
        """Have a stopped nsqd hold the first message of a channel twice, as a kill between topic and channel can.

        Its disk queue is records, each after its size in four bytes, and a text: depth, where to read and to write.
        """
        name = self._data / f"{topic}:{channel}.diskqueue"
        records = name.with_name(f"{name.name}.000000.dat")
        about = name.with_name(f"{name.name}.meta.dat")
        depth, (read_file, read), (write_file, write) = (
            [int(number) for number in line.split(",")] for line in about.read_text().splitlines()
        )
        written = records.read_bytes()[:write]
        first = written[read : read + 4 + int.from_bytes(written[read : read + 4])]
        records.write_bytes(written[:read] + first + written[read:])
        about.write_text(f"{depth[0] + 1}\n{read_file},{read}\n{write_file},{write + len(first)}\n")

    def start(self) -> None:
        super().start()
        # Another nsqd on the port would answer as well, hence the look at the process.
        wait_until(lambda: self._call("GET", "/ping") == b"OK", 10, "nsqd to answer", while_true=self.trouble)
