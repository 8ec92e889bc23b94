"""nsqd: its TCP protocol for publisher and consumer, and its HTTP API.

pynsq's ``protocol`` module does framing and commands, asyncio the rest; pynsq's Reader and Writer are made for short
messages (they give up, back off and close in ways that lose slow ones).
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from nsq import protocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from slowjobs import settings

log = structlog.get_logger()

#: seconds; to connect and to shake hands.
CONNECT_TIMEOUT_SECONDS = 5.0
#: seconds; for the answer to a publication or an HTTP call.
ANSWER_TIMEOUT_SECONDS = 10.0
#: seconds between nsqd's heartbeats on a consumer's connection; nsqd's own floor is 1.
HEARTBEAT_SECONDS = 10.0
_LONGEST_ROUND_TRIP_SECONDS = 0.1
#: seconds that an event loop which was held up gets to read what has come.
_READ_FIRST_SECONDS = 0.5
#: messages of the first MPUB of a connection; with sync-every=1 each costs nsqd an fsync, and 100 of them 0.3 s.
FIRST_BATCH = 100
#: messages of one MPUB where nsqd is quick.
MAX_BATCH = 1000
#: seconds; of no more than nsqd stored in this time the last time is the next MPUB, unless it is a small one.
_BATCH_SECONDS = 0.1
#: bytes of the requests in one MPUB; nsqd's --max-body-size is 5 MiB, and our members come on top.
MAX_BATCH_BYTES = 4 * 1024 * 1024
#: a frame begins with its type; none of ours comes near the largest: nsqd's --max-msg-size is 1 MiB.
_FRAME_TYPE_BYTES = 4
_MAX_FRAME_BYTES = 64 * 1024 * 1024
#: errors of nsqd after which the connection goes on: the message's delivery was over already.
_HARMLESS = (b"E_FIN_FAILED", b"E_REQ_FAILED", b"E_TOUCH_FAILED")
#: what a broken connection or HTTP call raises.
ERRORS = (OSError, TimeoutError, asyncio.IncompleteReadError, aiohttp.ClientError)
#: those of them that say that nobody is there, or nobody answers.
SILENCE = (aiohttp.ClientConnectorError, TimeoutError)


class ProtocolError(OSError):
    """nsqd answered with an error, or something that is not nsqd answered."""


@dataclass(frozen=True)
class Message:
    """A delivery. ``attempts`` counts deliveries, this one included; ``id`` stays the same over all of them."""

    id: bytes
    body: bytes
    attempts: int


class _Stream:
    """Frames of nsqd's protocol over one TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        #: the least time in which nsqd has answered a question.
        self.round_trip_seconds = math.inf
        #: when a frame came last; the event loop's time.
        self._heard = 0.0

    @classmethod
    async def open(
        cls, address: settings.Address, identity: dict[str, Any], tls: ssl.SSLContext | None = None
    ) -> tuple[_Stream, dict[str, Any]]:
        """Connect, identify and, where ``tls`` is given, encrypt; return the stream and what nsqd negotiated."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                stream = cls(*await asyncio.open_connection(address.host, address.port))
                try:
                    negotiated = await stream._identify({**identity, "tls_v1": tls is not None})
                    if tls:
                        await stream._encrypt(tls, address.host, negotiated)
                except BaseException:
                    stream.abort()
                    raise
                return stream, negotiated
        except TimeoutError:
            raise TimeoutError(f"{address} does not answer within {CONNECT_TIMEOUT_SECONDS:g} s") from None
        except (ProtocolError, asyncio.IncompleteReadError) as error:
            raise ProtocolError(f"{address} does not answer as nsqd does: {error}") from error

    async def _encrypt(self, tls: ssl.SSLContext, host: str, negotiated: dict[str, Any]) -> None:
        if not negotiated.get("tls_v1"):
            raise ProtocolError("it offers no TLS")
        await self._writer.start_tls(tls, server_hostname=host)
        try:
            await self.answer()
        except (asyncio.IncompleteReadError, OSError) as error:
            # TLS 1.3 tells a client that its certificate is refused with the first read.
            raise ProtocolError(
                f"it closed the encrypted connection: is our certificate one of its CA? {error}"
            ) from error

    async def _identify(self, identity: dict[str, Any]) -> dict[str, Any]:
        self.send(protocol.MAGIC_V2)
        answer = await self.ask(protocol.identify({"feature_negotiation": True, **identity}))
        try:
            negotiated: dict[str, Any] = json.loads(answer)
            _ = negotiated["msg_timeout"]
        except (ValueError, KeyError, TypeError):
            raise ProtocolError(f"to IDENTIFY it says {answer[:80]!r}") from None
        return negotiated

    @property
    def ended(self) -> bool:
        """Whether nsqd has closed the connection."""
        return self._reader.at_eof() or self._reader.exception() is not None

    def send(self, command: bytes) -> None:
        self._writer.write(command)

    async def flush(self) -> None:
        await self._writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """Return the next frame's type and data, heartbeats answered on the way."""
        while True:
            kind, data = await self._read()
            if kind == protocol.FRAME_TYPE_RESPONSE and data == b"_heartbeat_":
                self.send(protocol.nop())
                continue
            return kind, data

    async def _read(self) -> tuple[int, bytes]:
        (size,) = struct.unpack(">l", await self._reader.readexactly(4))
        if not _FRAME_TYPE_BYTES <= size <= _MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {size} bytes: this is not nsqd")
        kind, data = protocol.unpack_response(await self._reader.readexactly(size))
        self._heard = asyncio.get_running_loop().time()
        return kind, data

    async def watch(self) -> None:
        """Return when nothing came for two of the consumer's heartbeats, not even one of them."""
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        while True:
            await asyncio.sleep(self._heard + 2 * HEARTBEAT_SECONDS - loop.time())
            # This loop may be late itself: what has come meanwhile is read first.
            await asyncio.sleep(_READ_FIRST_SECONDS)
            if self._heard + 2 * HEARTBEAT_SECONDS < loop.time():
                return

    async def ask(self, command: bytes) -> bytes:
        """Send a command and return its response."""
        begun = time.monotonic()
        self.send(command)
        answer = await self.answer()
        self.round_trip_seconds = min(self.round_trip_seconds, time.monotonic() - begun)
        return answer

    async def answer(self) -> bytes:
        """Return the next response. Raises ProtocolError for an error frame."""
        kind, data = await self.frame()
        if kind != protocol.FRAME_TYPE_RESPONSE:
            raise ProtocolError(data.decode(errors="replace"))
        return data

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """Close without waiting for what nobody takes any more."""
        self._writer.transport.abort()


