"""The services, and what their exit statuses mean to systemd."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from slowjobs import documents, kafka, service, settings
from slowjobs.bridge import bridge
from slowjobs.cli import common
from slowjobs.intake import intake
from slowjobs.persister import persister
from slowjobs.worker import worker as worker_

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _serve(
    config: settings.BridgeSettings | settings.PersisterSettings | settings.WorkerSettings | settings.IntakeSettings,
    path: Path,
    name: str,
    make: Callable[[], service.Service],
) -> None:
    """Run a service until it is stopped: status 0.

    1 after a failure that another start may mend: systemd tries. It does not after 2, what is configured is wrong, and
    5, another instance has taken over.
    """

    async def _run() -> None:
        await service.run(
            make(), name=name, host=config.host, address=config.state_address, config=settings.fingerprint(path)
        )

    try:
        asyncio.run(_run())
    except* settings.ConfigurationError as group:
        common.fail(f"{path}: {_first(group)}", common.EXIT_USAGE)
    except* kafka.FencedError as group:
        common.fail(f"another {name} has taken over: {_first(group)}", common.EXIT_FENCED)
    except* (
        OSError,
        kafka.DeafError,
        kafka.PlaceLostError,
        kafka.ProducerFailedError,
        documents.UnknownVersionError,
    ) as group:
        common.fail(f"{name} failed: {_first(group)}", common.EXIT_FAILED)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return an error that is no group: tasks of tasks raise groups of groups."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


@click.command("bridge")
@common.config_option()
def bridge_command(path: Path | None) -> None:
    """Run the bridge: requests from Kafka to NSQ, under each lane's cap."""
    path = path or settings.CONFIG_DIRECTORY / "bridge.toml"
    config, secrets = common.load(path, settings.BridgeSettings)
    _serve(config, path, "slowjobs-bridge", lambda: bridge.Bridge(config, secrets))


@click.command("persister")
@click.argument("instance", type=click.Choice(["requests", "results"]))
@common.config_option()
def persister_command(instance: str, path: Path | None) -> None:
    """Run a persister: requests, or results, from Kafka to PostgreSQL."""
    path = path or settings.CONFIG_DIRECTORY / f"persister-{instance}.toml"
    config, secrets = common.load(path, settings.PersisterSettings)
    if config.instance != instance:
        common.fail(f"{path}: is the persister of {config.instance}, not of {instance}", common.EXIT_USAGE)
    _serve(config, path, f"slowjobs-persister@{instance}", lambda: persister.Persister(config, secrets))


@click.command("intake")
@common.config_option()
def intake_command(path: Path | None) -> None:
    """Run the intake: requests from HTTP to Kafka."""
    path = path or settings.CONFIG_DIRECTORY / "intake.toml"
    config, secrets = common.load(path, settings.IntakeSettings)
    _serve(config, path, "slowjobs-intake", lambda: intake.Intake(config, secrets))


@click.command("worker")
@click.argument("pool")
@common.config_option()
def worker_command(pool: str, path: Path | None) -> None:
    """Run the worker of POOL on this host."""
    path = path or settings.CONFIG_DIRECTORY / f"worker-{pool}.toml"
    config, secrets = common.load(path, settings.WorkerSettings)
    if config.pool.name != pool:
        common.fail(f"{path}: is the worker of pool {config.pool.name!r}, not of {pool!r}", common.EXIT_USAGE)
    _serve(config, path, f"slowjobs-worker@{pool}", lambda: worker_.Worker(config, secrets, path))
