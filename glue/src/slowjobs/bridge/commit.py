"""What the bridge writes beside a committed offset: all that a restart needs to know of the partition.

Kafka keeps a text of at most 4096 bytes with each offset. Ours is JSON; a list of offsets in it is base 85 of variable
length integers: the distance to the next offset, at least 1, and after a 0 how many follow one by one.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slowjobs import documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: bytes; Kafka's offset.metadata.max.bytes.
MAX_BYTES = 4096
#: the bit of a byte that says that its integer goes on.
_MORE = 0x80


class TooLongError(Exception):
    """More positions that are not done than Kafka has room for beside an offset."""


@dataclass(frozen=True)
class Batch:
    """What is about to be published in one MPUB, to settle it by when no answer comes.

    ``start_time``: of nsqd on ``host``, ``count``: its topic's message_count before the MPUB, ``offsets``: ascending.
    """

    host: str
    start_time: int
    count: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Commit:
    """What is known of one partition; the committed offset itself is the lowest that is not done.

    ``mark``: the first offset that no nsqd was given. ``undone``: offset -> nsqd host, ascending, of what is not done
    and below ``listed``. ``listed``: the mark; or less where the list had become too long: what lies between counts as
    published and not done. ``events``: the oldest event that still counts; None where nothing was committed.
    ``topic_id``: of the topic, as one that is made anew has the same name.
    """

    mark: int
    undone: Mapping[int, str]
    events: int | None
    batch: Batch | None
    listed: int
    topic_id: str = ""

    def write(self, *, spare_bytes: int = 0) -> str:
        """Return the text, in ASCII. Raises TooLongError for more than ``MAX_BYTES`` less ``spare_bytes``."""
        hosts: defaultdict[str, list[int]] = defaultdict(list)
        for offset, host in self.undone.items():
            hosts[host].append(offset)
        batch = self.batch and {**vars(self.batch), "offsets": _pack(self.batch.offsets)}
        document = {
            "v": documents.VERSION,
            "topic_id": self.topic_id,
            "mark": self.mark,
            "listed": self.listed,
            "events": self.events,
            "batch": batch,
            "undone": {host: _pack(offsets) for host, offsets in hosts.items()},
        }
        text = json.dumps(document, separators=(",", ":"))
        if len(text) > MAX_BYTES - spare_bytes:
            raise TooLongError(f"{len(text)} bytes for {len(self.undone)} positions, at most {MAX_BYTES}")
        return text


def read(metadata: str, offset: int, topic_id: str = "") -> Commit:
    """Return what was committed with ``offset``. No text is from before the ledger, or of a person who set the offset.

    Of a topic with another id than ``topic_id`` nothing was committed: this one begins. An id that is not known proves
    nothing.

    Raises documents.UnknownVersionError for any other text that no bridge of this version wrote: to begin at the
    offset would publish again what is not done.
    """
    if not metadata:
        return Commit(mark=offset, undone={}, events=None, batch=None, listed=offset)
    try:
        document = json.loads(metadata)
        documents.check_version(document)
        commit = _read(document)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise documents.UnknownVersionError(
            f"no bridge of ours wrote what is committed beside offset {offset}: {metadata[:80]!r}"
        ) from error
    made_anew = topic_id and commit.topic_id and topic_id != commit.topic_id
    return read("", 0) if made_anew else commit


def _read(document: dict[str, Any]) -> Commit:
    undone = {offset: host for host, text in document["undone"].items() for offset in _unpack(text)}
    batch = document["batch"]
    return Commit(
        mark=document["mark"],
        undone=dict(sorted(undone.items())),
        events=document["events"],
        batch=batch and Batch(batch["host"], batch["start_time"], batch["count"], tuple(_unpack(batch["offsets"]))),
        listed=document["listed"],
        topic_id=document["topic_id"],
    )


def _pack(offsets: Iterable[int]) -> str:
    packed = bytearray()
    last = -1
    for first, length in _runs(offsets):
        packed += _varint(first - last)
        if length > 1:
            packed += b"\0" + _varint(length - 1)
        last = first + length - 1
    return base64.b85encode(packed).decode()


def _unpack(text: str) -> Iterator[int]:
    numbers = _varints(base64.b85decode(text))
    last = -1
    for distance in numbers:
        first, length = (last + distance, 1) if distance else (last + 1, next(numbers, 0))
        yield from range(first, first + length)
        last = first + length - 1


def _runs(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first of each row of neighbours, and how many they are."""
    for _, run in itertools.groupby(enumerate(offsets), key=lambda numbered: numbered[1] - numbered[0]):
        row = [offset for _, offset in run]
        yield row[0], len(row)


def _varint(number: int) -> bytes:
    """Return seven bits a byte, the lowest first; all but the last byte have the eighth bit."""
    packed = bytearray()
    while number >= _MORE:
        packed.append(_MORE | number % _MORE)
        number //= _MORE
    packed.append(number)
    return bytes(packed)


def _varints(packed: bytes) -> Iterator[int]:
    number, unit = 0, 1
    for byte in packed:
        number += byte % _MORE * unit
        unit *= _MORE
        if byte < _MORE:
            yield number
            number, unit = 0, 1
