"""What the TOML files hold, typed and checked as a whole: all mistakes of a section at once, each with its place.

Each service has a file of its own with just what it needs (docs/architecture.md, "Configuration").
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import psycopg2.extensions
import pydantic
from pydantic import Field

CONFIG_DIRECTORY = Path("/etc/slowjobs")
#: where the bridge is asked to discard a lane.
BRIDGE_SOCKET = Path("/run/slowjobs/bridge.sock")

#: NSQ's limit for topic and channel names, in characters; Kafka allows more.
NAME_PATTERN = r"^[.a-zA-Z0-9_-]{1,64}$"
#: where a handler's class is.
CLASS_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
#: requests; the ledger's commit metadata holds no more positions of one lane.
MAX_OUTSTANDING_LIMIT = 1250
#: seconds between a task's time limit and the end of a drain, by default.
DRAIN_MARGIN_SECONDS = 30

#: seconds; nsqd's --max-req-timeout is 15 min, and it shortens longer delays silently.
MAX_DELAY_SECONDS = 890
#: a worker asks for twice its slots at most, and nsqd closes a connection that asks for more than 2500.
MAX_SLOTS = 1250
#: bytes; nsqd's --max-msg-size by default.
DEFAULT_MESSAGE_BYTES = 1048576

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seconds = Annotated[float, Field(gt=0)]
#: bytes on NSQ; nsqd refuses more, and with it the whole batch. What is larger is a dead letter.
MessageBytes = Annotated[int, Field(gt=0)]
_LAST_PORT = 65535
#: longer ago than anything, and still a date.
_CENTURY_DAYS = 36_500
_HOST_PORT = re.compile(r"^(?P<host>[^:\s]+):(?P<port>\d{1,5})$")


class ConfigurationError(Exception):
    """A configuration file that cannot be used; ``str()`` lists every mistake with its place."""


@dataclass(frozen=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def _parse_address(value: object) -> Address:
    match = _HOST_PORT.match(value) if isinstance(value, str) else None
    if match is None or not 0 < int(match["port"]) <= _LAST_PORT:
        raise ValueError(f"expected HOST:PORT, got {value!r}")
    return Address(match["host"], int(match["port"]))


FilePath = Annotated[Path, pydantic.BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]
AddressField = Annotated[Address, pydantic.PlainValidator(_parse_address)]


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class JobKind(_Section):
    """Requests of any sort. ``key``: the members whose values identify one, and its result."""

    type: Literal["job"]
    key: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]

    @property
    def result_key(self) -> tuple[str, ...]:
        """The members whose values identify a result."""
        return self.key


class IngestKind(_Section):
    """Files to find and fetch, kept in the tables of the sandcrawler database; requests can share a result."""

    type: Literal["ingest"]

    @property
    def key(self) -> tuple[str, ...]:
        """The members whose values identify a request: the primary key of ``ingest_request``."""
        return ("link_source", "link_source_id", "ingest_type", "base_url")

    @property
    def result_key(self) -> tuple[str, ...]:
        """The members whose values identify a result: the primary key of ``ingest_file_result``."""
        return ("ingest_type", "base_url")


#: How a request is checked, keyed and stored.
Kind = Annotated[JobKind | IngestKind, Field(discriminator="type")]


class Lane(_Section):
    """One queue: a Kafka topic in, an NSQ topic of the lane's name, a cap and one pool."""

    kind: str
    pool: Name
    kafka_topic: str | None = None
    weight: Annotated[int, Field(ge=1)] = 1
    #: requests: waiting, in flight and deferred together.
    max_outstanding: Annotated[int, Field(ge=1, le=MAX_OUTSTANDING_LIMIT)] = 1000
    safe_to_empty: bool = False


class Kafka(_Section):
    """How Kafka is reached: any librdkafka properties."""

    properties: dict[str, str | int | float | bool]
    #: settings of topics that ``setup`` makes, over its own.
    topic_config: dict[str, str | int | float | bool] = {}

    @pydantic.field_validator("properties")
    @classmethod
    def _has_servers(cls, value: dict[str, object]) -> dict[str, object]:
        if "bootstrap.servers" not in value:
            raise ValueError("bootstrap.servers is missing")
        return value


