"""``slowjobs dead``: the dead letters on Kafka, and sending their requests again."""

from __future__ import annotations

import functools
import json
import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slowjobs import documents, kafka, kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from collections.abc import Set as AbstractSet

    from slowjobs import settings


#: seconds; how soon a marker follows what Kafka has taken while its last answers are waited for.
_FLUSH_SECONDS = 0.5

#: lane and reason.
Subject = tuple[str, str]


@dataclass(frozen=True)
class Choice:
    """Which dead letters are meant. ``since``: at least so new, as ``documents.now`` writes a time."""

    lane: str | None = None
    reason: str | None = None
    since: str | None = None

    def takes(self, letter: dict[str, Any]) -> bool:
        """Tell whether ``letter`` is one of them."""
        return (
            self.lane in (None, letter.get("lane"))
            and self.reason in (None, letter.get("reason"))
            and (self.since or "") <= letter.get("at", "")
        )


def read(config: settings.CliSettings, secrets: settings.Credentials) -> Iterator[dict[str, Any]]:
    """Yield all dead letters from the oldest, each with ``id``, its offset, and ``replayed``, whether it was.

    One that cannot be read has the member ``unreadable`` with the reason. Raises confluent_kafka.KafkaException.
    """
    # Markers come after what they are about: first all of these, then the letters, which need not all be kept so.
    replayed = {documents.replayed_id(_members(record)) for record in _records(config, secrets)}
    for record in _records(config, secrets):
        id_, members = record.position.offset, _members(record)
        if documents.replayed_id(members) is None:
            yield {"id": id_, "replayed": id_ in replayed, **members}


def find(config: settings.CliSettings, secrets: settings.Credentials, id_: int) -> dict[str, Any] | None:
    """Return one dead letter as ``read`` does; None if there is none of that id (any more)."""
    letter: dict[str, Any] | None = None
    for record in _records(config, secrets, first=id_):
        members = _members(record)
        about = documents.replayed_id(members)
        if letter is None and (record.position.offset != id_ or about is not None):
            return None
        letter = letter or {"id": id_, "replayed": False, **members}
        letter["replayed"] |= about == id_
    return letter


def sort_out(
    config: settings.CliSettings, secrets: settings.Credentials, choice: Choice | AbstractSet[int], *, again: bool
) -> tuple[dict[int, Subject], dict[int, str]]:
    """Return which of the chosen dead letters can be replayed, and why others cannot: ``id -> subject``, ``id -> why``.

    Of a Choice those that were replayed before are left out unless ``again``. Raises confluent_kafka.KafkaException.
    """
    letters: dict[int, Subject] = {}
    refused = {} if isinstance(choice, Choice) else dict.fromkeys(choice, "there is no such dead letter")
    for letter in read(config, secrets):
        if isinstance(choice, Choice):
            taken = choice.takes(letter) and (again or not letter["replayed"])
        else:
            taken = letter["id"] in choice
        if not taken:
            continue
        why = refusal(config, letter, again=again)
        if why is None:
            letters[letter["id"]] = letter["lane"], letter["reason"]
            refused.pop(letter["id"], None)
        else:
            refused[letter["id"]] = why
    return letters, refused


def refusal(config: settings.CliSettings, letter: dict[str, Any], *, again: bool) -> str | None:
    """Return why the request of ``letter`` cannot be sent again; None if it can."""
    if "unreadable" in letter:
        return f"it cannot be read: {letter['unreadable']}"
    if letter["replayed"] and not again:
        return "it was replayed before; --again sends its request once more"
    if letter["lane"] not in config.lanes:
        return f"there is no lane {letter['lane']!r} any more"
    position = letter.get("position")
    if letter.get("request") is None and "request_base64" not in letter:
        return f"it carries no request; {json.dumps(position)} is where that is on Kafka"
    if letter["from"] == "persister" and position and position[0] not in config.lane_of_topic:
        return f"it is about a result, which is no request: {json.dumps(position)} on Kafka"
    return None


@dataclass
class Replay:
    """Sends requests of dead letters again: each to its lane's topic and, once it is safe there, a marker after it.

    A crash between the two leaves a dead letter that can be replayed again: at least once, as everywhere.
    """

    config: settings.CliSettings
    secrets: settings.Credentials
    producer: kafka.BulkProducer
    #: ids that are sent and marked.
    replayed: set[int] = field(default_factory=set)
    #: id -> what Kafka has against its request.
    failed: dict[int, str] = field(default_factory=dict)
    _unmarked: deque[int] = field(default_factory=deque)

    def run(self, ids: Collection[int]) -> None:
        """Send the requests of these dead letters, all of which ``refusal`` lets through.

        Raises confluent_kafka.KafkaException, and kafka.ProducerFailedError.
        """
        for record in _records(self.config, self.secrets, first=min(ids)):
            if record.position.offset > max(ids):
                break
            if record.position.offset in ids:
                self._send(record)
                self._mark()
        self.finish(math.inf)

    def finish(self, seconds: float) -> None:
        """Wait until Kafka has answered for all that was sent, and for the markers; at most about ``seconds``."""
        deadline = time.monotonic() + seconds
        self._mark()
        while (self.producer.flush(_FLUSH_SECONDS) or self._unmarked) and time.monotonic() < deadline:
            self._mark()

    def _send(self, record: kafka.Record) -> None:
        id_, letter = record.position.offset, documents.read_dead_letter(record.value)
        try:
            request = documents.dead_request(record.value)
        except kinds.RejectedError as error:
            self.failed[id_] = str(error)
            return
        key = letter.get("key")
        # A worker had it, so it is in its table: it must not take the place of a newer form of itself.
        headers = {kafka.REENQUEUED_HEADER: b"replay"} if letter["from"] == "worker" else None
        self.producer.send(
            self.config.kafka_topic(letter["lane"]),
            request or b"",
            key=key.encode() if isinstance(key, str) else None,
            headers=headers,
            then=functools.partial(self._settle, id_, self._unmarked.append),
        )
        self.producer.poll()

    def _mark(self) -> None:
        while self._unmarked:
            id_ = self._unmarked.popleft()
            then = functools.partial(self._settle, id_, self.replayed.add)
            self.producer.send(kafka.DEAD_LETTERS, documents.write_replayed(id_), key=None, then=then)

    def _settle(self, id_: int, take: Callable[[int], object], answer: kafka.Delivered | kafka.DeliveryError) -> None:
        if isinstance(answer, kafka.DeliveryError):
            self.failed[id_] = str(answer)
        else:
            take(id_)


def _records(config: settings.CliSettings, secrets: settings.Credentials, *, first: int = 0) -> Iterator[kafka.Record]:
    """Yield what the topic holds now, from offset ``first`` on. Raises confluent_kafka.KafkaException."""
    for message in kafka.scan(config.kafka, secrets, kafka.DEAD_LETTERS, first=first):
        yield kafka.Record.of(message)


def _members(record: kafka.Record) -> dict[str, Any]:
    try:
        return documents.read_dead_letter(record.value)
    except (kinds.RejectedError, documents.UnknownVersionError) as error:
        return {"unreadable": str(error)}
