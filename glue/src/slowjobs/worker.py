"""The worker: takes a pool's requests from NSQ, runs its handler, answers on Kafka."""

from __future__ import annotations

import asyncio
import enum
import secrets as randomness
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import prometheus_client
import structlog

from slowjobs import command, documents, kafka, kinds, nsq, outcomes, retry

if TYPE_CHECKING:
    from slowjobs import settings

log = structlog.get_logger()

_FINISHED = prometheus_client.Counter("slowjobs_finished_tasks_total", "Tries that ended", ["lane", "outcome"])
_SECONDS = prometheus_client.Histogram(
    "slowjobs_task_seconds", "Seconds in a slot", ["lane"], buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
)
_RUNNING = prometheus_client.Gauge("slowjobs_running_tasks", "Slots in use")

#: seconds that nsqd gets to deal with the last answers of a worker that leaves.
_LEAVE_SECONDS = 5.0


class _Stage(enum.IntEnum):
    """How far a delivered request has come. One that is ANSWERED is nsqd's no more; the others are in flight."""

    HELD = enum.auto()
    RUNNING = enum.auto()
    ANSWERING = enum.auto()
    ANSWERED = enum.auto()


@dataclass
class _Task:
    """A delivered request, from its delivery to its answer."""

    lane: str
    assignment: documents.Assignment
    #: the newest delivery: what is answered and touched.
    subscription: nsq.Subscription
    message: nsq.Message
    stage: _Stage = _Stage.HELD
    started: str | None = None
    work: asyncio.Task[None] | None = field(default=None, repr=False)

    def about(self) -> dict[str, Any]:
        """Return what ``/state`` and the log say of it."""
        position = self.assignment.position
        return {
            "lane": self.lane,
            "position": position.as_json() if position else None,
            "key": self.assignment.request.key,
            "attempt": self.message.attempts,
            "nsqd": self.subscription.host,
            "since": self.started,
        }