class Postgresql(_Section):
    """How PostgreSQL is reached; the password is a credential, never part of ``dsn``."""

    dsn: str

    @pydantic.field_validator("dsn")
    @classmethod
    def _without_password(cls, value: str) -> str:
        try:
            parsed = psycopg2.extensions.parse_dsn(value)
        except psycopg2.ProgrammingError:
            raise ValueError("not understood: expected NAME=VALUE pairs, or a postgresql:// address") from None
        if "password" in parsed:
            raise ValueError("holds a password: give it as the credential postgresql_password")
        return value


class NsqdHost(_Section):
    """The two ports of one nsqd: the workers' and bridge's protocol, and the HTTP API."""

    tcp_address: AddressField
    http_address: AddressField


class Nsqd(_Section):
    """The nsqd hosts that this service works with. ``active`` gets new requests, ``draining`` are only emptied."""

    active: str
    draining: Annotated[tuple[str, ...], Field(strict=False)] = ()
    hosts: dict[str, NsqdHost]
    max_message_bytes: MessageBytes = DEFAULT_MESSAGE_BYTES
    #: seconds that nsqd waits for a touch; then the message goes to another worker.
    msg_timeout_seconds: Seconds = 30

    @pydantic.model_validator(mode="after")
    def _hosts_are_known(self) -> Nsqd:
        for host in self.serving:
            if host not in self.hosts:
                raise ValueError(f"host {host!r} has no [nsqd.hosts.{host}]")
        return self

    @property
    def serving(self) -> tuple[str, ...]:
        """The hosts that hold work: the active one first."""
        return (self.active, *self.draining)


class ResultTopic(_Section):
    """What persister and command line know of a pool.

    ``persist_results``: "status" leaves out the result itself where its table has a column for it, "none" the row.
    """

    result_topic: str
    persist_results: Literal["full", "status", "none"] = "full"


class PoolLimits(_Section):
    """What the bridge knows of a pool: seconds that a try of its handler lasts at most."""

    task_timeout_seconds: Seconds = 300


_PoolT = TypeVar("_PoolT", ResultTopic, PoolLimits)


class Handler(_Section):
    """The user's code, one of two.

    ``command``: argv of a program, run once for each request in the pool's folder.
    ``python``: ``module:Class``, made once in each child process as ``Class(**options)`` by ``interpreter``, whose
    environment and the pool's folder it is imported from. ``preload``: import once and fork; false for what cannot be.
    """

    command: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | None = None
    python: Annotated[str, Field(pattern=CLASS_PATTERN)] | None = None
    options: dict[str, Any] = {}
    interpreter: FilePath | None = None
    preload: bool = True

    @pydantic.model_validator(mode="after")
    def _is_one_of_two(self) -> Handler:
        if (self.command is None) == (self.python is None):
            raise ValueError("expected either command or python")
        if (self.python is None) != (self.interpreter is None):
            raise ValueError("interpreter: python has one, command has none")
        if self.interpreter and not os.access(self.interpreter, os.X_OK):
            raise ValueError(f"interpreter: there is no program {self.interpreter} that can be run on this host")
        return self


class Retry(_Section):
    """Seconds: a retry's delay is drawn from 0 to min(``cap``, ``base`` * 2**attempt)."""

    base_seconds: Annotated[float, Field(gt=0, le=MAX_DELAY_SECONDS)] = 5
    cap_seconds: Annotated[float, Field(gt=0, le=MAX_DELAY_SECONDS)] = 600


class Recycle(_Section):
    """When a child process makes room for a new one: after so many ``tasks``, or above so much memory."""

    tasks: Annotated[int, Field(ge=1)] | None = None
    megabytes: Annotated[int, Field(ge=1)] | None = None


