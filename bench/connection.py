"""nsqd's protocol over a blocking connection, for what has to be quicker than the services that are measured."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from nsq import protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: seconds; an answer or a message that takes longer does not come.
_TIMEOUT_SECONDS = 60
_RECEIVED_BYTES = 1024 * 1024
#: nsqd wants to hear something of a consumer in twice this time: each message that is finished is that.
_HEARTBEAT_SECONDS = 60
#: a frame begins with its size, which counts all that follows.
_SIZE_BYTES = 4


class Connection:
    """One connection to nsqd. Raises OSError for an error that nsqd tells, and when nothing comes for a minute."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS)
        self._received = b""
        self._ask(protocol.MAGIC_V2 + protocol.identify({"heartbeat_interval": _HEARTBEAT_SECONDS * 1000}))

    def publish(self, topic: str, bodies: Sequence[bytes]) -> None:
        """Publish a batch, and wait for the answer."""
        framed = b"".join([struct.pack(">l", len(body)) + body for body in bodies])
        sizes = struct.pack(">ll", len(framed) + _SIZE_BYTES, len(bodies))
        self._ask(b"MPUB %s\n%s%s" % (topic.encode(), sizes, framed))

    def subscribe(self, topic: str, channel: str, count: int) -> None:
        """Take at most ``count`` messages of a channel at a time."""
        self._ask(protocol.subscribe(topic, channel))
        self._socket.sendall(protocol.ready(count))

    def messages(self) -> list[tuple[bytes, bytes]]:
        """Return id and body of all messages that have come; wait for the first."""
        messages = map(protocol.decode_message, self._frames())
        return [(message.id, message.body) for message in messages]

    def send(self, commands: Iterable[bytes]) -> None:
        """Send commands that nsqd does not answer."""
        self._socket.sendall(b"".join(commands))

    def close(self) -> None:
        """Close it; what was not finished goes to others."""
        self._socket.close()

    def _ask(self, command: bytes) -> None:
        self._socket.sendall(command)
        self._frames()

    def _frames(self) -> list[bytes]:
        """Return the data of all frames that have come, at least one."""
        frames: list[bytes] = []
        while not frames:
            received = self._socket.recv(_RECEIVED_BYTES)
            if not received:
                raise ConnectionError("nsqd has closed the connection")
            self._received += received
            frames = self._take()
        return frames

    def _take(self) -> list[bytes]:
        frames, begin = [], 0
        while len(self._received) >= begin + _SIZE_BYTES:
            (size,) = struct.unpack_from(">l", self._received, begin)
            end = begin + _SIZE_BYTES + size
            if len(self._received) < end:
                break
            kind, data = protocol.unpack_response(self._received[begin + _SIZE_BYTES : end])
            if kind == protocol.FRAME_TYPE_ERROR:
                raise ConnectionError(f"nsqd: {data!r}")
            if data != b"_heartbeat_":
                frames.append(data)
            begin = end
        self._received = self._received[begin:]
        return frames
