"""The intake: requests from HTTP to a lane's Kafka topic (docs/intake.md is what clients read)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from typing import TYPE_CHECKING, Any

import aiohttp.http_exceptions
import prometheus_client
import structlog
from aiohttp import web

from slowjobs import documents, kafka, retry, service, settings
from slowjobs.intake import body, connections

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

log = structlog.get_logger()

#: the media type of a body that is one object, perhaps over many lines; any other is JSON lines.
_ONE_OBJECT = "application/json"
#: bytes that a request takes here beside its own.
_REQUEST_BYTES = 512
#: requests of one body that are on their way to Kafka at once.
_BATCH_REQUESTS = 1000
#: seconds after which a client that was told to wait may ask again.
_RETRY_AFTER_SECONDS = 5
#: seconds that a stopping service gives its clients beyond what Kafka may take.
_STOP_MARGIN_SECONDS = 5.0

_REQUESTS = prometheus_client.Counter("slowjobs_intake_requests_total", "Requests that Kafka acknowledged", ["lane"])
_ANSWERS = prometheus_client.Counter("slowjobs_intake_answers_total", "HTTP answers", ["status"])
_UNACKNOWLEDGED = prometheus_client.Gauge("slowjobs_intake_unacknowledged_bytes", "Bytes of bodies under way")


#: a position as JSON has it; None for a request that Kafka has not acknowledged.
Place = list[str | int] | None


class _Refusal(Exception):  # noqa: N818 - an answer like any other
    """An answer that takes nothing, or not all; ``members`` stand beside the error."""

    def __init__(self, status: int, error: str, *, headers: dict[str, str] | None = None, **members: object) -> None:
        super().__init__(error)
        self.status = status
        self.headers = headers
        self.document = {"error": error, **members}


class _Room:
    """How many bytes may be under way at once, and are."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.taken = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes so many bytes more, until the end. It raises _Refusal."""
        own = 0

        def _take(size: int) -> None:
            nonlocal own
            if own + size > self._max_bytes:
                raise _Refusal(413, "too many requests in one body: send them in several")
            if self.taken + size > self._max_bytes:
                raise _later(429, "too much is waiting for Kafka: nothing of this body was taken, send it again later")
            own += size
            self._change(size)

        try:
            yield _take
        finally:
            self._change(-own)

    def _change(self, size: int) -> None:
        self.taken += size
        _UNACKNOWLEDGED.set(self.taken)


def _later(status: int, error: str, **members: object) -> _Refusal:
    return _Refusal(status, error, headers={"Retry-After": str(_RETRY_AFTER_SECONDS)}, **members)


