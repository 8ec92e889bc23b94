"""Which requests are sent again: the statements against a real PostgreSQL."""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from slowjobs import schema, settings
from slowjobs.operations import progress, reenqueue, under_way
from support.postgresql import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services import Services

pytestmark = pytest.mark.integration

#: how far the bridge is; of the second partition the list had become too long. ``gone`` is no lane's topic any more.
SEEN = under_way.UnderWay(
    {
        "target": [
            progress.Progress(mark=10, end=12, undone={}, listed=10),
            progress.Progress(mark=11, end=12, undone={9: "svc506"}, listed=10),
        ],
        "busy": [progress.Progress(mark=10, end=12, undone={8: "svc506", 7: "svc507"}, listed=10)],
    }
)


@dataclass(frozen=True)
class Position:
    """Ages in days. ``last_seen`` is None where it was only ever seen re-enqueued."""

    topic: str = "target"
    partition: int = 0
    offset: int = 5
    last_seen: float | None = None
    reenqueued: float | None = None


@dataclass(frozen=True)
class Result:
    age: float = 1
    status: str | None = "success"


@dataclass(frozen=True)
class Request:
    """Requests with the same ``url`` share a result, where their kind lets them."""

    name: str = "request"
    url: str = "https://example.org/1"
    created: float = 1
    position: Position | None = None


@dataclass(frozen=True)
class World:
    """``results``: by url, or by name for requests of type job."""

    requests: tuple[Request, ...]
    results: dict[str, Result]


@pytest.fixture(scope="module")
def connection(_running_services: Services) -> Iterator[Any]:
    """A connection whose transactions are rolled back after each world."""
    postgresql = _running_services.postgresql
    database = f"db_{uuid.uuid4().hex[:8]}"
    postgresql.create_database(database)
    with closing(psycopg2.connect(postgresql.dsn(database), password=PASSWORD)) as connection:
        connection.autocommit = True
        schema.make(connection, ["job", "ingest"])
        connection.autocommit = False
        yield connection


def _config(type_: str) -> settings.CliSettings:
    kind = {"type": "job", "key": ["name"]} if type_ == "job" else {"type": "ingest"}
    lane = {"kind": "kind", "pool": "pool"}
    address = {"tcp_address": "127.0.0.1:1", "http_address": "127.0.0.1:1"}
    return settings.CliSettings.model_validate(
        {
            "service": "cli",
            "host": "control1",
            "kafka": {"properties": {"bootstrap.servers": "127.0.0.1:1"}},
            "postgresql": {"dsn": "dbname=none"},
            "nsqd": {"active": "svc506", "hosts": {"svc506": address}},
            "kinds": {"kind": kind},
            "pools": {"pool": {"result_topic": "results"}},
            "lanes": {"target": lane, "busy": lane},
        }
    )


def _policy(**members: Any) -> settings.Policy:
    return settings.Policy(**{"lane": "target", "window_days": 8, **members})


def _key(type_: str, request: Request) -> str:
    return json.dumps([request.name] if type_ == "job" else ["doi", request.name, "pdf", request.url])


def _fill(cursor: Any, type_: str, world: World) -> None:
    now = datetime.now(UTC)

    def ago(days: float | None) -> datetime | None:
        return None if days is None else now - timedelta(days=days)

    for request in world.requests:
        if type_ == "job":
            row = ("kind", _key(type_, request), ago(request.created), json.dumps({"name": request.name}))
            cursor.execute("INSERT INTO job_request VALUES (%s, %s, %s, %s)", row)
        else:
            cursor.execute(
                "INSERT INTO ingest_request (link_source, link_source_id, ingest_type, base_url, created)"
                " VALUES ('doi', %s, 'pdf', %s, %s)",
                (request.name, request.url, ago(request.created)),
            )
        if at := request.position:
            cursor.execute(
                "INSERT INTO slowjobs_request_position VALUES ('kind', %s, %s, %s, %s, %s, %s, 0)",
                (_key(type_, request), at.topic, at.partition, at.offset, ago(at.last_seen), ago(at.reenqueued)),
            )
    for about, result in world.results.items():
        row = (about if type_ == "ingest" else json.dumps([about]), ago(result.age), result.status)
        cursor.execute(
            "INSERT INTO job_result (kind, key, updated, status, hit) VALUES ('kind', %s, %s, %s, true)"
            if type_ == "job"
            else "INSERT INTO ingest_file_result (ingest_type, base_url, updated, status, hit)"
            " VALUES ('pdf', %s, %s, %s, true)",
            row,
        )


def _selected(connection: Any, type_: str, world: World, policy: settings.Policy) -> dict[str, str | None]:
    """Return ``name -> why it is left out`` of what the policy is about."""
    with connection.cursor() as cursor:
        _fill(cursor, type_, world)
    try:
        rows = list(reenqueue.select(connection, _config(type_), policy, SEEN))
    finally:
        connection.rollback()
    names = {_key(type_, request): request.name for request in world.requests}
    assert len(rows) == len({key for key, _, _ in rows})
    return {names[key]: left_out for key, _, left_out in rows}


