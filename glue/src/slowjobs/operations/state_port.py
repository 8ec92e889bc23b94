"""The state ports of our services: what each says of itself, and what a worker is told there."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import aiohttp

from slowjobs import documents

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slowjobs import settings

#: seconds; a service that does not answer by then is unreachable.
_STATE_SECONDS = 3.0
#: seconds; a worker that is told to release waits 5 s at most for Kafka, twice.
_RELEASE_SECONDS = 15.0


class StoppedError(ConnectionError):
    """The host answers and nothing listens on the port: the service is stopped."""


class StrangerError(ConnectionError):
    """What answers on the port is not what should be there."""


async def read(session: aiohttp.ClientSession, service: settings.Service) -> dict[str, Any]:
    """Return what ``service`` says of itself. Raises an error of nsq.ERRORS, such as StoppedError."""
    said = await _ask(session, service, "/state", _STATE_SECONDS)
    if said.get("service") != service.name:
        raise StrangerError(f"another service answers on its port: {said.get('service')}")
    return said


async def release(session: aiohttp.ClientSession, worker: settings.Service, lanes: Iterable[str]) -> int:
    """Have ``worker`` give back what waits there of ``lanes``; return how many requests. Raises as ``read``."""
    answer = await _ask(session, worker, "/release", _RELEASE_SECONDS, {"lanes": list(lanes)})
    return int(answer["released"])


async def _ask(
    session: aiohttp.ClientSession, service: settings.Service, path: str, seconds: float, body: object = None
) -> dict[str, Any]:
    method, url = "GET" if body is None else "POST", f"http://{service.state_address}{path}"
    try:
        async with session.request(method, url, json=body, timeout=aiohttp.ClientTimeout(total=seconds)) as response:
            if not response.ok:
                raise ConnectionError(f"it answers {response.status}: {await response.text()}")
            answer = await response.json(content_type=None)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    except aiohttp.ClientConnectorError as error:
        if error.os_error.errno == errno.ECONNREFUSED:
            raise StoppedError(f"nothing listens on {service.state_address}: it is stopped") from None
        raise
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("v") != documents.VERSION:
        raise StrangerError("something else, or another version, answers on its port")
    return answer
