"""What a server that is away or refuses raises, and how a person is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import confluent_kafka
import psycopg2

from slowjobs import nsq

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

T = TypeVar("T")

#: errors of Kafka, PostgreSQL and nsqd.
SERVER_ERRORS = (confluent_kafka.KafkaException, psycopg2.Error, *nsq.ERRORS)


def text(error: BaseException) -> str:
    """Return the error in one line, without any library's own notation."""
    said = error.args[0].str() if isinstance(error, confluent_kafka.KafkaException) else str(error)
    return " ".join(said.split()) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))


async def try_all(attempts: Mapping[str, Awaitable[T]], failures: list[str]) -> list[T]:
    """Make all attempts at once and return what came of those that worked; the others are named in ``failures``."""
    outcomes = await asyncio.gather(*attempts.values(), return_exceptions=True)
    done = []
    for what, outcome in zip(attempts, outcomes, strict=True):
        if isinstance(outcome, SERVER_ERRORS):
            failures.append(f"{what}: {text(outcome)}")
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            done.append(outcome)
    return done
