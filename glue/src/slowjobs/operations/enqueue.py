"""``slowjobs enqueue``: a file of requests to a lane's Kafka topic, each checked first."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slowjobs import documents, kafka, kinds

if TYPE_CHECKING:
    import io
    from collections.abc import AsyncIterator, Callable

    from slowjobs import settings

#: requests that may be on their way to Kafka at once.
_UNDER_WAY = 2000
#: bytes read at once.
_READ_BYTES = 256 * 1024


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
    lines: io.BufferedReader,
    *,
    rejects: Callable[[bytes], None],
    progress: Callable[[int], None],
) -> Report:
    """Send each line of ``lines`` as a request; return once Kafka has acknowledged all of them.

    ``rejects`` gets a JSON line for each that is not sent: number, reason, error and the line as it was.
    ``progress`` gets the bytes of each line that is dealt with. Empty lines are passed over.
    """
    report = Report()
    kind = config.kind_of(lane)
    # The longest position there is: what passes here passes the bridge.
    position = documents.Position(config.kafka_topic(lane), 2**31 - 1, 2**63 - 1)
    producer = kafka.Producer(config.kafka, secrets, client_id="slowjobs-enqueue")
    room = asyncio.Semaphore(_UNDER_WAY)

    async def _send(number: int, line: bytes, key: str) -> None:
        try:
            await producer.send(position.topic, line.strip(), key=key.encode())
            report.acknowledged += 1
        except kafka.DeliveryError as error:
            report.failed += 1
            rejects(_reject(number, line, "not-sent", str(error)))
        finally:
            progress(len(line))
            room.release()

    try:
        async with asyncio.TaskGroup() as tasks:
            number = 0
            async for line in _lines(lines):
                number += 1
                try:
                    request, _ = documents.write_assignment(line.strip(), position, kind, config.nsqd.max_message_bytes)
                except kinds.RejectedError as error:
                    if line.strip():
                        report.reject(error.reason)
                        rejects(_reject(number, line, error.reason, error.error))
                    progress(len(line))
                    continue
                await room.acquire()
                tasks.create_task(_send(number, line, request.key))
    finally:
        await producer.close()
    return report


async def _lines(file: io.BufferedReader) -> AsyncIterator[bytes]:
    """Yield lines as they come: a slow pipe's are not kept until a buffer is full, and what was read goes its way."""
    rest = b""
    while chunk := await asyncio.to_thread(file.read1, _READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _reject(number: int, line: bytes, reason: str, error: str) -> bytes:
    shown = line.decode(errors="backslashreplace").rstrip("\n")
    return json.dumps({"line": number, "reason": reason, "error": error, "request": shown}).encode() + b"\n"
