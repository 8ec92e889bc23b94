"""``slowjobs enqueue``: a file of requests to a lane's Kafka topic, each checked first."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from slowjobs import cdx, documents, kafka, kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from slowjobs import settings

Format = Literal["json", "cdx"]
#: seconds between two reports of progress while Kafka's last answers are waited for.
_FLUSH_SECONDS = 0.5


@dataclass
class Report:
    """What became of the lines so far; true at any moment, also when something ends the run."""

    #: lines read, empty ones and headers too.
    lines: int = 0
    #: lines that their kind accepts.
    accepted: int = 0
    acknowledged: int = 0
    #: reason -> lines that their kind does not accept.
    rejected: Counter[str] = field(default_factory=Counter)
    #: lines that Kafka refused.
    failed: int = 0
    #: lines whose end is open, in their order.
    pending: dict[int, None] = field(default_factory=dict)

    @property
    def next_line(self) -> int:
        """The number of the first line that is not dealt with: neither acknowledged nor among the rejects."""
        return next(iter(self.pending), self.lines + 1)

    @property
    def refused(self) -> int:
        """Lines that went to the rejects."""
        return self.rejected.total() + self.failed


class _Reader(Protocol):
    """Finds the request in a line."""

    def request(self, line: bytes) -> bytes:
        """Return the JSON of a request; nothing for a line without one. Raises kinds.RejectedError."""

    def skip(self, line: bytes) -> None:
        """Take note of a line that is not wanted."""


class _JsonLines:
    def request(self, line: bytes) -> bytes:
        return line.strip()

    def skip(self, line: bytes) -> None:
        """Nothing is to be noted."""


class _CdxLines:
    def __init__(self) -> None:
        self._legend: cdx.Legend | None = None

    def request(self, line: bytes) -> bytes:
        text = line.rstrip()
        found = cdx.legend(text)
        self._legend = found or self._legend
        return cdx.request(text, self._legend) if text and not found else b""

    def skip(self, line: bytes) -> None:
        self._legend = cdx.legend(line.rstrip()) or self._legend


class Enqueue:
    """Sends the lines of one file as requests of one lane, or with no ``producer`` only checks them.

    ``rejects`` gets a JSON line for each that is not sent: number, reason, error and the line as it was.
    """

    def __init__(
        self,
        config: settings.CliSettings,
        lane: str,
        *,
        producer: kafka.BulkProducer | None,
        rejects: Callable[[bytes], None],
    ) -> None:
        self.report = Report()
        self._producer = producer
        self._rejects = rejects
        self._kind = config.kind_of(lane)
        self._position = documents.longest_position(config.kafka_topic(lane))
        self._max_bytes = config.nsqd.max_message_bytes

    def run(
        self,
        lines: Iterable[Sequence[bytes]],
        *,
        progress: Callable[[], None],
        format_: Format | None = None,
        first_line: int = 1,
    ) -> None:
        """Deal with all ``lines``, from number ``first_line`` on; return once Kafka has answered for each.

        Empty ones are passed over. ``progress`` is called every now and then. ``format_``: what the lines are; by
        default what the first that is not empty looks like. Raises kafka.ProducerFailedError.
        """
        reader: _Reader | None = None
        for some in lines:
            for line in some:
                if reader is None and line.strip():
                    reader = _reader(format_, line)
                if reader is not None and self.report.lines + 1 < first_line:
                    reader.skip(line)
                elif reader is not None:
                    self._deal(self.report.lines + 1, line, reader)
                self.report.lines += 1
            if self._producer:
                self._producer.poll()
            progress()
        while self.wait(_FLUSH_SECONDS):
            progress()

    def wait(self, seconds: float) -> int:
        """Wait for Kafka's answers; return how many are still missing after ``seconds``."""
        return self._producer.flush(seconds) if self._producer else 0

    def _deal(self, number: int, line: bytes, reader: _Reader) -> None:
        # First: wherever a signal ends this, the line counts as open.
        self.report.pending[number] = None
        try:
            request = self._request(line, reader)
        except kinds.RejectedError as error:
            self.report.rejected[error.reason] += 1
            self._reject(number, line, error.reason, error.error)
            return
        if request is not None:
            self.report.accepted += 1
        if request is None or self._producer is None:
            del self.report.pending[number]
            return
        then = functools.partial(self._settle, number, line)
        self._producer.send(self._position.topic, request.raw, key=request.key.encode(), then=then)

    def _request(self, line: bytes, reader: _Reader) -> kinds.Request | None:
        if len(line) > self._max_bytes:
            raise kinds.RejectedError("too-large", f"over {self._max_bytes} bytes, the most on NSQ")
        raw = reader.request(line)
        return documents.check_request(raw, self._position, self._kind, self._max_bytes) if raw else None

    def _settle(self, number: int, line: bytes, answer: kafka.Delivered | kafka.DeliveryError) -> None:
        if isinstance(answer, kafka.DeliveryError):
            self.report.failed += 1
            self._reject(number, line, "not-sent", str(answer))
        else:
            self.report.acknowledged += 1
            del self.report.pending[number]

    def _reject(self, number: int, line: bytes, reason: str, error: str) -> None:
        shown = line[: self._max_bytes].decode(errors="backslashreplace").rstrip("\r")
        self._rejects(json.dumps({"line": number, "reason": reason, "error": error, "request": shown}).encode() + b"\n")
        del self.report.pending[number]


def _reader(format_: Format | None, first: bytes) -> _Reader:
    if format_ is None:
        format_ = "cdx" if cdx.is_cdx(first) else "json"
    return _CdxLines() if format_ == "cdx" else _JsonLines()