class Publisher:
    """One connection that publishes batches, one at a time.

    A batch whose answer did not come is unknown: it may be stored, whole or in part. Its caller decides.
    """

    def __init__(self, address: settings.Address, *, client_id: str) -> None:
        self._address = address
        self._name = client_id
        self._stream: _Stream | None = None
        #: of the last connection: ``Api.publishers`` tells of it until nsqd has stored all that it brought.
        self.client_id = ""
        #: messages that the next MPUB should have at most.
        self.batch = FIRST_BATCH

    async def connect(self) -> bool:
        """Connect, unless it is done; return whether this is a new connection. An error means: nothing was sent."""
        if self._stream and not self._stream.ended:
            return False
        self.close()
        self.client_id = f"{self._name}/{secrets.token_hex(4)}"
        identity = {"client_id": self.client_id, "user_agent": "slowjobs", "heartbeat_interval": -1}
        self._stream, _ = await _Stream.open(self._address, identity)
        self.batch = FIRST_BATCH
        return True

    async def publish(self, topic: str, bodies: Sequence[bytes]) -> None:
        """Publish at most MAX_BATCH messages. Any error means: unknown, and the connection is closed."""
        if self._stream is None:
            raise ConnectionError("not connected")
        begun = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                self._stream.send(_mpub(topic, bodies))
                await self._stream.flush()
                await self._stream.answer()
        except BaseException:
            # What is left of it in a buffer must not go out later.
            self._stream.abort()
            self._stream = None
            raise
        stored = len(bodies) * _BATCH_SECONDS / (time.monotonic() - begun)
        self.batch = max(FIRST_BATCH, min(MAX_BATCH, int(stored)))

    def close(self) -> None:
        """Close the connection; ``connect`` opens a new one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _mpub(topic: str, bodies: Sequence[bytes]) -> bytes:
    """Return what ``protocol.mpub`` does, which copies all that it has for each message: 20 ms for a thousand."""
    parts = [struct.pack(">l", len(bodies))]
    for body in bodies:
        parts += (struct.pack(">l", len(body)), body)
    size = struct.pack(">l", sum(map(len, parts)))
    return b"".join((b"MPUB %s\n" % topic.encode(), size, *parts))


class Subscription:
    """One connection that consumes one channel of one nsqd.

    FIN, REQ and TOUCH of a message go to the connection that it came on, and only there. After an error the
    connection is over, and nsqd gives its messages to others after msg-timeout.
    """

    def __init__(self, stream: _Stream, host: str, msg_timeout_seconds: float) -> None:
        self._stream = stream
        self.host = host
        #: seconds; a message that is not touched for so long goes to another worker.
        self.msg_timeout_seconds = msg_timeout_seconds
        #: how long the way to nsqd and back takes, about; a busy moment is not taken for a long way.
        self.round_trip_seconds = min(stream.round_trip_seconds, _LONGEST_ROUND_TRIP_SECONDS)
        self.closed = False
        #: called when nsqd does not take an answer.
        self.refused: Callable[[], None] = lambda: None
        self._watch = asyncio.create_task(self._close_when_silent())

    @classmethod
    async def open(
        cls,
        address: settings.Address,
        *,
        host: str,
        topic: str,
        channel: str,
        client_id: str,
        tls: ssl.SSLContext | None = None,
    ) -> Subscription:
        """Connect and subscribe; no message comes before ``ready``. ``tls`` checks nsqd and is checked by it."""
        stream, negotiated = await _Stream.open(
            address,
            {
                "client_id": client_id,
                "user_agent": "slowjobs",
                "heartbeat_interval": int(HEARTBEAT_SECONDS * 1000),
                "output_buffer_size": -1,  # else a single message waits for nsqd's 250 ms buffer
            },
            tls,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await stream.ask(protocol.subscribe(topic, channel))
        except BaseException:
            stream.close()
            raise
        return cls(stream, host, negotiated["msg_timeout"] / 1000)

    async def receive(self) -> Message | None:
        """Return the next message, or None after ``leave``. Raises an error of ERRORS when the connection is over."""
        while True:
            kind, data = await self._stream.frame()
            if kind == protocol.FRAME_TYPE_MESSAGE:
                message = protocol.decode_message(data)
                return Message(message.id, message.body, message.attempts)
            if kind == protocol.FRAME_TYPE_RESPONSE and data == b"CLOSE_WAIT":
                return None
            if kind == protocol.FRAME_TYPE_ERROR:
                if not data.startswith(_HARMLESS):
                    raise ProtocolError(data.decode(errors="replace"))
                log.info("nsq.late_answer", nsqd=self.host, error=data.decode(errors="replace"))
                self.refused()

    def ready(self, count: int) -> None:
        """Allow at most ``count`` messages in flight on this connection."""
        self._send(protocol.ready(count))

    def finish(self, message: Message) -> None:
        """Tell nsqd that the message is done."""
        self._send(protocol.finish(message.id))

    def requeue(self, message: Message, milliseconds: int) -> None:
        """Put the message back, to be delivered again after ``milliseconds``."""
        self._send(protocol.requeue(message.id, milliseconds))

    def touch(self, message: Message) -> None:
        """Start the message's msg-timeout anew."""
        self._send(protocol.touch(message.id))

    def leave(self) -> None:
        """Ask for no more. nsqd's answer ends ``receive``: by then it has dealt with all that was sent before."""
        self._send(b"CLS\n")

    def _send(self, command: bytes) -> None:
        if not self.closed:
            self._stream.send(command)

    async def _close_when_silent(self) -> None:
        await self._stream.watch()
        log.warning("nsq.silent", nsqd=self.host, seconds=2 * HEARTBEAT_SECONDS)
        self.closed = True
        self._stream.abort()

    def close(self) -> None:
        """Close the connection; what it had in flight goes to others after msg-timeout."""
        self.closed = True
        self._watch.cancel()
        self._stream.close()