class Intake(service.Service):
    """Take requests over HTTP, and say so once all in-sync replicas of Kafka have them.

    Of a body with a mistake nothing is sent. A crash, or Kafka away, before the answer: some requests may be on Kafka,
    and the client sends all of them again; such a one runs twice and ends in one row, as any that came twice.
    """

    def __init__(self, config: settings.IntakeSettings, secrets: settings.Credentials) -> None:
        strangers = sorted(set(secrets.intake_tokens) - set(config.lanes))
        if strangers or not secrets.intake_tokens:
            raise settings.ConfigurationError(
                f"intake_tokens.json: got tokens for {', '.join(strangers) or 'no lane'}, "
                f"expected some for lanes among {', '.join(config.lanes)}"
            )
        self._config = config
        self._secrets = secrets
        self._room = _Room(config.max_unacknowledged_bytes)
        self._stopping = asyncio.Event()
        self._away = retry.OnceAMinute()
        self._acknowledged = 0
        application = web.Application(middlewares=[self._answer])
        application.add_routes([web.post("/lanes/{lane}/requests", self._post)])
        self._runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=config.kafka_timeout_seconds + _STOP_MARGIN_SECONDS,
        )
        self._connections = connections.Connections(self._runner, idle_seconds=config.client_timeout_seconds)

    async def prepare(self) -> None:
        """Open the port, so that a service that counts as started takes requests. Raises OSError."""
        self._producer = kafka.Producer(
            self._config.kafka,
            self._secrets,
            client_id="slowjobs-intake",
            timeout_seconds=self._config.kafka_timeout_seconds,
        )
        await self._runner.setup()
        address = self._config.listen_address
        await web.TCPSite(self._runner, address.host, address.port).start()

    async def run(self) -> None:
        """Answer until ``stop``. Raises kafka.ProducerFailedError when no request can be sent any more."""
        closer = asyncio.create_task(self._connections.close_idle())
        stopped = asyncio.create_task(self._stopping.wait())
        failed = asyncio.create_task(self._producer.watch())
        try:
            done, _ = await asyncio.wait([closer, stopped, failed], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in (closer, stopped, failed):
                task.cancel()
            await self._runner.cleanup()
            await self._producer.close()

    def stop(self) -> None:
        """End: 1 accept no more connections, 2 finish what is under way, 3 close."""
        self._stopping.set()

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says."""
        return {
            "lanes": list(self._config.lanes),
            "acknowledged": self._acknowledged,
            "unacknowledged_bytes": self._room.taken,
        }

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        with self._connections.busy(request.protocol):
            try:
                response = await handler(request)
            except _Refusal as refusal:
                response = _response(refusal.status, refusal.document, refusal.headers)
            except web.HTTPException as error:  # there is no such path, or no such method
                allowed = {name: value for name, value in error.headers.items() if name == "Allow"}
                response = _response(error.status, {"error": error.reason}, allowed)
        _ANSWERS.labels(response.status).inc()
        return response

    async def _post(self, request: web.Request) -> web.Response:
        lane = self._lane(request)
        with self._room.share() as take:
            places = await self._send(lane, await self._messages(request, lane, take))
        return _response(202, {"lane": lane, "acknowledged": len(places), "positions": places})

    async def _messages(self, request: web.Request, lane: str, take: Callable[[int], None]) -> list[body.Message]:
        content = await self._read(request, take)
        is_lines = request.content_type != _ONE_OBJECT
        take(_REQUEST_BYTES * (content.count(b"\n") + 1 if is_lines else 1))
        return await asyncio.to_thread(self._parse, lane, content, is_lines=is_lines)

    def _lane(self, request: web.Request) -> str:
        """Return the lane that is asked for. A stranger is not told which lanes there are."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode(errors="surrogateescape")
        # All are compared, and in constant time each: how long it takes tells nothing of them.
        allowed = {
            lane
            for lane, tokens in self._secrets.intake_tokens.items()
            for known in tokens
            if hmac.compare_digest(known.encode(), given)
        }
        if scheme.lower() != "bearer" or not allowed:
            raise _Refusal(
                401,
                "expected the header `Authorization: Bearer TOKEN` with a token of this lane",
                headers={"WWW-Authenticate": "Bearer"},
            )
        lane = request.match_info["lane"]
        if lane not in self._config.lanes:
            raise _Refusal(404, f"no lane {lane!r} takes requests here")
        if lane not in allowed:
            raise _Refusal(403, f"this token is not good for lane {lane!r}")
        return lane

    async def _read(self, request: web.Request, take: Callable[[int], None]) -> bytes:
        """Return the body, unpacked. What comes is counted as it comes, whatever the headers say."""
        content = bytearray()
        try:
            async with asyncio.timeout(self._config.client_timeout_seconds):
                self._check_size(request.content_length or 0)
                async for chunk in request.content.iter_any():
                    self._check_size(len(content) + len(chunk))
                    take(len(chunk))
                    content += chunk
        except TimeoutError:
            raise _Refusal(408, f"the body was not here after {self._config.client_timeout_seconds:g} s") from None
        except (web.RequestPayloadError, aiohttp.http_exceptions.HttpProcessingError) as error:
            raise _Refusal(400, f"the body is not as its headers say: {error}") from None
        return bytes(content)

    def _check_size(self, size: int) -> None:
        if size > self._config.max_body_bytes:
            raise _Refusal(413, f"the body has more than {self._config.max_body_bytes} bytes: send it in parts")

    def _parse(self, lane: str, content: bytes, *, is_lines: bool) -> list[body.Message]:
        try:
            return body.parse(
                content,
                is_lines=is_lines,
                topic=self._config.kafka_topic(lane),
                kind=self._config.kind_of(lane),
                max_message_bytes=self._config.max_message_bytes,
            )
        except body.RefusedError as refused:
            raise _Refusal(
                400,
                f"nothing of the body was taken, for its mistakes: {refused.count}",
                mistakes=[mistake.as_json() for mistake in refused.mistakes],
            ) from None

    async def _send(self, lane: str, messages: Sequence[body.Message]) -> list[Place]:
        """Return where the requests are, in the order of the body."""
        topic = self._config.kafka_topic(lane)
        places: list[Place] = []
        for first in range(0, len(messages), _BATCH_REQUESTS):
            batch = messages[first : first + _BATCH_REQUESTS]
            answers = await asyncio.gather(*(self._try_send(topic, message) for message in batch))
            errors = [answer for answer in answers if isinstance(answer, kafka.DeliveryError)]
            places += [answer.as_json() if isinstance(answer, documents.Position) else None for answer in answers]
            _REQUESTS.labels(lane).inc(len(answers) - len(errors))
            self._acknowledged += len(answers) - len(errors)
            if errors:
                raise self._unsent(errors[0], places + [None] * (len(messages) - len(places)))
        return places

    def _unsent(self, error: kafka.DeliveryError, places: list[Place]) -> _Refusal:
        if self._away.is_due():
            log.warning("intake.not_acknowledged", error=str(error))
        said: dict[str, Any] = {"acknowledged": len(places) - places.count(None), "positions": places}
        if error.too_large:
            return _Refusal(413, f"a request is too large for Kafka ({error})", **said)
        return _later(503, f"Kafka has not acknowledged all of it ({error}): send it again, later", **said)

    async def _try_send(self, topic: str, message: body.Message) -> documents.Position | kafka.DeliveryError:
        try:
            return await self._producer.send(topic, message.value, key=message.key)
        except kafka.DeliveryError as error:
            return error


def _response(status: int, document: dict[str, object], headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"v": documents.VERSION, **document}, status=status, headers=headers)
