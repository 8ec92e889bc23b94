"""A worker: takes, tells the ledger, runs, answers (docs/architecture.md, "The worker")."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from slowjobs import documents
from support.world import times

if TYPE_CHECKING:
    from support.world.nsqd import Message, Nsqd
    from support.world.world import Process, World


@dataclass(eq=False)
class Connection:
    """From a worker process to an nsqd. What was delivered on a closed one can be answered no more."""

    closed: bool = False


@dataclass(eq=False)
class _Task:
    """A request in a worker. ``dropped``: its connection was lost before it began, so it never begins."""

    message: Message
    host: Nsqd
    connection: Connection
    running: bool = False
    dropped: bool = False


class Worker:
    """One place for a worker process. An event is on Kafka before its teller goes on."""

    def __init__(self, world: World, place: str) -> None:
        self._world = world
        self._place = place
        self._slots = world.random.choice((1, 1, 2))
        self._clock_is_ahead = world.pause(world.clocks_ahead)
        self._instances = itertools.count(1)
        self._frozen_until = 0.0
        self.start()

    def start(self) -> None:
        self.name = f"{self._place}/{next(self._instances)}"
        self._tasks: dict[Message, _Task] = {}
        self._connections: dict[Nsqd, Connection] = {}
        self._tell("up")
        self._processes = [self._world.start(self._serve()) for _ in range(self._slots)]

    def kill(self) -> None:
        """Kill -9. ``start`` brings another process to its place."""
        for process in self._processes:
            process.close()
        self._tasks.clear()
        for host in list(self._connections):
            self.disconnect(host)

    def freeze(self, seconds: float, *, connected: bool) -> None:
        """Stop it for a while; nsqd closes the connections, or only gives its messages to others."""
        self._frozen_until = self._world.now + seconds
        for host, connection in list(self._connections.items()):
            if connected:
                host.forsake(connection)
            else:
                self.disconnect(host)

    def disconnect(self, host: Nsqd) -> None:
        """Lose a connection: what came on it and has not begun is dropped, what runs goes on."""
        connection = self._connections.pop(host, None)
        if connection is None:
            return
        connection.closed = True
        host.forsake(connection)
        for task in [task for task in self._tasks.values() if task.connection is connection and not task.running]:
            task.dropped = True
            del self._tasks[task.message]
            self._tell("abandoned", task)

    @property
    def idle(self) -> bool:
        """Tell whether it has nothing to do, as a person can ask it."""
        return not self._tasks

    def runs(self, position: documents.Position) -> bool:
        return any(task.running and task.message.position == position for task in self._tasks.values())

    def _wait(self, seconds: float) -> Process:
        yield seconds
        while self._frozen_until > self._world.now:
            yield self._frozen_until - self._world.now

    def _step(self) -> Process:
        yield from self._wait(self._world.pause(times.STEP))

    def _serve(self) -> Process:
        while True:
            yield from self._wait(self._world.pause(0.8))
            task = self._receive()
            if task:
                yield from self._work(task)
                if self._tasks.get(task.message) is task:
                    del self._tasks[task.message]

    def _receive(self) -> _Task | None:
        for host in self._world.hosts:
            if not (host.up and host.consumed):
                continue
            connection = self._connections.setdefault(host, Connection())
            message = host.deliver(connection)
            if message is None:
                continue
            if message in self._world.not_understood:
                host.requeue(message, connection, times.LONGEST_DELAY)
                return None
            if message in self._tasks:  # it runs here since before, and is answered on the new connection
                self._tasks[message].connection = connection
                return None
            self._tasks[message] = task = _Task(message, host, connection)
            return task
        return None

    def _work(self, task: _Task) -> Process:
        # The ledger's one known gap: what is in flight and has not been told of can look lost when nsqd is killed, the
        # worker too in just this moment, and others run on what nsqd has forgotten. It is a matter of milliseconds.
        if not self._world.still:
            yield from self._wait(self._world.pause(0.01))
        if task.dropped:
            return
        told = self._world.now
        self._tell("started", task)
        yield from self._step()
        if self._world.chance(0.1):  # it waits for a slot, or is parked
            yield from self._wait(self._world.pause(4))
        if not task.dropped and self._world.now > told + 1:
            self._tell("started", task)
            yield from self._step()
        if task.dropped:
            return
        task.running = True
        yield from self._wait(self._world.duration())
        if self._world.puts_back():
            yield from self._put_back(task)
            return
        yield from self._step()
        self._world.note(self.name, "has written the result of", task.message.position)
        yield from self._step()
        task.running = False
        self._tell("done", task, outcome="result")
        yield from self._step()
        task.host.finish(task.message, task.connection)
        self._world.note(self.name, "has finished", task.message.position)

    def _put_back(self, task: _Task) -> Process:
        task.running = False
        if task.connection.closed:
            self._tell("abandoned", task)
            return
        delay = self._world.pause(times.LONGEST_DELAY)
        self._tell("requeued", task, until=self._time(delay))
        yield from self._step()
        task.host.requeue(task.message, task.connection, delay)

    def _tell(
        self,
        event: Literal["up", "started", "requeued", "abandoned", "done"],
        task: _Task | None = None,
        *,
        until: str | None = None,
        outcome: Literal["result"] | None = None,
    ) -> None:
        if task is None:
            self._world.tell(documents.Event(event, self.name, at=self._time()))
        elif task.message.position:
            self._world.tell(
                documents.Event(
                    event,
                    self.name,
                    position=task.message.position,
                    nsqd=task.host.name,
                    until=until,
                    outcome=outcome,
                    at=self._time(),
                )
            )

    def _time(self, plus_seconds: float = 0) -> str:
        moment = datetime.fromtimestamp(self._world.now + self._clock_is_ahead + plus_seconds, UTC)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
