"""The worker: takes a pool's requests from NSQ, runs its handler, answers on Kafka and then on NSQ."""

from __future__ import annotations

import asyncio
import functools
import secrets as randomness
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import prometheus_client
import structlog
from aiohttp import web

from slowjobs import documents, kafka, kinds, outcomes, retry, service, settings
from slowjobs.worker import answers, events, feeds, handler, slots
from slowjobs.worker.tasks import Stage, Task

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from slowjobs import nsq

log = structlog.get_logger()

_STARTED = prometheus_client.Counter("slowjobs_started_tasks_total", "Tries that began", ["lane"])
_SECONDS = prometheus_client.Histogram(
    "slowjobs_task_seconds", "Seconds in a slot", ["lane"], buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
)
_SLOTS = prometheus_client.Gauge("slowjobs_slots", "Requests that may run at once")
_RUNNING = prometheus_client.Gauge("slowjobs_running_tasks", "Slots in use")
_HELD = prometheus_client.Gauge("slowjobs_held_tasks", "Requests that wait for a slot")
_PARKED = prometheus_client.Gauge("slowjobs_parked_tasks", "Requests that wait for something that was full")
_OLDEST = prometheus_client.Gauge("slowjobs_oldest_running_seconds", "How long the oldest running task has run")
_TOUCHES = prometheus_client.Counter("slowjobs_touches_total", "Touches sent to nsqd")

#: seconds that nsqd gets to deal with the last answers of a worker that leaves.
_LEAVE_SECONDS = 5.0
#: seconds that Kafka gets for the event of a request that goes back to NSQ; without it the ledger takes longer.
_LAST_WORD_SECONDS = 5.0
#: seconds in which what nsqd sent before a channel was paused has surely come.
_ON_THE_WAY_SECONDS = 0.3
#: seconds; a ``started`` event that is older is sent again when the handler begins: a run's time counts from it.
_ANNOUNCED_SECONDS = 1.0
#: requests that are done and whose FIN may have been lost with the connection: it is sent again if they come again.
_REMEMBERED_ANSWERS = 10_000
#: deliveries beyond ``max_attempts`` that may have ended without a try: by a drain, a pause, a lost connection.
_UNTRIED_DELIVERIES = 3
#: what ``/state`` tells one by one.
_SHOWN = (Stage.RUNNING, Stage.HELD, Stage.PARKED, Stage.ANSWERING, Stage.RETURNING)