def _one(result: Result | None = None, position: Position | None = None, created: float = 1) -> World:
    request = Request(created=created, position=position)
    return World((request,), {} if result is None else {request.url: result, request.name: result})


SENT, NOT_SENT = {"request": None}, dict[str, None]()
FAILED, NOT_FOUND = Result(status="spn2-error"), Result(status="spn2-error:not-found")
PROMISES = {
    "without a result": (_one(), {}, SENT),
    "not with a result": (_one(Result()), {}, NOT_SENT),
    "not from before the window": (_one(created=9), {}, NOT_SENT),
    "seen again within the window": (_one(position=Position(last_seen=1), created=9), {}, SENT),
    "re-enqueueing is no sighting": (_one(position=Position(last_seen=9, reenqueued=2), created=9), {}, NOT_SENT),
    "only ever seen re-enqueued": (_one(position=Position(reenqueued=2)), {}, SENT),
    "a result older than asked for": (_one(Result(age=91)), {"result_older_than_days": 90}, SENT),
    "not a result younger than that": (_one(Result(age=89)), {"result_older_than_days": 90}, NOT_SENT),
    "a status that is asked for": (_one(FAILED), {"statuses": ("spn2-*",)}, SENT),
    "not another status": (_one(Result()), {"statuses": ("spn2-*",)}, NOT_SENT),
    "not an excluded status": (
        _one(NOT_FOUND), {"statuses": ("spn2-*",), "exclude_statuses": ("*:not-found",)}, NOT_SENT
    ),
    "all but an excluded status": (_one(Result()), {"statuses": ("*",), "exclude_statuses": ("*:not-found",)}, SENT),
    "a status that is asked for, but younger": (
        _one(FAILED), {"statuses": ("spn2-*",), "result_older_than_days": 2}, NOT_SENT
    ),
    "no result whatever is excluded": (_one(), {"statuses": ("*",), "exclude_statuses": ("*",)}, SENT),
    "not what was not handed to NSQ": (
        _one(position=Position(offset=10)), {}, {"request": "on-kafka target"}
    ),
    "not what was sent since the look, also to a partition that was added": (
        _one(position=Position(partition=2, offset=0, last_seen=0)), {}, {"request": "on-kafka target"}
    ),
    "what was on a topic before that was made anew": (_one(position=Position(offset=12, last_seen=1)), {}, SENT),
    "not what was handed to NSQ and is not done": (
        _one(position=Position("busy", offset=8)), {}, {"request": "in-nsq busy"}
    ),
    "what is done beside it": (_one(position=Position("busy", offset=9)), {}, SENT),
    "nothing above a list that had become too long": (
        _one(position=Position(partition=1, offset=10)), {}, {"request": "on-kafka target"}
    ),
    "on a topic that is no lane's any more": (_one(position=Position("gone", offset=99)), {}, SENT),
    "not within the cool-down": (_one(position=Position(reenqueued=0.5)), {}, {"request": "cool-down target"}),
    "within a shorter cool-down": (_one(position=Position(reenqueued=0.5)), {"cool_down_hours": 6}, SENT),
}  # fmt: skip


@pytest.mark.parametrize("type_", ["job", "ingest"])
@pytest.mark.parametrize("promise", PROMISES)
def test_what_is_sent_again(connection: Any, promise: str, type_: str) -> None:
    world, policy, expected = PROMISES[promise]
    assert _selected(connection, type_, _of_type(world, type_), _policy(**policy)) == expected


def _of_type(world: World, type_: str) -> World:
    """Return ``world`` with the results that requests of this type can have."""
    abouts = {request.url if type_ == "ingest" else request.name for request in world.requests}
    return replace(world, results={about: result for about, result in world.results.items() if about in abouts})