class Pool(_Section):
    """The workers that run one handler; its name is the NSQ channel."""

    name: Name
    handler: Handler
    result_topic: str
    directory: FilePath = Path("/")
    slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = 1
    task_timeout_seconds: Seconds = 300
    drain_timeout_seconds: Seconds | None = None
    #: seconds that a request may wait in its worker for a resource that is full; then it goes back to NSQ.
    park_limit_seconds: Seconds = 1800
    max_attempts: Annotated[int, Field(ge=1)] = 5
    retry: Retry = Retry()
    #: a result with such a ``status`` is tried again.
    retry_statuses: Annotated[tuple[str, ...], Field(strict=False)] = ()
    recycle: Recycle = Recycle()

    @pydantic.model_validator(mode="after")
    def _command_exists(self) -> Pool:
        if not self.directory.is_dir():
            raise ValueError(f"directory: there is no folder {self.directory}")
        if self.handler.command is None:
            return self
        program = self.handler.command[0]
        found = self.directory / program if "/" in program else shutil.which(program)
        if found is None or not Path(found).is_file() or not os.access(found, os.X_OK):
            raise ValueError(f"handler.command: there is no program {program!r} that can be run on this host")
        return self

    @property
    def drain_seconds(self) -> float:
        """How long a stopping worker waits for what still runs."""
        return self.drain_timeout_seconds or self.task_timeout_seconds + DRAIN_MARGIN_SECONDS


class Service(_Section):
    """A process of ours somewhere, for the command line: its unit's name and its state port."""

    name: str
    host: str
    state_address: AddressField
    pool: str | None = None


class _Lanes(_Section):
    """The parts that every file has."""

    host: str
    kafka: Kafka
    kinds: dict[str, Kind]
    lanes: dict[Name, Lane]

    @pydantic.model_validator(mode="after")
    def _lanes_fit(self) -> _Lanes:
        mistakes = [
            f"lanes.{name}: kind {lane.kind!r} is not among the kinds ({', '.join(self.kinds) or 'none'})"
            for name, lane in self.lanes.items()
            if lane.kind not in self.kinds
        ]
        ingest = [name for name, kind in self.kinds.items() if kind.type == "ingest"]
        if len(ingest) > 1:
            mistakes.append(f"kinds: {' and '.join(ingest)} are of type ingest and would share its tables; at most one")
        topics: dict[str, str] = {}
        for name in self.lanes:
            other = topics.setdefault(self.kafka_topic(name), name)
            if other != name:
                mistakes.append(f"lanes.{name}: its Kafka topic {self.kafka_topic(name)!r} is already lane {other}'s")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def kafka_topic(self, lane: str) -> str:
        """Return the Kafka topic whose requests are this lane's."""
        return self.lanes[lane].kafka_topic or lane

    def kind_of(self, lane: str) -> Kind:
        """Return the kind of this lane's requests."""
        return self.kinds[self.lanes[lane].kind]

    @property
    def lane_of_topic(self) -> dict[str, str]:
        """``Kafka topic -> lane``."""
        return {self.kafka_topic(name): name for name in self.lanes}


class _PoolsOfLanes(_Lanes, Generic[_PoolT]):
    pools: dict[Name, _PoolT]

    @pydantic.model_validator(mode="after")
    def _pools_exist(self) -> _PoolsOfLanes[_PoolT]:
        mistakes = [
            f"lanes.{name}: pool {lane.pool!r} is not among the pools ({', '.join(self.pools) or 'none'})"
            for name, lane in self.lanes.items()
            if lane.pool not in self.pools
        ]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


class BridgeSettings(_PoolsOfLanes[PoolLimits]):
    """``bridge.toml``."""

    service: Literal["bridge"]
    state_address: AddressField
    bridge_socket: FilePath = BRIDGE_SOCKET
    nsqd: Nsqd


class PersisterSettings(_PoolsOfLanes[ResultTopic]):
    """``persister-requests.toml`` and ``persister-results.toml``."""

    service: Literal["persister"]
    instance: Literal["requests", "results"]
    state_address: AddressField
    postgresql: Postgresql
    max_message_bytes: MessageBytes = DEFAULT_MESSAGE_BYTES


