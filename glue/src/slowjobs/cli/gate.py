"""``slowjobs gate``."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import click

from slowjobs import documents, errors, nsq, settings
from slowjobs.cli import common
from slowjobs.operations import gate, told

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import timedelta
    from pathlib import Path

_BRIDGE = "slowjobs-bridge"


@click.group("gate")
def gate_group() -> None:
    """Print one figure of the running system, for plays and scripts that wait for it.

    Exit 6 if who is asked for it does not answer, and 1 if it cannot be read for another reason.
    """


@gate_group.command("empty")
@click.argument("host")
@common.json_option
@common.site_option
def empty_command(path: Path, host: str, *, as_json: bool) -> None:
    """Print how many requests nsqd HOST still has: waiting, in flight and deferred, of all lanes.

    It is 0 only if three readings, 2 s apart, found nothing and nothing was published meanwhile. A lane that is
    missing there is an error.

    \b
    Examples:
      slowjobs gate empty svc506
      slowjobs gate empty svc506 --json | jq .lanes
    """
    _print(gate.empty(*_nsqd(path, host)), as_json=as_json)


@gate_group.command("unfinished")
@click.argument("host")
@common.json_option
@common.site_option
def unfinished_command(path: Path, host: str, *, as_json: bool) -> None:
    """Print how many requests the bridge gave to nsqd HOST that are not done, whether HOST answers or not.

    \b
    Examples:
      slowjobs gate unfinished svc506
    """
    config, host = _nsqd(path, host)
    _print(asyncio.to_thread(gate.unfinished, config, settings.credentials(), host), as_json=as_json)


@gate_group.command("deferred")
@click.argument("host")
@common.json_option
@common.site_option
def deferred_command(path: Path, host: str, *, as_json: bool) -> None:
    """Print how many requests wait on nsqd HOST for their next try; --json says when the last is due.

    \b
    Examples:
      slowjobs gate deferred svc506 --json | jq .last_due
    """
    config, host = _nsqd(path, host)
    _print(asyncio.to_thread(told.deferred, config, settings.credentials(), host), as_json=as_json)


@gate_group.command("run-twice")
@click.option("--within", type=common.DURATION, default="1h", show_default=True, help="How far to look back.")
@common.json_option
@common.site_option
def run_twice_command(path: Path, within: timedelta, *, as_json: bool) -> None:
    """Print how many requests came to an end more than once lately; --json names their positions.

    \b
    Examples:
      slowjobs gate run-twice --within 90m
    """
    config, secrets = common.load(path, settings.CliSettings)
    since = time.time() - within.total_seconds()
    _print(asyncio.to_thread(told.run_twice, config, secrets, since), as_json=as_json)


@gate_group.command("clients")
@click.argument("host")
@common.json_option
@common.site_option
def clients_command(path: Path, host: str, *, as_json: bool) -> None:
    """Print how many connections workers have to nsqd HOST: one for each lane that each serves.

    \b
    Examples:
      slowjobs gate clients svc507
    """
    _print(gate.clients(*_nsqd(path, host)), as_json=as_json)


@gate_group.command("arriving")
@click.argument("host")
@click.option("--for", "period", type=common.DURATION, default="10s", show_default=True, help="How long to count.")
@common.json_option
@common.site_option
def arriving_command(path: Path, host: str, period: timedelta, *, as_json: bool) -> None:
    """Count what is published to the lanes on nsqd HOST from now on. --json names who may have, but for HTTP.

    \b
    Examples:
      slowjobs gate arriving svc506
      slowjobs gate arriving svc506 --for 30s --json
    """
    _print(gate.arriving(*_nsqd(path, host), period.total_seconds()), as_json=as_json)


@gate_group.command("publishing")
@common.json_option
@common.site_option
def publishing_command(path: Path, *, as_json: bool) -> None:
    """Print the nsqd host that the bridge gives new requests to, as it says itself.

    \b
    Examples:
      slowjobs gate publishing
    """
    _print(gate.publishing(_service(path, _BRIDGE, None)), as_json=as_json)


@gate_group.command("config")
@click.argument("service")
@click.argument("host")
@common.json_option
@common.site_option
def config_command(path: Path, service: str, host: str, *, as_json: bool) -> None:
    """Print the SHA-256 of the configuration file that is in force at SERVICE on HOST.

    \b
    Examples:
      slowjobs gate config slowjobs-bridge control1
      slowjobs gate config slowjobs-worker@ingest worker2
    """
    _print(gate.config(_service(path, service, host)), as_json=as_json)


@gate_group.command("writers")
@common.json_option
@common.site_option
def writers_command(path: Path, *, as_json: bool) -> None:
    """Count who of ours may write to PostgreSQL: persisters that run, and sessions by their application_name.

    --json names them. Before a database migration it has to be 0; playbooks/quiesce.yml waits for that.

    \b
    Examples:
      slowjobs gate writers
      slowjobs gate writers --json | jq .sessions
    """
    _print(gate.writers(*common.load(path, settings.CliSettings)), as_json=as_json)


def _nsqd(path: Path, host: str) -> tuple[settings.CliSettings, str]:
    config, _ = common.load(path, settings.CliSettings)
    if host not in config.nsqd.hosts:
        common.fail(f"there is no nsqd host {host!r}; hosts: {', '.join(config.nsqd.hosts)}", common.EXIT_USAGE)
    return config, host


def _service(path: Path, name: str, host: str | None) -> settings.Service:
    config, _ = common.load(path, settings.CliSettings)
    found = [service for service in config.services if service.name == name and host in {None, service.host}]
    if not found:
        known = ", ".join(f"{service.name} {service.host}" for service in config.services)
        common.fail(f"there is no {name} {host or ''}; services and hosts: {known}", common.EXIT_USAGE)
    return found[0]


def _print(reading: Coroutine[Any, Any, gate.Figure], *, as_json: bool) -> None:
    try:
        figure = asyncio.run(reading)
    except (*errors.SERVER_ERRORS, documents.UnknownVersionError) as error:
        status = common.EXIT_SILENT if isinstance(error, nsq.SILENCE) else common.EXIT_FAILED
        common.fail(f"cannot be read: {errors.text(error)}", status)
    if as_json:
        click.echo(json.dumps({"v": documents.VERSION, "figure": figure.value, **figure.details}))
    else:
        click.echo(figure.value)