SIBLINGS = {
    "the newest of those that share a result": ([Request("old", created=3), Request("new", created=1)], {"new": None}),
    "the one that was seen last": (
        [Request("again", created=3, position=Position(last_seen=0.5)), Request("new", created=1)],
        {"again": None},
    ),
    "none while another is on its way": (
        [Request("old", created=30, position=Position(offset=10)), Request("new")],
        {"new": "on-kafka target"},
    ),
    "none while another is not done": (
        [Request("old", created=30, position=Position("busy", offset=7)), Request("new")],
        {"new": "in-nsq busy"},
    ),
    "none while another was sent again a short time ago": (
        [Request("old", created=30, position=Position(reenqueued=0.5)), Request("new")],
        {"new": "cool-down target"},
    ),
    "each of those that share none": (
        [Request("one"), Request("two", url="https://example.org/2")],
        {"one": None, "two": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("promise", SIBLINGS)
def test_one_request_is_sent_for_each_result(connection: Any, promise: str) -> None:
    requests, expected = SIBLINGS[promise]
    assert _selected(connection, "ingest", World(tuple(requests), {}), _policy()) == expected


# The same rules once more, in Python, on worlds that nobody thought of.

AGES = st.sampled_from([0.3, 3, 30, 300])
STATUSES = ["success", "spn2-error", "spn2-error:not-found", "no-capture", None]
GLOBS = ["spn2-*", "spn2-error", "*:not-found", "no?capture", "*"]
POSITIONS = st.builds(
    Position,
    topic=st.sampled_from(["target", "busy", "gone"]),
    partition=st.integers(0, 2),
    offset=st.integers(8, 12),
    last_seen=st.none() | AGES,
    reenqueued=st.none() | AGES,
)
NAMES, URLS = ["a", "b", "c", "d"], ["https://example.org/1", "https://example.org/2"]
REQUESTS = st.builds(Request, st.sampled_from(NAMES), st.sampled_from(URLS), AGES, st.none() | POSITIONS)
RESULTS = st.builds(Result, AGES, st.sampled_from(STATUSES[:-1]))
GLOB_LISTS = st.lists(st.sampled_from(GLOBS), max_size=2).map(tuple)
POLICIES = st.builds(
    _policy,
    window_days=st.sampled_from([1, 8, 91]),
    result_older_than_days=st.none() | st.sampled_from([0, 8, 91]),
    statuses=GLOB_LISTS,
    cool_down_hours=st.sampled_from([0, 24, 24 * 91]),
)
#: exclusions alone are refused
NARROWED = st.builds(
    lambda policy, statuses: (
        policy.model_copy(update={"exclude_statuses": statuses})
        if policy.statuses or policy.result_older_than_days is not None
        else policy
    ),
    POLICIES,
    GLOB_LISTS,
)


def _expected(type_: str, world: World, policy: settings.Policy) -> dict[str, str | None]:
    groups = defaultdict(list)
    for request in world.requests:
        groups[request.url if type_ == "ingest" else request.name].append(request)
    expected = {}
    for about, group in groups.items():
        newest = min(group, key=lambda request: (_age(request), request.name))
        if _age(newest) < policy.window_days and _wants(world.results.get(about), policy):
            reasons = [reason for request in group if (reason := _left_out(request.position, policy))]
            expected[newest.name] = min(reasons, default=None)
    return expected


def _age(request: Request) -> float:
    seen = request.position.last_seen if request.position else None
    return request.created if seen is None else min(request.created, seen)


def _wants(result: Result | None, policy: settings.Policy) -> bool:
    if result is None:
        return True
    older_than = policy.result_older_than_days
    if older_than is None and not policy.statuses:
        return False
    status = result.status or ""
    return (
        (older_than is None or result.age > older_than)
        and (not policy.statuses or any(_matches(status, glob) for glob in policy.statuses))
        and not any(_matches(status, glob) for glob in policy.exclude_statuses)
    )


def _left_out(position: Position | None, policy: settings.Policy) -> str | None:
    if position is None:
        return None
    if position.topic in SEEN.partitions:
        added = progress.Progress(mark=0, end=0, undone={}, listed=0)
        partition = dict(enumerate(SEEN.partitions[position.topic])).get(position.partition, added)
        recent = any(age is not None and age * 24 < 1 for age in (position.last_seen, position.reenqueued))
        if position.offset >= partition.listed and (position.offset < partition.end or recent):
            return f"on-kafka {position.topic}"
        if position.offset in partition.undone:
            return f"in-nsq {position.topic}"
    if position.reenqueued is not None and position.reenqueued * 24 < policy.cool_down_hours:
        return f"cool-down {position.topic}"
    return None


def _matches(status: str, glob: str) -> bool:
    pattern = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in glob)
    return re.fullmatch(pattern, status, re.DOTALL) is not None


@pytest.mark.parametrize("type_", ["job", "ingest"])
@hypothesis_settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(REQUESTS, max_size=4, unique_by=lambda request: request.name),
    results=st.dictionaries(st.sampled_from(NAMES + URLS), RESULTS),
    policy=NARROWED,
)
def test_the_statement_says_what_the_rules_say(
    connection: Any, type_: str, requests: list[Request], results: dict[str, Result], policy: settings.Policy
) -> None:
    world = _of_type(World(tuple(requests), results), type_)
    assert _selected(connection, type_, world, policy) == _expected(type_, world, policy)


@hypothesis_settings(max_examples=200, deadline=None)
@given(text=st.text("ab*?%_\\[]", max_size=6), glob=st.text("ab*?%_\\[]", max_size=6))
def test_a_glob_matches_in_postgresql_what_it_should(connection: Any, text: str, glob: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s LIKE %s", (text, reenqueue.like(glob)))
        assert cursor.fetchone() == (_matches(text, glob),)


@pytest.mark.parametrize("type_", ["job", "ingest"])
def test_no_table_is_read_as_a_whole(connection: Any, type_: str) -> None:
    """On tables of any size, with statistics or without: what is read is read by an index that ``setup`` makes."""
    sql, parameters = reenqueue.query(_config(type_), _policy(statuses=("spn2-*",)), SEEN)
    with connection.cursor() as cursor:
        cursor.execute(reenqueue.PLANNER)
        cursor.execute(f"EXPLAIN {sql}", parameters)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    connection.rollback()
    assert "Seq Scan" not in plan, plan
    assert re.search(r"Index Cond: .*created >=", plan), plan
    assert re.search(r"Index Cond: .*last_seen >=", plan), plan