@dataclass(frozen=True)
class Channel:
    """A channel's figures, in messages: waiting (``depth``), delivered (``in_flight``), put back for later.

    ``timeouts`` counts deliveries, since nsqd's start, that nobody answered in time.
    """

    name: str
    paused: bool
    depth: int
    in_flight: int
    deferred: int
    clients: int
    timeouts: int


@dataclass(frozen=True)
class Topic:
    """A topic's figures; ``depth`` counts what has not been copied to its channels yet.

    ``message_count`` counts what was published since nsqd's start.
    """

    name: str
    paused: bool
    depth: int
    message_count: int
    channels: tuple[Channel, ...]

    def channel(self, name: str) -> Channel | None:
        """Return a channel's figures, or None if there is no such channel."""
        return next((channel for channel in self.channels if channel.name == name), None)

    def outstanding(self, channel: str) -> int:
        """Return how many messages nsqd still owes to ``channel``: waiting, in flight and deferred."""
        mine = self.channel(channel)
        return self.depth + (mine.depth + mine.in_flight + mine.deferred if mine else 0)


@dataclass(frozen=True)
class Stats:
    """One reading of ``/stats``. Not atomic: a message on its way between two counts can be missed once."""

    version: str
    healthy: bool
    start_time: int
    topics: dict[str, Topic]


