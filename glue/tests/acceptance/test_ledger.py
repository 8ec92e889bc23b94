"""What NSQ loses is found and published again, just that, and nobody has to do anything."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import confluent_kafka
import pytest
from confluent_kafka.admin import NewPartitions

from slowjobs import documents
from slowjobs.bridge import bridge, commit, ledger
from support import handlers
from support.services import ACTIVE, SECOND
from support.system import EVENTS
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.system import MakeSystem, System

pytestmark = pytest.mark.acceptance

#: A module whose handler notes each run. Until the file "gate" is there a run lasts, or puts a late request back for
#: longer than any test.
GATED = """\
import json
import os
import time

from slowjobs import outcomes


class Gated:
    def process(self, request, key=None):
        with open("runs.log", "a") as log:
            log.write(json.dumps(request) + "\\n")
        while not os.path.exists("gate"):
            if request.get("late"):
                raise outcomes.Retry(600)
            time.sleep(0.05)
        return request
"""
SLOTS = 2
#: seconds that the bridge gets to see what is missing, or to publish it again: some readings, on a busy machine.
FINDING_SECONDS = 40
RUNNING, LATE, WAITING, NEW = ("r1", "r2"), ("l1", "l2", "l3"), ("w1", "w2", "w3", "w4"), ("n1", "n2")


def _gated(make_system: MakeSystem, **settings: Any) -> System:
    """Return a system whose handlers wait for the gate; nothing of it runs yet."""
    pool = {"handler": {"python": "gated:Gated", "interpreter": sys.executable}}
    system = make_system(slots=SLOTS, pool=pool, **settings)
    (system.pool_folder / "gated.py").write_text(GATED, encoding="utf-8")
    system.setup()
    return system


def _at_work(make_system: MakeSystem) -> System:
    """Return a system with requests put back for later, running and waiting."""
    system = _gated(make_system)
    system.start()
    system.send_requests(LATE, late=True)
    wait_until(lambda: system.channel()["deferred_count"], 30, "what is put back", accept=lambda n: n == len(LATE))
    system.send_requests(RUNNING)
    _wait_for_runs(system, {*LATE, *RUNNING})
    system.send_requests(WAITING)
    _wait_for_nsq(system, len(LATE + RUNNING + WAITING))
    return system


def _wait_for_runs(system: System, ids: Iterable[str]) -> None:
    wait_until(lambda: set(handlers.runs(system)), 30, "runs", accept=lambda seen: seen == set(ids))


def _wait_for_nsq(system: System, count: int, seconds: float = FINDING_SECONDS) -> None:
    """Wait until NSQ holds so many requests."""
    wait_until(system.outstanding, seconds, "NSQ to hold it", accept=lambda n: n == count, while_true=system.trouble)


def _of_one_partition(make_system: MakeSystem) -> System:
    """Return a system whose requests have one order; nothing of it runs yet."""
    system = make_system(handler=handlers.NOTING)
    system.services.kafka.create_topic(system.kafka_topic)
    system.setup()
    return system


def _lane(system: System) -> dict[str, Any]:
    """Return what the bridge says of the lane."""
    state: dict[str, Any] = system.bridge.state()["lanes"][system.lane]
    return state


def _positions(system: System, ids: Iterable[str]) -> list[str]:
    """Return where requests are on Kafka, as the log says it."""
    where = {json.loads(value or b"null")["file_id"]: position for position, value in system.sent().items()}
    return [f"{system.kafka_topic}[{partition}]@{offset}" for partition, offset in map(where.__getitem__, ids)]


def _ends_well(system: System, ids: Iterable[str]) -> None:
    """Open the gate; check that each of ``ids`` comes to its end, and that the bridge knows."""
    handlers.open_gate(system)
    wanted = set(ids)
    system.wait_for_results(wanted, 60)
    wait_until(
        lambda: system.committed(bridge.GROUP),
        20,
        "all to be committed as done",
        accept=lambda offset: offset == len(system.sent()),
        while_true=system.trouble,
    )
    # What a stopped host has on its disk is nobody's any more.
    held = system.services.nsqd.outstanding
    wait_until(lambda: held(system.lane), 20, "NSQ to hold nothing", accept=lambda left: left == 0)
    wait_until(lambda: _lane(system)["missing"], 20, "nothing to be missing", accept=lambda missing: missing == 0)
    assert sorted(result["file_id"] for result in system.results()) == sorted(wanted)
    assert system.dead_letters() == []


def test_what_a_killed_nsqd_had_in_memory_is_published_again_and_what_waited_runs_once(
    make_system: MakeSystem,
) -> None:
    system = _at_work(make_system)
    # What was told within the seconds that clocks may differ by counts as evidence, true or not, until it ends.
    time.sleep(ledger.CLOCK_SECONDS + 1)
    system.services.nsqd.kill()
    system.services.nsqd.start()

    missing = len(LATE + RUNNING)
    wait_until(
        lambda: _lane(system), FINDING_SECONDS, "the bridge to hold new ones", accept=lambda state: state["holding"]
    )
    system.send_requests(NEW)
    state = wait_until(lambda: _lane(system), 20, "new ones", accept=lambda state: state["fetched"] == len(NEW))
    assert (state["missing"], state["unaccounted"]) == (missing, missing + len(WAITING))
    assert state["missing_since"] is not None
    said = " ".join(system.run("status").stdout.split())
    assert f"{missing} missing on {system.lane} since " in said
    assert f", holding new ones, {missing + len(WAITING)} unaccounted" in said
    assert system.bridge.metric("slowjobs_missing_requests") == missing
    assert system.bridge.metric("slowjobs_holding") == 1

    _ends_well(system, [*LATE, *RUNNING, *WAITING, *NEW])
    assert handlers.runs(system) == {**dict.fromkeys(RUNNING + WAITING + NEW, 1), **dict.fromkeys(LATE, 2)}
    assert system.bridge.metric("slowjobs_published_again_total") == len(LATE)
    assert system.bridge.metric("slowjobs_missing_requests") == 0
    assert system.bridge.metric("slowjobs_holding") == 0
    said = "".join(line for line in system.bridge.log_text().splitlines() if "event=bridge.published_again" in line)
    assert sorted(re.findall(r"'(\S+)'", said)) == sorted(_positions(system, LATE))
    assert (_lane(system)["holding"], _lane(system)["missing_since"]) == (False, None)


def test_what_somebody_empties_out_of_a_channel_comes_back_and_nothing_runs_twice_at_a_time(
    make_system: MakeSystem,
) -> None:
    system = _at_work(make_system)
    # Paused: nsqd, which counts nothing as in flight from then on, would deliver one more between that and dropping the
    # rest, once in fifty times. While that one waits behind those that run, nothing tells it from the lost ones.
    where = f"topic={quote(system.lane)}&channel={quote(system.pool)}"
    for verb in ("pause", "empty", "unpause"):
        system.services.nsqd.post(f"/channel/{verb}?{where}")
    # Those put back are vouched for until long after this test.
    _wait_for_nsq(system, len(WAITING))
    assert handlers.runs(system) == dict.fromkeys(LATE + RUNNING, 1)
    handlers.open_gate(system)
    system.wait_for_results(RUNNING + WAITING, 30)
    assert handlers.runs(system) == dict.fromkeys(LATE + RUNNING + WAITING, 1)


@pytest.mark.parametrize("ended", ["killed", "stopped"])
def test_a_bridge_that_starts_again_goes_on_at_once_and_publishes_nothing_twice(
    make_system: MakeSystem, ended: str
) -> None:
    system = _at_work(make_system)
    if ended == "killed":
        system.bridge.kill()
    else:
        assert system.bridge.stop() == 0
    system.bridge.start()
    began = time.monotonic()
    system.send_requests(NEW)
    everything = [*LATE, *RUNNING, *WAITING, *NEW]
    _wait_for_nsq(system, len(everything))
    assert time.monotonic() - began < 10
    # Some readings of the new bridge.
    time.sleep(4 * 2)
    topic = system.services.nsqd.topic(system.lane)
    assert topic is not None
    assert topic["message_count"] == len(everything)
    assert (_lane(system)["undone"], _lane(system)["missing"]) == (len(everything), 0)
    handlers.open_gate(system)
    system.wait_for_results(set(everything) - set(LATE), 30)
    assert handlers.runs(system) == dict.fromkeys(everything, 1)


def test_what_a_host_held_that_was_taken_out_is_published_to_the_active_one(make_system: MakeSystem) -> None:
    system = _gated(make_system, nsqd_hosts=(SECOND,))
    system.start()
    held = [*RUNNING, *WAITING]
    system.send_requests(RUNNING)
    _wait_for_runs(system, RUNNING)
    system.send_requests(WAITING)
    _wait_for_nsq(system, len(held))

    section = system.nsqd_section(ACTIVE)
    system.documents["worker1"]["nsqd"] = section
    system.documents["bridge"]["nsqd"] |= section
    system.write()
    system.worker.kill()
    system.worker.start()
    system.services.second_nsqd.stop()
    system.services.nsqd.create(system.lane, system.pool)
    assert system.bridge.stop() == 0
    system.bridge.start()
    _ends_well(system, held)
    runs = handlers.runs(system)
    assert runs == {**dict.fromkeys(WAITING, 1), **dict.fromkeys(RUNNING, 2)}


def _produce_in_transactions(system: System, *transactions: tuple[Iterable[str], bool]) -> None:
    """Write requests, each set in a transaction that is committed or aborted."""
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": system.services.kafka.address, "transactional.id": system.name, "log_level": 0}
    )
    producer.init_transactions(30)
    for ids, committed in transactions:
        producer.begin_transaction()
        for file_id in ids:
            producer.produce(system.kafka_topic, b'{"file_id": "%s"}' % file_id.encode())
        producer.flush(30)
        if committed:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)


def test_what_an_aborted_transaction_leaves_on_a_topic_is_passed(make_system: MakeSystem) -> None:
    system = _of_one_partition(make_system)
    system.start()
    _produce_in_transactions(
        system, (["a", "b"], True), (["never1", "never2"], False), (["c"], True), (["never3"], False)
    )
    system.wait_for_results("abc", 30)
    assert handlers.runs(system) == dict.fromkeys("abc", 1)
    # Ten offsets: six requests and four marks of transactions.
    wait_until(lambda: system.committed(bridge.GROUP), 20, "the last gap to be passed", accept=lambda n: n == 10)
    system.run("wait-idle", "--timeout", "20s")


def test_requests_of_partitions_that_were_added_are_worked_on(make_system: MakeSystem) -> None:
    system = _of_one_partition(make_system)
    system.start()
    system.send_requests(range(5))
    system.wait_for_results(range(5), 30)
    system.bridge.stop()
    admin = system.services.kafka.admin()
    admin.create_partitions([NewPartitions(system.kafka_topic, 3)])[system.kafka_topic].result(20)
    system.bridge.start()
    system.send_requests(range(5, 65))
    system.wait_for_results(range(65), 60)
    assert handlers.runs(system) == dict.fromkeys(range(65), 1)
    wait_until(lambda: system.committed(bridge.GROUP), 20, "all to be done", accept=lambda done: done == 65)


@pytest.mark.parametrize("meanwhile", ["runs", "is stopped"])
def test_requests_of_a_topic_that_was_made_anew_are_worked_on(make_system: MakeSystem, meanwhile: str) -> None:
    system = _of_one_partition(make_system)
    system.start()
    system.send_requests(range(20))
    system.wait_for_results(range(20), 30)
    wait_until(lambda: system.committed(bridge.GROUP), 20, "all to be done", accept=lambda done: done == 20)
    if meanwhile == "is stopped":
        system.bridge.stop()
    kafka = system.services.kafka
    admin = kafka.admin()
    admin.delete_topics([system.kafka_topic])[system.kafka_topic].result(20)
    wait_until(kafka.topics, 20, "the topic to go", accept=lambda topics: system.kafka_topic not in topics)
    kafka.create_topic(system.kafka_topic)
    if meanwhile == "is stopped":
        system.bridge.start()
    # More than the old one had: who goes on at its offset misses the first of them.
    system.send_requests(range(20, 50))
    wait_until(
        lambda: set(handlers.runs(system)),
        60,
        "new requests to run",
        accept=lambda ids: ids == set(range(50)),
        while_true=system.trouble,
    )
    # One that began before the bridge knew of the new topic may run twice.
    assert all(handlers.runs(system)[number] == 1 for number in range(40))
    wait_until(lambda: system.committed(bridge.GROUP), 20, "all to be done", accept=lambda done: done == 30)


def _commit(system: System, offset: int, metadata: str) -> None:
    """Commit in the first partition as the bridge does, whose place in the group may still be kept."""
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": system.services.kafka.address,
            "group.id": bridge.GROUP,
            "group.instance.id": bridge.GROUP,
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    try:
        consumer.subscribe([system.kafka_topic])
        # Which partitions these are does not matter: a member may commit any.
        wait_until(lambda: consumer.poll(0.1) or consumer.assignment(), 30, "a place in the group")
        offsets = [confluent_kafka.TopicPartition(system.kafka_topic, 0, offset, metadata)]
        consumer.commit(offsets=offsets, asynchronous=False)
    finally:
        consumer.close()


def test_a_commit_of_a_newer_bridge_is_refused_and_one_of_before_the_ledger_goes_on(make_system: MakeSystem) -> None:
    system = _of_one_partition(make_system)
    system.send_requests(range(10))
    newer = commit.Commit(4, {}, None, None, 4).write().replace(f'"v":{documents.VERSION}', '"v":1000')
    _commit(system, 4, newer)
    system.bridge.start(ready=False)
    assert system.bridge.wait(30) == 1
    assert "expected version 1 of ours, got 1000: upgrade slowjobs here" in system.bridge.log_tail(3)
    assert "Traceback" not in system.bridge.log_text()
    assert system.committed(bridge.GROUP) == 4
    assert system.outstanding() == 0

    _commit(system, 4, "")
    system.start()
    system.wait_for_results(range(4, 10), 30)
    assert handlers.runs(system) == dict.fromkeys(range(4, 10), 1)
    wait_until(lambda: system.committed(bridge.GROUP), 20, "all to be done", accept=lambda done: done == 10)


def test_events_that_retention_took_before_their_requests_were_done_are_not_missed(make_system: MakeSystem) -> None:
    system = _at_work(make_system)
    system.bridge.stop()
    kafka = system.services.kafka
    system.events()
    events = confluent_kafka.TopicPartition(EVENTS, 0, confluent_kafka.OFFSET_END)
    admin = kafka.admin()
    admin.delete_records([events])[events].result(20)
    system.bridge.start()
    system.send_requests(NEW)
    everything = [*LATE, *RUNNING, *WAITING, *NEW]
    _wait_for_nsq(system, len(everything))
    handlers.open_gate(system)
    system.wait_for_results(set(everything) - set(LATE), 30)
    assert handlers.runs(system) == dict.fromkeys(everything, 1)
    assert _lane(system)["missing"] == 0
