"""What a client sends: one JSON object, or JSON lines; each checked as the bridge will check it, all or none taken."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from slowjobs import documents, kinds

if TYPE_CHECKING:
    from slowjobs import settings

#: mistakes that are told of one body.
MAX_MISTAKES = 100


@dataclass(frozen=True)
class Message:
    """One request as it goes to Kafka."""

    key: bytes
    value: bytes


@dataclass(frozen=True)
class Mistake:
    """Why one line is refused; ``reason`` is one of the dead letters' (design, "Data")."""

    line: int
    reason: str
    error: str

    def as_json(self) -> dict[str, object]:
        """Return its members."""
        return asdict(self)


class RefusedError(Exception):
    """A body with ``count`` mistakes, of which ``mistakes`` holds the first."""

    def __init__(self, mistakes: list[Mistake], count: int) -> None:
        super().__init__(f"{count} mistakes")
        self.mistakes = mistakes
        self.count = count


def parse(body: bytes, *, is_lines: bool, topic: str, kind: settings.Kind, max_message_bytes: int) -> list[Message]:
    """Return the requests in ``body``, in its order; empty lines are passed over. Raises RefusedError."""
    position = documents.longest_position(topic)
    messages: list[Message] = []
    mistakes: list[Mistake] = []
    count = 0
    for number, line in enumerate(body.split(b"\n") if is_lines else [body], 1):
        raw = line.strip()
        if not raw:
            continue
        try:
            request = documents.check_request(raw, position, kind, max_message_bytes)
        except kinds.RejectedError as error:
            count += 1
            if len(mistakes) < MAX_MISTAKES:
                mistakes.append(Mistake(number, error.reason, error.error))
        else:
            messages.append(Message(request.key.encode(), raw))
    if count:
        raise RefusedError(mistakes, count)
    if not messages:
        raise RefusedError([Mistake(1, "not-json", "the body is empty")], 1)
    return messages
