"""Fixtures for tests against real servers, and the processes' logs in the report of a test that fails."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from support import services as servers
from support.system import System

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from support.services import Services
    from support.system import MakeSystem

# A shell that runs the tests in the background has them ignore it, and every process that they start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

_SYSTEMS = pytest.StashKey[list[System]]()


@pytest.fixture(scope="session")
def _running_services() -> Iterator[Services]:
    with servers.running() as started:
        yield started


@pytest.fixture
def services(_running_services: Services) -> Services:
    """The real nsqd, Kafka and PostgreSQL, all answering."""
    _running_services.restore()
    return _running_services


@pytest.fixture
def make_system(request: pytest.FixtureRequest, services: Services) -> Iterator[MakeSystem]:
    """Return a function that makes a System; its processes are gone after the test."""
    systems = request.node.stash.setdefault(_SYSTEMS, [])

    def make(**settings: Any) -> System:
        system = System(services, **settings)
        systems.append(system)
        return system

    yield make
    for system in systems:
        system.discard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for system in item.stash.get(_SYSTEMS, []):
            system.tell_what_goes_on()
            report.sections += [(f"log of {name}", text) for name, text in system.logs()]
    return report