class WorkerSettings(_Lanes):
    """``worker-<pool>.toml``: one pool and its lanes.

    ``generation`` is any text that changes with what is not in this file and takes a restart: the release, the unit,
    secrets, the files of a handler that is imported.
    """

    service: Literal["worker"]
    state_address: AddressField
    nsqd: Nsqd
    pool: Pool
    generation: str = ""

    @pydantic.model_validator(mode="after")
    def _lanes_of_this_pool(self) -> WorkerSettings:
        if not self.lanes:
            raise ValueError("lanes: a pool serves at least one lane, got none")
        for name, lane in self.lanes.items():
            if lane.pool != self.pool.name:
                raise ValueError(f"lanes.{name}: belongs to pool {lane.pool!r}, this worker's is {self.pool.name!r}")
        return self

    def restart_needed_for(self, new: WorkerSettings) -> list[str]:
        """Return what of ``new`` a running worker cannot take; all else it can, without dropping a task."""
        fixed = {"generation", "host", "state_address", "kafka"}
        pool = {"name", "directory", "handler"}
        return sorted(name for name in fixed if getattr(self, name) != getattr(new, name)) + sorted(
            f"pool.{name}" for name in pool if getattr(self.pool, name) != getattr(new.pool, name)
        )


class IntakeSettings(_Lanes):
    """``intake.toml``: the lanes that take requests over HTTP. Their tokens are a credential."""

    service: Literal["intake"]
    state_address: AddressField
    listen_address: AddressField
    max_message_bytes: MessageBytes = DEFAULT_MESSAGE_BYTES
    #: bytes of one body, unpacked.
    max_body_bytes: Annotated[int, Field(gt=0)] = 16 * 1024 * 1024
    #: bytes of all bodies that are being read, or that Kafka has not acknowledged.
    max_unacknowledged_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024
    #: seconds that a client gets to send a body, or may keep a connection without a request.
    client_timeout_seconds: Seconds = 60
    #: seconds that Kafka gets to acknowledge a request.
    kafka_timeout_seconds: Seconds = 15

    @pydantic.model_validator(mode="after")
    def _a_body_fits(self) -> IntakeSettings:
        if self.max_body_bytes > self.max_unacknowledged_bytes:
            raise ValueError(
                f"max_body_bytes: got {self.max_body_bytes}, expected at most max_unacknowledged_bytes, "
                f"{self.max_unacknowledged_bytes}"
            )
        return self


class Policy(_Section):
    """Which old requests are sent again, onto ``lane``: those of its kind, of the last ``window_days``.

    Of these: the ones without a result, and where either is given those whose result is older than
    ``result_older_than_days`` and has one of ``statuses`` and none of ``exclude_statuses`` (globs). At most ``limit``,
    less what is not done on the lane, and none that was sent again within ``cool_down_hours``.
    """

    lane: str
    window_days: Annotated[float, Field(gt=0, le=_CENTURY_DAYS)]
    result_older_than_days: Annotated[float, Field(ge=0, le=_CENTURY_DAYS)] | None = None
    statuses: Annotated[tuple[str, ...], Field(strict=False)] = ()
    exclude_statuses: Annotated[tuple[str, ...], Field(strict=False)] = ()
    limit: Annotated[int, Field(ge=1)] | None = None
    cool_down_hours: Annotated[float, Field(ge=0, le=24 * _CENTURY_DAYS)] = 24

    @pydantic.model_validator(mode="after")
    def _excludes_from_something(self) -> Policy:
        if self.exclude_statuses and not self.statuses and self.result_older_than_days is None:
            raise ValueError("exclude_statuses: only narrows statuses or result_older_than_days; got neither")
        return self