class Worker:
    """Run one pool's handler, ``slots`` requests at a time.

    Finishes a request on NSQ after its result (or dead letter) is acknowledged by Kafka, at no other moment: a crash
    before that runs the request again and writes its result again under the same key. While a request is here it is
    touched, so nobody else gets it. nsqd or Kafka away: waits and goes on. docs/architecture.md, "The worker".
    """

    def __init__(self, config: settings.WorkerSettings, secrets: settings.Credentials) -> None:
        self._config = config
        self._pool = config.pool
        self._secrets = secrets
        self._handler = command.CommandHandler(config.pool)
        self._name = f"{config.host}/{config.pool.name}/{randomness.token_hex(2)}"
        self._slots = asyncio.Semaphore(config.pool.slots)
        self._subscriptions: list[nsq.Subscription] = []
        #: NSQ message id -> its task, from its delivery to its answer.
        self._tasks: dict[bytes, _Task] = {}
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()

    def stop(self) -> None:
        """End: 1 take nothing new, 2 finish what runs and touch it meanwhile, 3 give the rest back, 4 flush, 5 close.

        A second call ends what runs and gives it back at once.
        """
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()

    def state(self) -> dict[str, Any]:
        """Return what ``/state`` says."""
        running = [task for task in self._tasks.values() if task.stage is _Stage.RUNNING]
        return {
            "worker": self._name,
            "pool": self._pool.name,
            "lanes": list(self._config.lanes),
            "slots": self._pool.slots,
            "running": [task.about() for task in running],
            "held": sum(task.stage is _Stage.HELD for task in self._tasks.values()),
            "parked": 0,
            "draining": self._stopping.is_set(),
            "nsqd": [subscription.host for subscription in self._subscriptions],
        }

    async def run(self) -> None:
        """Work until ``stop``."""
        producer = kafka.Producer(self._config.kafka, self._secrets, client_id=f"slowjobs-worker-{self._pool.name}")
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = [
                    tasks.create_task(self._serve(lane, host, producer))
                    for lane in self._config.lanes
                    for host in self._config.nsqd.serving
                ]
                beside = [tasks.create_task(self._touch()), tasks.create_task(producer.watch())]
                await self._stopping.wait()
                await self._drain()
                for subscription in self._subscriptions:
                    subscription.leave()
                await asyncio.wait(serving, timeout=_LEAVE_SECONDS)
                for task in (*serving, *beside):
                    task.cancel()
        finally:
            await producer.close()
            for subscription in self._subscriptions:
                subscription.close()

    # Taking

    async def _serve(self, lane: str, host: str, producer: kafka.Producer) -> None:
        """Consume a lane from one nsqd; after a lost connection open a new one."""
        address = self._config.nsqd.hosts[host].tcp_address
        while not self._stopping.is_set():
            async for attempt in retry.while_away(f"nsqd {host}", *nsq.ERRORS):
                with attempt:
                    subscription = await nsq.Subscription.open(
                        address, host=host, topic=lane, channel=self._pool.name, client_id=self._name
                    )
            log.info("worker.connected", nsqd=host, lane=lane)
            self._subscriptions.append(subscription)
            try:
                self._ask()
                while message := await subscription.receive():
                    self._accept(lane, subscription, message, producer)
            except nsq.ERRORS as error:
                log.warning("worker.disconnected", nsqd=host, lane=lane, error=repr(error))
            finally:
                self._leave(subscription)
            await asyncio.sleep(retry.FIRST_WAIT_SECONDS)  # one that is refused at once is not tried without end

    def _leave(self, subscription: nsq.Subscription) -> None:
        """Forget a connection. What it brought and has not begun is dropped: nsqd gives it to somebody else."""
        if self._stopping.is_set():
            return  # run() closes it, after the last answers have arrived
        subscription.close()
        self._subscriptions.remove(subscription)
        for task in list(self._tasks.values()):
            if task.subscription is subscription and task.stage is _Stage.HELD and task.work:
                task.work.cancel()

    def _ask(self) -> None:
        """Allow each connection what it has in flight and as many more as there are free slots.

        Called before an answer leaves: nsqd would send another in its place. With Kafka away answers pile up; then
        no more than twice the slots are in flight.
        """
        tasks = self._tasks.values()
        free = self._pool.slots - sum(task.stage in (_Stage.HELD, _Stage.RUNNING) for task in tasks)
        for subscription in self._subscriptions:
            here = sum(task.subscription is subscription and task.stage < _Stage.ANSWERED for task in tasks)
            allowed = min(here + max(0, free), 2 * self._pool.slots)
            subscription.ready(0 if self._stopping.is_set() else allowed)

    def _accept(
        self, lane: str, subscription: nsq.Subscription, message: nsq.Message, producer: kafka.Producer
    ) -> None:
        if self._stopping.is_set():
            subscription.requeue(message, 0)
            return
        known = self._tasks.get(message.id)
        if known:
            # Delivered again while it still runs here: the same run answers, on the new connection.
            known.subscription, known.message = subscription, message
            log.info("worker.attached", **known.about())
            return
        kind = self._config.kinds[self._config.lanes[lane].kind]
        outcome: outcomes.Outcome | None
        try:
            assignment = documents.read_assignment(message.body, kind.key)
            outcome = self._attempts_left(message)
        except kinds.RejectedError as error:
            assignment = documents.Assignment(kinds.Request(message.body, {}, ""), None)
            outcome = outcomes.Reject(error.reason, error.error)
        except documents.UnknownVersionError as error:
            assignment = documents.Assignment(kinds.Request(message.body, {}, ""), None)
            outcome = outcomes.Retry(str(error))
        task = _Task(lane, assignment, subscription, message)
        self._tasks[message.id] = task
        task.work = asyncio.create_task(self._work(task, outcome, producer))
        task.work.add_done_callback(lambda work: self._ended(task, work))
        self._ask()

    def _attempts_left(self, message: nsq.Message) -> outcomes.Reject | None:
        """Return the end of a request that was delivered too often without an answer: it may kill its worker."""
        if message.attempts <= self._pool.max_attempts:
            return None
        return outcomes.Reject("attempts-exhausted", "its worker went away each time before it answered")

    # Working

    async def _work(self, task: _Task, outcome: outcomes.Outcome | None, producer: kafka.Producer) -> None:
        if outcome is None:
            async with self._slots:
                outcome = await self._run(task)
        # The slot is free for the next one; the acknowledgement goes on beside it.
        self._reach(task, _Stage.ANSWERING)
        await self._answer(task, outcome, producer)

    def _ended(self, task: _Task, work: asyncio.Task[None]) -> None:
        """Forget a task. One that was cancelled, also before its first step, or that failed here is given back."""
        del self._tasks[task.message.id]
        if work.cancelled():
            # In a drain this gives it back. Dropped with its connection: that is closed, so this sends nothing.
            task.subscription.requeue(task.message, 0)
        elif error := work.exception():
            log.error("worker.failed", **task.about(), exc_info=error)
            delay = retry.delay_milliseconds(self._pool.retry, task.message.attempts)
            task.subscription.requeue(task.message, delay)
        self._ask()

    def _reach(self, task: _Task, stage: _Stage) -> None:
        task.stage = stage
        self._ask()

    async def _run(self, task: _Task) -> outcomes.Outcome:
        task.stage, task.started = _Stage.RUNNING, documents.now()
        with _RUNNING.track_inprogress(), _SECONDS.labels(task.lane).time():
            return await self._handler.process(task.assignment.request)

    async def _answer(self, task: _Task, outcome: outcomes.Outcome, producer: kafka.Producer) -> None:
        if isinstance(outcome, outcomes.Result):
            outcome = await self._deliver(task, outcome, producer)
        if isinstance(outcome, outcomes.Retry) and task.message.attempts >= self._pool.max_attempts:
            outcome = outcomes.Reject("attempts-exhausted", outcome.error)
        if isinstance(outcome, outcomes.Reject):
            log.warning("worker.dead_letter", **task.about(), reason=outcome.reason, error=outcome.error)
            await producer.send_dead_letter(self._dead_letter(task, outcome.reason, outcome.error))
        self._reach(task, _Stage.ANSWERED)
        if isinstance(outcome, outcomes.Retry):
            delay = retry.delay_milliseconds(self._pool.retry, task.message.attempts)
            log.warning("worker.retry", **task.about(), delay_seconds=delay / 1000, error=outcome.error)
            task.subscription.requeue(task.message, delay)
        else:
            task.subscription.finish(task.message)
        _FINISHED.labels(task.lane, type(outcome).__name__.lower()).inc()

    async def _deliver(self, task: _Task, result: outcomes.Result, producer: kafka.Producer) -> outcomes.Outcome:
        """Return ``result`` once Kafka has it, or what becomes of one that Kafka does not take."""
        request, position = task.assignment.request, task.assignment.position
        document = documents.write_result(
            result.raw,
            {
                "kind": self._config.lanes[task.lane].kind,
                "lane": task.lane,
                "key": request.key,
                "position": position.as_json() if position else None,
                "attempt": task.message.attempts,
                "worker": self._name,
                "started": task.started,
                "finished": documents.now(),
            },
        )
        if len(document) > kafka.MAX_BODY_BYTES:
            return outcomes.Reject("result-too-large", f"{len(document)} bytes, at most {kafka.MAX_BODY_BYTES}")
        try:
            await producer.send(self._pool.result_topic, document, key=request.key.encode())
        except kafka.DeliveryError as error:
            if error.too_large:
                return outcomes.Reject("result-too-large", str(error))
            return outcomes.Retry(f"Kafka does not take the result: {error}")
        return result

    def _dead_letter(self, task: _Task, reason: str, error: str) -> documents.DeadLetter:
        request, position = task.assignment.request, task.assignment.position
        return documents.DeadLetter(
            task.lane, reason, error, "worker", request.raw, position, request.key or None, task.message.attempts
        )

    async def _touch(self) -> None:
        """Touch all that is here three times in each msg-timeout, also while draining."""
        while True:
            timeouts = [subscription.msg_timeout_seconds for subscription in self._subscriptions]
            await asyncio.sleep(min(timeouts, default=1.0) / 3)
            for task in self._tasks.values():
                if task.stage < _Stage.ANSWERED:
                    task.subscription.touch(task.message)

    # Leaving

    async def _drain(self) -> None:
        self._ask()
        for task in list(self._tasks.values()):
            if task.stage is _Stage.HELD and task.work:
                task.work.cancel()
        at_once = asyncio.create_task(self._at_once.wait())
        deadline = time.monotonic() + self._pool.drain_seconds
        while self._tasks and not at_once.done() and (left := deadline - time.monotonic()) > 0:
            running = [task.work for task in self._tasks.values() if task.work]
            await asyncio.wait([*running, at_once], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        unfinished = [task.work for task in self._tasks.values() if task.work]
        for work in unfinished:
            work.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        if unfinished:
            log.warning("worker.gave_back", requests=len(unfinished))