class Worker(service.Service):
    """Run one pool's handler, ``slots`` requests at a time, over all lanes of the pool and all serving nsqd hosts.

    Finishes a request on NSQ after its result (or dead letter) is acknowledged by Kafka, at no other moment: a crash
    before that runs the request again and writes its result again under the same key. While a request is here it is
    touched, so nobody else gets it. nsqd or Kafka away: waits and goes on. docs/architecture.md, "The worker".
    """

    def __init__(self, config: settings.WorkerSettings, secrets: settings.Credentials, path: Path) -> None:
        self._path = path
        self._config = config
        self._fingerprint = settings.fingerprint(path)
        self._refused: dict[str, Any] | None = None
        self._name = f"{config.host}/{config.pool.name}/{randomness.token_hex(2)}"
        self._handler = handler.make(config.pool)
        self._slots = slots.Slots(config.pool.slots, _weights(config))
        self._producer = kafka.Producer(config.kafka, secrets, client_id=f"slowjobs-worker-{config.pool.name}")
        self._events = events.Events(self._producer, self._name)
        self._answers = answers.Answers(self._producer, self._events, self._name, config.pool)
        #: nsqd host, lane and NSQ message id -> its task, from its delivery to its answer.
        self._tasks: dict[tuple[str, str, bytes], Task] = {}
        #: the last ones that were finished.
        self._answered: OrderedDict[tuple[str, str, bytes], None] = OrderedDict()
        self._feeds: dict[tuple[str, str], feeds.Feed] = {}
        #: work is taken: after the start, before the drain.
        self._serving = False
        #: the feeds' runs, also of those that are leaving.
        self._feeding: set[asyncio.Task[None]] = set()
        self._group = asyncio.TaskGroup()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        _SLOTS.set_function(lambda: self._slots.count)
        _OLDEST.set_function(self._oldest_running_seconds)
        for gauge, stage in ((_RUNNING, Stage.RUNNING), (_HELD, Stage.HELD), (_PARKED, Stage.PARKED)):
            gauge.set_function(functools.partial(self._count, stage))

    async def prepare(self) -> None:
        """Load the handler. Raises settings.ConfigurationError for one that cannot be."""
        await self._handler.start()

    def stop(self) -> None:
        """End: 1 take nothing new, 2 finish what runs and touch it meanwhile, 3 give the rest back, 4 flush, 5 close.

        A second call ends what runs and gives it back at once.
        """
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()

    def reload(self) -> None:
        """Take the configuration file as it is now, unless it is wrong or needs a restart: then go on as before."""
        fingerprint = ""
        try:
            fingerprint = settings.fingerprint(self._path)
            new = settings.load(self._path, settings.WorkerSettings)
            reasons = self._config.restart_needed_for(new)
        except settings.ConfigurationError as error:
            reasons = str(error).splitlines()
        if reasons:
            log.warning("worker.reload_refused", config=fingerprint[:12], reasons=" | ".join(reasons))
            self._refused = {"config": fingerprint, "reasons": reasons}
            return
        self._refused, self._fingerprint, self._config = None, fingerprint, new
        log.info("worker.reloaded", config=fingerprint[:12])
        if self._serving:
            self._configure()

    async def release(self, lanes: Iterable[str]) -> int:
        """Give back what waits here of ``lanes``, held or parked, or is on its way; return how many requests that were.

        What runs goes on, and is given back instead of parked. Of a lane that is not served here there is nothing.
        """
        wanted = set(lanes)
        released = await self._release_now(wanted)
        await asyncio.sleep(_ON_THE_WAY_SECONDS)
        return released + await self._release_now(wanted)

    async def _release_now(self, lanes: set[str]) -> int:
        for task in self._tasks.values():
            task.released = task.released or task.lane in lanes
        return await self._give_back(task for task in self._waiting() if task.lane in lanes)

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says."""
        return {
            "config": self._fingerprint,
            "refused": self._refused,
            "worker": self._name,
            "pool": self._config.pool.name,
            "lanes": list(self._config.lanes),
            "slots": self._slots.count,
            **{stage.name.lower(): [task.about() for task in self._in_stage(stage)] for stage in _SHOWN},
            "draining": self._stopping.is_set(),
            "nsqd": self._connected_hosts(),
        }

    def routes(self) -> list[web.RouteDef]:
        """Return what the state port serves besides."""
        return [web.post("/release", self._release)]

    async def _release(self, request: web.Request) -> web.Response:
        try:
            body = await request.json() if request.can_read_body else {}
            lanes = body.get("lanes", list(self._config.lanes))
        except (ValueError, AttributeError):
            lanes = None
        if not isinstance(lanes, list) or not all(isinstance(lane, str) for lane in lanes):
            raise web.HTTPBadRequest(text='expected {"lanes": ["NAME", ...]}, or no body for all lanes\n')
        return web.json_response({"v": documents.VERSION, "released": await self.release(lanes)})

    async def run(self) -> None:
        """Work until ``stop``."""
        try:
            async with self._group as group:
                beside = [group.create_task(self._touch()), group.create_task(self._producer.watch())]
                up = group.create_task(self._events.up())
                stopping = group.create_task(self._stopping.wait())
                # The ledger hears of this process before it hears of its requests.
                await asyncio.wait([up, stopping], return_when=asyncio.FIRST_COMPLETED)
                if not self._stopping.is_set():
                    self._serving = True
                    self._configure()
                await stopping
                await self._drain()
                for task in (up, *beside):
                    task.cancel()
        finally:
            await self._handler.close()
            await self._producer.close()

    def _configure(self) -> None:
        """Bring the configuration into force, without touching what runs."""
        config = self._config
        wanted = {
            (lane, host): config.nsqd.hosts[host].tcp_address for lane in config.lanes for host in config.nsqd.serving
        }
        for where, feed in list(self._feeds.items()):
            if wanted.get(where) != feed.address:
                self._leave(feed)
                del self._feeds[where]
        self._slots.configure(config.pool.slots, _weights(config))
        self._handler.configure(config.pool)
        self._answers.configure(config.pool)
        for (lane, host), address in wanted.items():
            if (lane, host) not in self._feeds:
                self._feed(lane, host, address)

    def _feed(self, lane: str, host: str, address: settings.Address) -> None:
        channel = self._config.pool.name
        feed = feeds.Feed(lane, host, address, channel=channel, client_id=self._name, consumer=self)
        self._feeds[lane, host] = feed
        feeding = self._group.create_task(feed.run())
        self._feeding.add(feeding)
        feeding.add_done_callback(self._feeding.discard)

    # Taking: what the feeds tell

    def connected(self, source: slots.Source) -> None:
        """Ask a new connection, too."""
        if self._serving:
            self._slots.connected(source)

    def disconnected(self, source: slots.Source) -> None:
        """Drop what a lost connection brought and has not begun: nsqd gives it to somebody else."""
        for task in self._drop(source):
            # Forgotten at once: if it comes here again, it is another delivery.
            del self._tasks[_delivery(task.source, task.message)]

    def miscounted(self, source: slots.Source) -> None:
        """Take from a new connection; what runs is answered on the old one.

        nsqd counts on as in flight what it has delivered twice at the same time, as it can after a kill, and sends so
        much less on that connection: nothing at all to a single free slot.
        """
        feed = self._feeds.get((source.lane, source.subscription.host))
        if self._serving and feed and feed.source is source:
            log.warning("worker.miscounted", nsqd=feed.host, lane=feed.lane)
            self._leave(feed)
            self._feed(feed.lane, feed.host, feed.address)

    def accept(self, source: slots.Source, message: nsq.Message) -> None:
        """Take a message: a new task, or the same again for one that still runs."""
        source.arrived()
        delivery = _delivery(source, message)
        self._slots.changed()
        if delivery in self._answered:
            source.finish(message)
            return
        known = self._tasks.get(delivery)
        if known:
            # Delivered again while it still runs here: the same run answers, on the new connection.
            before = known.source
            before.forget()
            known.source, known.message = source, message
            log.info("worker.attached", **known.about())
            if before is source:
                self.miscounted(source)
            return
        if source.leaving:
            source.requeue(message, 0)  # it was on its way when that was decided
            return
        try:
            task, refusal = self._read(source, message)
        except documents.UnknownVersionError as error:
            log.warning("worker.unknown_version", nsqd=delivery[0], lane=source.lane, error=str(error))
            source.requeue(message, settings.MAX_DELAY_SECONDS * 1000)  # nobody here can say what it is: it stays
            return
        except documents.TornError as error:
            # nsqd's disk queue made one of two when its disk was full. The ledger misses the request that this was.
            log.warning("worker.torn_message", nsqd=delivery[0], lane=source.lane, error=str(error))
            source.finish(message)
            return
        self._tasks[delivery] = task
        # At once: what has come must not be asked for again.
        turn = self._slots.claim(source.lane)
        task.work = self._group.create_task(self._work(task, turn, refusal))

    def _read(self, source: slots.Source, message: nsq.Message) -> tuple[Task, outcomes.Reject | None]:
        """Return the task, and why it is not to be tried. Raises documents.UnknownVersionError, or TornError."""
        kind = self._config.kind_of(source.lane)
        refusal = None
        try:
            assignment = documents.read_assignment(message.body, kind)
            if message.attempts > self._config.pool.max_attempts + _UNTRIED_DELIVERIES:
                refusal = outcomes.Reject(
                    f"no worker has answered {message.attempts - 1} deliveries", "attempts-exhausted"
                )
        except kinds.RejectedError as error:
            assignment = documents.Assignment(kinds.Request(message.body, {}, "", ""), None)
            refusal = outcomes.Reject(error.error, error.reason)
        return Task(source.lane, self._config.lanes[source.lane].kind, kind, assignment, source, message), refusal

    # Working

    async def _work(self, task: Task, turn: slots.Turn, refusal: outcomes.Reject | None) -> None:
        try:
            if refusal:
                self._slots.release(turn)
            outcome = refusal or await self._try(task, turn)
            # The slot is free for the next one; the acknowledgement goes on beside it.
            task.reach(Stage.ANSWERING)
            if await self._answers.give(task, outcome):
                self._remember(task)
        except asyncio.CancelledError:
            await self._return(task, 0, "stopped before its end")
        except Exception as error:
            log.exception("worker.failed", **task.about())
            delay = retry.delay_seconds(self._config.pool.retry, task.message.attempts)
            await self._return(task, delay, repr(error))
        finally:
            self._forget(task)

    async def _try(self, task: Task, turn: slots.Turn) -> outcomes.Final:
        """Run the handler, and again after each time that what it needs was full."""
        loop = asyncio.get_running_loop()
        while True:
            pool = self._config.pool
            outcome = answers.judge(await self._in_a_slot(task, turn), pool, task.kind)
            if not isinstance(outcome, outcomes.Busy):
                return outcome
            task.parked_at = task.parked_at or loop.time()
            parked = loop.time() - task.parked_at
            if parked >= pool.park_limit_seconds:
                return outcomes.Retry(outcome.delay, f"busy for {parked:.0f} s: {outcome.reason}")
            delay = retry.at_least(pool.retry.base_seconds if outcome.delay is None else outcome.delay)
            await self._park(task, min(delay, pool.park_limit_seconds - parked))
            turn = self._slots.claim(task.lane)

    async def _park(self, task: Task, seconds: float) -> None:
        task.reach(Stage.PARKED)
        if task.released or task.source.leaving or task.source.subscription.closed:
            self._end(task)  # nothing of this lane or connection may wait here any more
        self._slots.park(1)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._slots.park(-1)
        task.reach(Stage.HELD)

    async def _in_a_slot(self, task: Task, turn: slots.Turn) -> outcomes.Outcome:
        try:
            if task.announced_at is None:
                await self._announce(task)  # while it waits for its turn
            self._slots.ready(turn)
            await turn.granted
            fresh_seconds = _ANNOUNCED_SECONDS
            while not self._is_announced(task, fresh_seconds):
                await self._announce(task)
                # Kafka may always take longer than that, but not for as long as a run may outlive its event.
                fresh_seconds = task.source.subscription.msg_timeout_seconds / 3
            if task.stage is Stage.RETURNING:
                await asyncio.Event().wait()  # never: its cancellation is on the way
            task.reach(Stage.RUNNING)
            task.started = task.since
            _STARTED.labels(task.lane).inc()
            with _SECONDS.labels(task.lane).time():
                return await self._handler.process(task.assignment.request)
        finally:
            self._slots.release(turn)

    async def _announce(self, task: Task) -> None:
        told_at = asyncio.get_running_loop().time()
        await self._events.started(task)
        task.announced_at = told_at

    def _is_announced(self, task: Task, fresh_seconds: float) -> bool:
        return asyncio.get_running_loop().time() - (task.announced_at or 0) < fresh_seconds

    def _remember(self, task: Task) -> None:
        self._answered[_delivery(task.source, task.message)] = None
        if len(self._answered) > _REMEMBERED_ANSWERS:
            self._answered.popitem(last=False)

    def _forget(self, task: Task) -> None:
        delivery = _delivery(task.source, task.message)
        if self._tasks.get(delivery) is task:
            del self._tasks[delivery]

    async def _touch(self) -> None:
        """Touch all that is here three times in each msg-timeout, also while draining."""
        while True:
            # Of all that may bring something meanwhile, and of what is here from connections that left.
            sources = [feed.source for feed in self._feeds.values()] + [task.source for task in self._tasks.values()]
            timeouts = [source.subscription.msg_timeout_seconds for source in sources if source]
            await asyncio.sleep(min(timeouts, default=1.0) / 3)
            for task in self._tasks.values():
                if task.stage < Stage.ANSWERED:
                    task.source.subscription.touch(task.message)
                    _TOUCHES.inc()

    # Giving back, and leaving

    def _end(self, task: Task) -> None:
        """End a task's try, if there is one; its work then gives the request back."""
        if task.stage < Stage.RETURNING and task.work:
            task.reach(Stage.RETURNING)
            # After its first step: what is cancelled before that never runs, and could not give anything back.
            asyncio.get_running_loop().call_soon(task.work.cancel)

    async def _return(self, task: Task, delay_seconds: float, reason: str) -> None:
        task.reach(Stage.RETURNING)
        await self._answers.give_back(task, delay_seconds, reason, patience_seconds=_LAST_WORD_SECONDS)

    async def _give_back(self, given: Iterable[Task]) -> int:
        tasks = list(given)
        for task in tasks:
            self._end(task)
        await asyncio.gather(*(task.work for task in tasks if task.work), return_exceptions=True)
        return len(tasks)

    def _drop(self, source: slots.Source) -> list[Task]:
        """Take no more from a connection, and give back what waits of it; return that."""
        self._slots.disconnected(source)
        waiting = [task for task in self._waiting() if task.source is source]
        for task in waiting:
            self._end(task)
        return waiting

    def _leave(self, feed: feeds.Feed) -> None:
        """Take no more from a lane and host; what runs is answered there."""
        if feed.source:
            self._drop(feed.source)
        feed.leave()

    async def _drain(self) -> None:
        self._serving = False
        for feed in self._feeds.values():
            self._leave(feed)
        at_once = asyncio.create_task(self._at_once.wait())
        deadline = time.monotonic() + self._config.pool.drain_seconds
        while self._tasks and not at_once.done() and (left := deadline - time.monotonic()) > 0:
            working = [task.work for task in self._tasks.values() if task.work]
            await asyncio.wait([*working, at_once], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        if unfinished := await self._give_back(self._tasks.values()):
            log.warning("worker.gave_back", requests=unfinished)
        if self._feeding:
            _, late = await asyncio.wait(self._feeding, timeout=_LEAVE_SECONDS)
            for feeding in late:
                feeding.cancel()

    # Looking

    def _count(self, stage: Stage) -> int:
        return len(self._in_stage(stage))

    def _in_stage(self, stage: Stage) -> list[Task]:
        return [task for task in self._tasks.values() if task.stage is stage]

    def _waiting(self) -> list[Task]:
        return [task for task in self._tasks.values() if task.stage in (Stage.HELD, Stage.PARKED)]

    def _oldest_running_seconds(self) -> float:
        running = [task.since for task in self._in_stage(Stage.RUNNING)]
        return (datetime.now(UTC) - datetime.fromisoformat(min(running))).total_seconds() if running else 0.0

    def _connected_hosts(self) -> list[str]:
        lacking = {host for (_, host), feed in self._feeds.items() if feed.source is None}
        return sorted({host for _, host in self._feeds} - lacking)


def _delivery(source: slots.Source, message: nsq.Message) -> tuple[str, str, bytes]:
    # nsqd draws ids for each topic on its own: those of two lanes can be the same.
    return source.subscription.host, source.lane, message.id


def _weights(config: settings.WorkerSettings) -> dict[str, int]:
    return {name: lane.weight for name, lane in config.lanes.items()}
