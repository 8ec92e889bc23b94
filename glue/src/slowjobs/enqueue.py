"""``slowjobs enqueue``: a file of requests to a lane's Kafka topic, each checked first."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from slowjobs import kafka, kinds

if TYPE_CHECKING:
    from collections.abc import Callable

    from slowjobs import settings

#: requests that may be on their way to Kafka at once.
_UNDER_WAY = 10_000


@dataclass
class Report:
    """What became of the lines so far."""

    acknowledged: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failed: int = 0

    def reject(self, reason: str) -> None:
        """Count one line that its kind does not accept."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1


async def enqueue(
    config: settings.CliSettings,
    secrets: settings.Credentials,
    lane: str,
    lines: BinaryIO,
    *,
    rejects: Callable[[bytes], None],
    progress: Callable[[int], None],
) -> Report:
    """Send each line of ``lines`` as a request; return once Kafka has acknowledged all of them.

    ``rejects`` gets a JSON line for each that is not sent: number, reason, error and the line as it was.
    ``progress`` gets the bytes of each line that is dealt with. Empty lines are passed over.
    """
    report = Report()
    kind = config.kinds[config.lanes[lane].kind]
    topic = config.kafka_topic(lane)
    producer = kafka.Producer(config.kafka, secrets, client_id="slowjobs-enqueue")
    room = asyncio.Semaphore(_UNDER_WAY)

    async def _send(number: int, line: bytes, request: kinds.Request) -> None:
        try:
            await producer.send(topic, request.raw, key=request.key.encode())
            report.acknowledged += 1
        except kafka.DeliveryError as error:
            report.failed += 1
            rejects(_reject(number, line, "not-sent", str(error)))
        finally:
            progress(len(line))
            room.release()

    try:
        async with asyncio.TaskGroup() as tasks:
            for number, line in enumerate(lines, start=1):
                try:
                    request = kinds.parse(line.strip(), kind)
                    kinds.check_size(request.raw, config.nsqd.max_message_bytes)
                except kinds.RejectedError as error:
                    if line.strip():
                        report.reject(error.reason)
                        rejects(_reject(number, line, error.reason, error.error))
                    progress(len(line))
                    continue
                await room.acquire()
                tasks.create_task(_send(number, line, request))
    finally:
        await producer.close()
    return report


def _reject(number: int, line: bytes, reason: str, error: str) -> bytes:
    shown = line.decode(errors="backslashreplace").rstrip("\n")
    return json.dumps({"line": number, "reason": reason, "error": error, "request": shown}).encode() + b"\n"