class Api:
    """The HTTP API of one nsqd. Errors are those of ERRORS."""

    def __init__(self, session: aiohttp.ClientSession, address: settings.Address) -> None:
        self._session = session
        self._url = f"http://{address}"

    async def stats(self, topic: str | None = None) -> Stats:
        """Read the figures of all topics, or of one."""
        query = {"format": "json", "include_clients": "false", "include_mem": "false"}
        if topic is not None:
            query["topic"] = topic
        return _read_stats(await self._call("GET", "/stats", query), self._url)

    async def publishers(self) -> set[str]:
        """Return the client ids of all that publish; a killed one is there until nsqd has stored what it sent."""
        body = await self._call("GET", "/stats", {"format": "json", "include_clients": "true", "include_mem": "false"})
        try:
            return {client["client_id"] for client in json.loads(body)["producers"] or ()}
        except (ValueError, KeyError, TypeError):
            raise ProtocolError(f"{self._url} does not answer /stats as nsqd does, but with {body[:80]!r}") from None

    async def create_topic(self, topic: str) -> None:
        """Make a topic; one that is there stays as it is."""
        await self._call("POST", "/topic/create", {"topic": topic})

    async def create_channel(self, topic: str, channel: str) -> None:
        """Make a channel of a topic that is there; one that is there stays as it is."""
        await self._call("POST", "/channel/create", {"topic": topic, "channel": channel})

    async def empty(self, topic: str, channel: str) -> None:
        """Drop all that a channel has, in flight and deferred as well, and what waits in its topic."""
        await self._call("POST", "/topic/empty", {"topic": topic})
        await self._call("POST", "/channel/empty", {"topic": topic, "channel": channel})

    async def set_paused(self, topic: str, channel: str | None = None, *, paused: bool) -> None:
        """Pause or unpause a channel, or without one the topic: its channels go on until they are empty."""
        where = {"topic": topic} if channel is None else {"topic": topic, "channel": channel}
        level, verb = "topic" if channel is None else "channel", "pause" if paused else "unpause"
        await self._call("POST", f"/{level}/{verb}", where)

    async def _call(self, method: str, path: str, query: dict[str, str]) -> bytes:
        try:
            async with self._session.request(method, self._url + path, params=query) as response:
                response.raise_for_status()
                return await response.read()
        except TimeoutError:
            raise TimeoutError(f"{self._url} does not answer within {ANSWER_TIMEOUT_SECONDS:g} s") from None
        except aiohttp.ClientConnectorError:
            raise
        except aiohttp.ClientError as error:
            raise ProtocolError(f"{self._url} does not answer {path} as nsqd does: {error}") from error


def session() -> aiohttp.ClientSession:
    """Return what Api needs, to be closed by its caller."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_SECONDS))


def _read_stats(body: bytes, url: str) -> Stats:
    try:
        document = json.loads(body)
        topics = [_read_topic(topic) for topic in document["topics"] or ()]
        return Stats(
            version=document["version"],
            healthy=document["health"] == "OK",
            start_time=document["start_time"],
            topics={topic.name: topic for topic in topics},
        )
    except (ValueError, KeyError, TypeError):
        raise ProtocolError(f"{url} does not answer /stats as nsqd does, but with {body[:80]!r}") from None


def _read_topic(topic: dict[str, Any]) -> Topic:
    # After an unclean stop nsqd can report negative depths: they count as 0.
    channels = tuple(
        Channel(
            name=channel["channel_name"],
            paused=channel["paused"],
            depth=max(0, channel["depth"]),
            in_flight=max(0, channel["in_flight_count"]),
            deferred=max(0, channel["deferred_count"]),
            clients=channel["client_count"],
            timeouts=channel["timeout_count"],
        )
        for channel in topic["channels"] or ()
    )
    return Topic(topic["topic_name"], topic["paused"], max(0, topic["depth"]), topic["message_count"], channels)
