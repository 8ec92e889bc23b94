#!/usr/bin/env python3
"""Measure the bridge: how fast it publishes and reads events, and what it needs for a long backlog.

Publishing: the bridge, the cap of its lane lifted, stands still while the lane's topic is filled, and is let go: the
clock runs from there until nsqd has all requests. Beside it, in turns and on the same nsqd, a loop of MPUB sends the
same bodies over one connection, each batch when the one before is answered.

Events: the bridge starts with a commit that says that 1,000 requests are not done, and reads what happened to them.
Beside it a consumer reads the same events and does not look at them.

Backlog: a worker finishes requests at once, but for the very first, which it puts back again and again. Meanwhile
memory and the commit are looked at; then the bridge is started anew, once stopped and once killed, and the clock runs
from there until it publishes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import confluent_kafka
import rich.box
import rich.console
import rich.table
import tree
from connection import Connection
from quick_worker import WORKER, QuickWorker
from slowjobs import documents, kafka, nsq, settings
from slowjobs.bridge import publishing
from support import services, system
from support.nsqd import Nsqd
from support.sampler import Sampler
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LIFTED = Path(__file__).with_name("lifted.py")
REQUEST_BYTES = 400
#: nsqd's --sync-every, and how many requests a measurement has: the more often it syncs, the longer they take.
SYNC_EVERY = {1: 8_000, 100: 100_000, 2500: 200_000}
#: of the measurements that are not about syncing.
RARE_SYNC = 2500
#: requests that are not done while events are read, and how often each is begun: two events each time.
FOLLOWED, RUNS = 1000, 150
EVENTS_READ = "slowjobs_events_read_total"
#: messages that are produced, and that are read, at a time.
PRODUCED, READ = 100_000, 2000
#: of memory and commits.
SAMPLES_A_SECOND = 2
#: seconds; one measurement that takes longer has failed.
DEADLINE_SECONDS = 600
MEGABYTE = 1024 * 1024

Figures = dict[str, float]


class LiftedBridge(system.Service):
    """The bridge of a system, without the cap of its lane."""

    def __init__(self, of: system.System) -> None:
        super().__init__("bridge", ["bridge"], config=of.bridge.config, environment=of.environment)
        program = self._argv.index(str(system.SLOWJOBS))
        self._argv[program : program + 1] = [sys.executable, str(LIFTED)]
        self.state_address = of.bridge.state_address


@contextlib.contextmanager
def running_nsqd(servers: services.Services, sync_every: int) -> Iterator[Nsqd]:
    """Start an nsqd; of a flag that is given twice the last counts."""
    folder = servers.folder / f"nsqd-{time.monotonic_ns()}"
    nsqd = Nsqd(folder, flags=[f"--sync-every={sync_every}", "--msg-timeout=30s"])
    nsqd.start()
    try:
        yield nsqd
    finally:
        nsqd.discard()


@contextlib.contextmanager
def system_on(servers: services.Services, nsqd: Nsqd, *, partitions: int = 6) -> Iterator[system.System]:
    """Set up a system whose bridge publishes to ``nsqd``; nothing of it runs."""
    of = system.System(servers)
    section = of.documents["bridge"]["nsqd"]
    section["hosts"][services.ACTIVE] = {"tcp_address": nsqd.tcp_address, "http_address": nsqd.http_address}
    section["msg_timeout_seconds"] = 30
    of.write()
    servers.kafka.create_topic(of.kafka_topic, partitions=partitions)
    of.run("setup")
    nsqd.create(of.lane, of.pool)
    try:
        yield of
    finally:
        of.discard()


def request(number: int) -> bytes:
    """Return a request of REQUEST_BYTES."""
    without = len(system.request(f"file-{number:09}", path=""))
    return system.request(f"file-{number:09}", path="x" * (REQUEST_BYTES - without))


def produce(servers: services.Services, topic: str, count: int, value: Callable[[int], bytes]) -> None:
    """Fill a topic with the values of 0 to ``count``."""
    for first in range(0, count, PRODUCED):
        servers.kafka.produce(topic, map(value, range(first, min(count, first + PRODUCED))))


# Publishing


def publish(servers: services.Services, nsqd: Nsqd, count: int) -> Figures:
    """Return how many requests a second bridge and bare loop publish."""
    bare = publish_bare(nsqd, count)
    with system_on(servers, nsqd) as of, contextlib.ExitStack() as stack:
        bridge = LiftedBridge(of)
        stack.callback(bridge.discard)
        bridge.start()
        # It works before the clock runs.
        of.send([request(count)])
        _wait_for_messages(nsqd, of.lane, 1, bridge)
        bridge.freeze()
        produce(servers, of.kafka_topic, count, request)
        begin = time.monotonic()
        bridge.thaw()
        _wait_for_messages(nsqd, of.lane, 1 + count, bridge)
        ours = count / (time.monotonic() - begin)
        _delete(nsqd, of.lane)
    return {"bridge": ours, "bare": bare}


def publish_bare(nsqd: Nsqd, count: int) -> float:
    """Return how many requests a second the bare loop publishes."""
    kind = settings.JobKind(type="job", key=("file_id",))
    topic = f"bare-{time.monotonic_ns()}"
    bodies = [
        documents.write_assignment(request(number), documents.Position(topic, 0, number), kind, nsq.MAX_BATCH_BYTES)[1]
        for number in range(count)
    ]
    nsqd.create(topic, "bare")
    with contextlib.closing(Connection(nsqd.tcp_address)) as connection:
        begin = time.monotonic()
        for first in range(0, count, nsq.MAX_BATCH):
            connection.publish(topic, bodies[first : first + nsq.MAX_BATCH])
        seconds = time.monotonic() - begin
    _delete(nsqd, topic)
    return count / seconds


def _wait_for_messages(nsqd: Nsqd, topic: str, count: int, bridge: system.Service) -> None:
    wait_until(
        lambda: _topic(nsqd, topic)["message_count"],
        DEADLINE_SECONDS,
        f"{count} requests on nsqd",
        accept=lambda seen: seen >= count,
        while_true=bridge.trouble,
    )


def _delete(nsqd: Nsqd, topic: str) -> None:
    """Delete a topic once nsqd has copied it to its channel, which it does beside its answers."""
    wait_until(lambda: _topic(nsqd, topic)["depth"] <= 0, DEADLINE_SECONDS, f"{topic} to be copied")
    nsqd.post(f"/topic/delete?topic={topic}")


def _topic(nsqd: Nsqd, name: str) -> dict[str, Any]:
    found = nsqd.topic(name)
    if found is None:
        raise RuntimeError(f"nsqd has no topic {name}")
    return found


# Events


def follow(servers: services.Services, nsqd: Nsqd) -> Figures:
    """Return how many events a second the bridge takes in, and a consumer that does not look at them reads."""
    with system_on(servers, nsqd, partitions=1) as of:
        bridge = of.bridge
        bridge.start()
        produce(servers, of.kafka_topic, FOLLOWED, request)
        _wait_for_messages(nsqd, of.lane, FOLLOWED, bridge)
        before = bridge.metric(EVENTS_READ)
        bridge.freeze()
        count = 2 * FOLLOWED * RUNS
        produce(servers, kafka.EVENTS, count, lambda number: _event(of.kafka_topic, number))
        bare = _read(servers.kafka.address, count)
        begin = time.monotonic()
        bridge.thaw()
        wait_until(
            lambda: bridge.metric(EVENTS_READ) - before,
            DEADLINE_SECONDS,
            f"{count} events to be read",
            accept=lambda read: read >= count,
            while_true=bridge.trouble,
        )
        return {"bridge": count / (time.monotonic() - begin), "bare": bare}


def _event(topic: str, number: int) -> bytes:
    """Return what happens to the followed requests in turn: each is started and put back, again and again."""
    run, of_run = divmod(number, 2 * FOLLOWED)
    offset, is_end = divmod(of_run, 2)
    position = documents.Position(topic, 0, offset)
    event: Literal["started", "requeued"] = "requeued" if is_end else "started"
    until = documents.now(1) if is_end else None
    return documents.Event(event, WORKER, topic, position, run + 1, services.ACTIVE, until).write()


def _read(address: str, count: int) -> float:
    properties = {"bootstrap.servers": address, "group.id": "bench", "enable.auto.commit": False}
    with contextlib.closing(confluent_kafka.Consumer(properties)) as consumer:
        events = confluent_kafka.TopicPartition(kafka.EVENTS, 0)
        _, end = consumer.get_watermark_offsets(events)
        begin = time.monotonic()
        events.offset = end - count
        consumer.assign([events])
        read = 0
        while read < count:
            read += len(consumer.consume(READ, 1))
        return count / (time.monotonic() - begin)


# Backlog


def work_off(servers: services.Services, nsqd: Nsqd, backlog: int, finished: int) -> Figures:
    """Return what the bridge needs while ``finished`` of ``backlog`` requests are finished, and one never is."""
    # One partition: all that is not done is in one commit.
    with system_on(servers, nsqd, partitions=1) as of:
        bridge = of.bridge
        produce(servers, of.kafka_topic, backlog, request)
        bridge.start()
        worker = QuickWorker(servers.kafka.address, nsqd, host=services.ACTIVE, topic=of.lane, channel=of.pool)
        worker.start()
        begin = time.monotonic()
        with (
            Sampler(lambda: tree.rss_bytes(bridge.pid), a_second=SAMPLES_A_SECOND) as memory,
            Sampler(lambda: _commit_bytes(servers.kafka.address, of.kafka_topic), a_second=SAMPLES_A_SECOND) as commits,
        ):
            wait_until(
                lambda: worker.finished,
                DEADLINE_SECONDS,
                f"{finished} requests to be finished",
                accept=lambda seen: seen >= finished,
                while_true=lambda: worker.trouble() or bridge.trouble(),
            )
        seconds = time.monotonic() - begin
        again = bridge.metric("slowjobs_published_again_total")
        tenth = len(memory.samples) // 10
        figures = {
            "requests_per_second": worker.finished / seconds,
            "put_back": worker.put_back,
            "published_again": again,
            "rss_megabytes_after_a_tenth": memory.samples[tenth] / MEGABYTE,
            "rss_megabytes_at_the_end": memory.samples[-1] / MEGABYTE,
            "rss_megabytes_at_most": max(memory.samples) / MEGABYTE,
            "commit_bytes_at_most": max(commits.samples),
            "restart_seconds": _restart(of, nsqd, bridge.stop),
            "restart_seconds_after_a_kill": _restart(of, nsqd, bridge.kill),
        }
        worker.stop()
        return figures


def _commit_bytes(address: str, topic: str) -> int:
    consumer = confluent_kafka.Consumer({"bootstrap.servers": address, "group.id": publishing.GROUP})
    with contextlib.closing(consumer):
        (committed,) = consumer.committed([confluent_kafka.TopicPartition(topic, 0)])
        return len(committed.metadata or "")


def _restart(of: system.System, nsqd: Nsqd, end: Callable[[], object]) -> float:
    """Return the seconds from the end of the bridge to the first request that the next one publishes."""
    end()
    count = _topic(nsqd, of.lane)["message_count"]
    begin = time.monotonic()
    of.bridge.start(ready=False)
    _wait_for_messages(nsqd, of.lane, count + 1, of.bridge)
    return time.monotonic() - begin


def measure(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, list[Figures]]:
    """Return ``what was measured -> one set of figures a round``; the backlog has one round."""
    found: dict[str, list[Figures]] = {}
    with services.running() as servers:
        for round_ in range(arguments.rounds):
            for sync_every, count in SYNC_EVERY.items():
                say(f"round {round_ + 1} of {arguments.rounds}: publishing, --sync-every={sync_every}")
                with running_nsqd(servers, sync_every) as nsqd:
                    found.setdefault(f"published, --sync-every={sync_every}", []).append(publish(servers, nsqd, count))
            say(f"round {round_ + 1} of {arguments.rounds}: events")
            with running_nsqd(servers, RARE_SYNC) as nsqd:
                found.setdefault("events", []).append(follow(servers, nsqd))
        if arguments.backlog:
            say(f"a backlog of {arguments.backlog}")
            with running_nsqd(servers, RARE_SYNC) as nsqd:
                found["backlog"] = [work_off(servers, nsqd, arguments.backlog, arguments.finished)]
    return found


def report(found: dict[str, list[Figures]], console: rich.console.Console) -> None:
    """Print medians and spread."""
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, caption="a second: median, least and most", caption_justify="left"
    )
    for column in ("", "bridge", "bare", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, rounds in found.items():
        if "bare" in rounds[0]:
            ours, bare = ([figures[of] for figures in rounds] for of in ("bridge", "bare"))
            ratios = [figures["bridge"] / figures["bare"] for figures in rounds]
            table.add_row(name, _cell(ours, 0), _cell(bare, 0), _cell(ratios, 2))
    console.print(table)
    for figures in found.get("backlog", []):
        for name, value in figures.items():
            console.print(f"{name.replace('_', ' ')}: {value:.0f}")


def _cell(series: Sequence[float], digits: int) -> str:
    return f"{statistics.median(series):.{digits}f} [dim]({min(series):.{digits}f}-{max(series):.{digits}f})[/dim]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of publishing and events (default: %(default)s)")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="requests, or 0 for none (default: %(default)s)")
    parser.add_argument("--finished", type=int, default=200_000, help="requests of the backlog (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    arguments = parser.parse_args()
    # As after Ctrl-C: what was started is ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console = rich.console.Console(stderr=arguments.json)
    load = os.getloadavg()[0]
    found = measure(arguments, console.print)
    if arguments.json:
        sizes = {name: getattr(arguments, name) for name in ("rounds", "backlog", "finished")}
        json.dump({"v": 1, "load_before": load, **sizes, "found": found}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        report(found, console)


if __name__ == "__main__":
    main()
