"""``slowjobs find``: where one request is, whatever of the system answers."""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slowjobs import documents, errors, kafka, kinds, postgres
from slowjobs.operations import dead, progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slowjobs import settings

#: what an event is about, as it is written: of a million events few are worth more than this look.
_POSITION = re.compile(rb'"position": (\["[^"]*", \d+, \d+\])')
#: as JSON writes one.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,4000}")

Document = dict[str, Any]
Values = tuple[str | int, ...]


@dataclass(frozen=True)
class Wanted:
    """What a request is looked for by: a key (of the request or of its result), or ``bare``, one value of it."""

    values: Values
    bare: bool

    @classmethod
    def of(cls, text: str) -> Wanted:
        """Read what a person typed: the JSON array that is a key, or anything else as a bare value.

        Raises kinds.RejectedError for characters that no request can have.
        """
        try:
            value = json.loads(text)
        except (RecursionError, ValueError):
            value = None
        is_key = isinstance(value, list) and value and all(_is_member(each) for each in value)
        values = tuple(value) if is_key else (text,)
        kinds.parse_object(json.dumps({"values": values}).encode())
        return cls(values, bare=not is_key)

    def keys(self, kind: settings.Kind) -> list[str]:
        """Return the keys of a kind of type ``job`` that may be meant."""
        if len(self.values) != len(kind.key):
            return []
        found = [self.values]
        if self.bare and _INTEGER.fullmatch(str(self.values[0])):
            found.append((int(self.values[0]),))
        return [json.dumps(values, ensure_ascii=False) for values in found]

    def means(self, key: str, kind: settings.Kind) -> bool:
        """Tell whether a request with this key is meant."""
        if kind.type == "job":
            return key in self.keys(kind)
        try:
            members = dict(zip(kind.key, json.loads(key), strict=True))
        except (RecursionError, TypeError, ValueError):
            return False  # the lane had another kind once
        if self.bare:
            return self.values[0] in (members["base_url"], members["link_source_id"])
        names = kind.key if len(self.values) == len(kind.key) else kind.result_key
        return self.values == tuple(members[name] for name in names)


@dataclass
class Match:
    """One request, or a result without one (``key`` is None then), with all that is known of it."""

    kind: str
    key: str | None
    request: Document | None = None
    result: Document | None = None
    position: Document | None = None
    dead_letters: list[Document] = field(default_factory=list)
    lane: str | None = None
    #: not handed to NSQ yet; come to its end. None where that is not known.
    in_backlog: bool | None = None
    done: bool | None = None
    #: what its workers told of it, in order, as far as Kafka keeps that.
    events: list[Document] = field(default_factory=list)

    def as_json(self) -> Document:
        """Return its members."""
        return dict(vars(self))

    def positions(self) -> set[bytes]:
        """Return each that is known, as events write them: the newest, and those of its dead letters."""
        positions = [letter["position"] for letter in self.dead_letters if letter.get("position")]
        if self.position is not None:
            positions.append([self.position[name] for name in ("topic", "partition", "offset")])
        return {json.dumps(position, ensure_ascii=False).encode() for position in positions}


def find(config: settings.CliSettings, secrets: settings.Credentials, wanted: Wanted) -> tuple[list[Match], list[str]]:
    """Return what is known of the requests that are wanted, and an error for each server that does not answer."""
    matches: list[Match] = []
    failures: list[str] = []
    with _failures(failures, "PostgreSQL"):
        matches.extend(_rows(config, secrets, wanted))
    with _failures(failures, "Kafka"):
        for letter in dead.read(config, secrets):
            _file(config, matches, wanted, letter)
    with _failures(failures, "Kafka"):
        _locate(config, secrets, matches)
    with _failures(failures, "Kafka"):
        _follow(config, secrets, matches)
    return matches, failures


@contextlib.contextmanager
def _failures(failures: list[str], server: str) -> Iterator[None]:
    try:
        yield
    except (*errors.SERVER_ERRORS, documents.UnknownVersionError) as error:
        failures.append(f"{server}: {errors.text(error)}")


def _rows(config: settings.CliSettings, secrets: settings.Credentials, wanted: Wanted) -> Iterator[Match]:
    with contextlib.closing(postgres.connect(config.postgresql, secrets, service="find")) as connection:
        connection.set_session(readonly=True, autocommit=True)
        for name, kind in config.kinds.items():
            parameters = _parameters(wanted, kind)
            if parameters is None:
                continue
            with connection.cursor() as cursor:
                cursor.execute(postgres.statement(f"find_{kind.type}"), {"kind": name, **parameters})
                for key, request, result, position in cursor:
                    if key is None or wanted.means(key, kind):
                        yield Match(name, key, request, result, position)


def _parameters(wanted: Wanted, kind: settings.Kind) -> dict[str, object] | None:
    """Return what the statement of a kind's type takes; None where no request of it can be meant."""
    if kind.type == "job":
        keys = wanted.keys(kind)
        return {"keys": keys} if keys else None
    if wanted.bare:
        return {
            "base_url": wanted.values[0],
            "link_source_id": wanted.values[0],
            "ingest_types": list(kinds.INGEST_TYPES),
        }
    if len(wanted.values) not in (len(kind.key), len(kind.result_key)):
        return None
    ingest_type, base_url = wanted.values[-2:]
    return {"base_url": str(base_url), "link_source_id": None, "ingest_types": [str(ingest_type)]}


def _file(config: settings.CliSettings, matches: list[Match], wanted: Wanted, letter: Document) -> None:
    """Put a dead letter to the request that it is about, if that is meant."""
    lane = config.lanes.get(letter.get("lane", ""))
    key = letter.get("key")
    if lane is None or key is None or not wanted.means(key, config.kinds[lane.kind]):
        return
    about = [match for match in matches if (match.kind, match.key) == (lane.kind, key)]
    if not about:
        about = [Match(lane.kind, key)]
        matches.extend(about)
    about[0].dead_letters.append({name: value for name, value in letter.items() if not name.startswith("request")})


def _locate(config: settings.CliSettings, secrets: settings.Credentials, matches: list[Match]) -> None:
    """Tell of each request that was seen on Kafka which lane's it is, and whether the bridge has come there."""
    for match in matches:
        if match.position is not None:
            match.lane = config.lane_of_topic.get(match.position["topic"])
    topics = {match.position["topic"] for match in matches if match.position is not None}
    if not topics:
        return
    reaches = progress.reach(config, secrets, topics)
    for match in matches:
        if match.position is not None and (reach := reaches[match.position["topic"]]) is not None:
            partition, offset = match.position["partition"], match.position["offset"]
            match.in_backlog = False
            # What is beyond the end, or in a partition that is no more, was of a topic that is no more.
            if partition < len(reach) and offset < reach[partition].end:
                reached = progress.Progress.of(reach[partition])
                match.in_backlog, match.done = offset >= reached.mark, reached.is_done(offset)


def _follow(config: settings.CliSettings, secrets: settings.Credentials, matches: list[Match]) -> None:
    """Give each request the events of its positions: no event says its key."""
    about: defaultdict[bytes, list[Match]] = defaultdict(list)
    for match in matches:
        for position in match.positions():
            about[position].append(match)
    if not about:
        return
    for message in kafka.scan(config.kafka, secrets, kafka.EVENTS):
        raw = message.value() or b""
        told = _POSITION.search(raw)
        for match in about.get(told[1], ()) if told else ():
            with contextlib.suppress(kinds.RejectedError):  # nobody of ours wrote it
                match.events.append(documents.read_event(raw).as_json())


def _is_member(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
