"""What all services share: start, stop by signal, systemd's readiness and watchdog, and the state port."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
from typing import TYPE_CHECKING, Any

import prometheus_client
import sdnotify
import structlog
from aiohttp import web

from slowjobs import documents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from slowjobs import settings

log = structlog.get_logger()


class Service:
    """A service: ``run`` works until ``stop`` was called and everything is put away."""

    async def prepare(self) -> None:
        """Do what has to work before the service counts as started. Raises settings.ConfigurationError."""

    async def run(self) -> None:
        """Work; return after ``stop``."""
        raise NotImplementedError

    def stop(self) -> None:
        """End in good order. A worker that is told a second time ends at once; the others take a few seconds."""
        raise NotImplementedError

    def reload(self) -> None:
        """Take another configuration, on SIGHUP. Most services are restarted instead."""
        log.warning("service.reload_refused", reason="a restart takes a moment: systemctl restart")

    def state(self) -> dict[str, Any]:
        """Return what the service says of itself on its state port; its members win over those of all services."""
        raise NotImplementedError

    def routes(self) -> Sequence[web.RouteDef]:
        """Return what the state port serves besides."""
        return ()


async def run(
    service: Service,
    *,
    name: str,
    host: str,
    address: settings.Address,
    config: str,
) -> None:
    """Run ``service`` under systemd until it is told to stop.

    ``config``: the configuration in force, as settings.fingerprint gives it. Serves ``/state`` and ``/metrics`` on
    ``address``. Raises OSError when that port is taken, and settings.ConfigurationError.
    """
    about = {"v": documents.VERSION, "service": name, "host": host, "config": config, "started": documents.now()}
    systemd = sdnotify.SystemdNotifier()
    loop = asyncio.get_running_loop()
    preparing = asyncio.create_task(service.prepare())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, service, systemd, preparing)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    loop.add_signal_handler(signal.SIGUSR1, _tell_what_goes_on)
    # systemd's watchdog sends SIGABRT.
    faulthandler.enable()
    await asyncio.wait([preparing])
    if preparing.cancelled():
        return
    preparing.result()
    async with _state_port(service, about, address), _watchdog(systemd):
        systemd.notify("READY=1")
        log.info("service.started", service=name, state_address=str(address), config=config[:12])
        await service.run()
    log.info("service.stopped", service=name)


def _tell_what_goes_on() -> None:
    """Log where each task waits and print where each thread is, for who wonders why nothing goes on."""
    for task in asyncio.all_tasks():
        log.info("service.task", name=task.get_name(), at=" > ".join(_waits(task.get_coro())))
    faulthandler.dump_traceback()
    log.info("service.told")


def _waits(coroutine: object) -> Iterator[str]:
    """Yield where a coroutine is, and what it waits for; the last of it comes last."""
    while frame := getattr(coroutine, "cr_frame", None):
        yield f"{frame.f_code.co_qualname}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None)


def _stop(service: Service, systemd: sdnotify.SystemdNotifier, preparing: asyncio.Task[None]) -> None:
    log.info("service.stopping")
    systemd.notify("STOPPING=1")
    preparing.cancel()
    service.stop()


@contextlib.asynccontextmanager
async def _state_port(service: Service, about: dict[str, Any], address: settings.Address) -> AsyncIterator[None]:
    async def _state(_: web.Request) -> web.Response:
        return web.json_response({**about, **service.state()})

    async def _metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=prometheus_client.generate_latest(), headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
        )

    application = web.Application()
    application.add_routes([web.get("/state", _state), web.get("/metrics", _metrics), *service.routes()])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port).start()
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _watchdog(systemd: sdnotify.SystemdNotifier) -> AsyncIterator[None]:
    """Tell systemd from the main loop that it turns, twice in each of systemd's intervals."""
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6

    async def _tell() -> None:
        while True:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval / 2)

    teller = asyncio.create_task(_tell()) if interval else None
    try:
        yield
    finally:
        if teller:
            teller.cancel()
