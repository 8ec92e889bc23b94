"""A client of Kafka that is deaf for good is found, and one that never closes is left."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, cast

import pytest

from slowjobs.kafka import common, deafness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slowjobs import kafka


class Answers:
    """A Kafka that is there."""

    def ids(self, _: Iterable[str]) -> dict[str, str]:
        return {}


class Client:
    """Hears as it is told, and nothing any more after that."""

    def __init__(self, *hears: bool) -> None:
        self._hears: Iterator[bool] = iter(hears)
        self.looks = 0

    def hears(self) -> bool:
        self.looks += 1
        return next(self._hears, False)


@pytest.mark.parametrize(("hears", "looks"), [((), 2), ((True, False, True), 5)])
def test_a_client_is_deaf_when_it_hears_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, hears: tuple[bool, ...], looks: int
) -> None:
    monkeypatch.setattr(deafness, "LOOK_SECONDS", 0)
    client = Client(*hears)
    asyncio.run(deafness.until_deaf(cast("kafka.Topics", Answers()), [client]))
    assert client.looks == looks


def test_a_consumer_that_never_closes_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, closed = threading.Event(), threading.Event()
    monkeypatch.setattr(common, "CLOSE_SECONDS", 0)
    common.close(ended.wait, closed.set)
    assert not closed.is_set()
    ended.set()
    assert closed.wait(10)