class CliSettings(_PoolsOfLanes[ResultTopic]):
    """``slowjobs.toml``: the whole site, for the command line."""

    service: Literal["cli"]
    bridge_socket: FilePath = BRIDGE_SOCKET
    postgresql: Postgresql
    nsqd: Nsqd
    services: Annotated[tuple[Service, ...], Field(strict=False)] = ()
    policies: dict[Name, Policy] = {}

    @pydantic.model_validator(mode="after")
    def _policies_fit(self) -> CliSettings:
        mistakes = [
            f"policies.{name}: lane {policy.lane!r} is not among the lanes ({', '.join(self.lanes) or 'none'})"
            for name, policy in self.policies.items()
            if policy.lane not in self.lanes
        ]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


AnySettings = BridgeSettings | PersisterSettings | WorkerSettings | IntakeSettings | CliSettings
S = TypeVar("S", bound=AnySettings)
D = TypeVar("D")
_ADAPTER: pydantic.TypeAdapter[AnySettings] = pydantic.TypeAdapter(
    Annotated[AnySettings, Field(discriminator="service")]
)


#: characters; what is shorter can be guessed.
MIN_TOKEN_CHARACTERS = 16
_Token = Annotated[str, Field(pattern=rf"^[!-~]{{{MIN_TOKEN_CHARACTERS},}}$")]
_TOKENS = pydantic.TypeAdapter(dict[str, tuple[_Token, ...]])
_PROPERTIES = pydantic.TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Credentials:
    """Secrets, read from files that systemd or root alone can read. ``repr()`` shows none of them."""

    kafka: dict[str, str]
    postgresql_password: str | None
    #: ``lane -> tokens``, each of which is good for it.
    intake_tokens: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Credentials(***)"


def load(path: Path, expected: type[S]) -> S:
    """Read and check one file of ours, the one of a certain service.

    Raises ConfigurationError with every mistake and its place.
    """
    config = load_any(path)
    if not isinstance(config, expected):
        raise ConfigurationError(f"{path}: expected the file of another service, got that of {config.service!r}")
    return config


def load_any(path: Path) -> AnySettings:
    """Read and check one file of ours, of whichever service. Raises ConfigurationError as ``load``."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    try:
        return _ADAPTER.validate_python(document)
    except pydantic.ValidationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in _mistakes(error))) from error


def _mistakes(error: pydantic.ValidationError) -> list[str]:
    lines = []
    for mistake in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in _place(mistake["loc"])) or "the file as a whole"
        got = mistake["input"]
        # Our own validators' messages say what is to be said; one of them is about a secret.
        ours = mistake["type"] == "value_error" or isinstance(got, dict | pydantic.BaseModel)
        shown = "" if ours else f" (got {got!r})"
        lines.append(f"{place}: {mistake['msg'].removeprefix('Value error, ')}{shown}")
    return lines


def _place(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return where in the file: without the type by which pydantic chose a service's or a kind's fields."""
    of_service = loc[1:]
    return (*of_service[:2], *of_service[3:]) if of_service[:1] == ("kinds",) else of_service


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a configuration file, in hex: what a state port names as the configuration in force.

    Raises ConfigurationError.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def credentials() -> Credentials:
    """Read what systemd handed to this service, or root's own copies for the command line. Each file is optional."""
    folder = Path(os.environ.get("CREDENTIALS_DIRECTORY", CONFIG_DIRECTORY / "credentials"))
    return Credentials(
        _secret_document(folder / "kafka.json", _PROPERTIES, "a JSON object of librdkafka properties"),
        _secret(folder / "postgresql_password"),
        _secret_document(
            folder / "intake_tokens.json",
            _TOKENS,
            f"a JSON object from lanes to lists of tokens, each of at least {MIN_TOKEN_CHARACTERS} printable "
            "ASCII characters without spaces",
        ),
    )


def _secret_document(path: Path, adapter: pydantic.TypeAdapter[D], wanted: str) -> D:
    try:
        return adapter.validate_json(_secret(path) or "{}")
    except pydantic.ValidationError:
        # Without its cause, which quotes the secret.
        raise ConfigurationError(f"{path}: expected {wanted}") from None


def _secret(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (FileNotFoundError, PermissionError):
        return None
