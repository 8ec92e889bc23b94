"""``slowjobs wait-idle``: whether anything of some lanes runs, asked of every nsqd host and every worker.

Neither knows alone: nsqd's in flight is 0 while a worker still runs what nsqd has given up, and holds for a while what
a dead worker had. And a message on its way can be in neither, hence several readings.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slowjobs import errors, nsq
from slowjobs.operations import lanes, state_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import aiohttp

    from slowjobs import settings

#: idle readings in a row that it takes, and the seconds between two.
READINGS = 3
READING_SECONDS = 2.0
#: what a worker tells one by one; nsqd counts all of it as in flight.
_STAGES = ("running", "held", "parked", "answering", "returning")


@dataclass(frozen=True)
class InFlight:
    """Requests of a lane that an nsqd host has delivered and nobody has answered.

    ``clients``: connections to the channel. ``unclaimed``: how many no worker that is known has, as far as those say; a
    dead one had them, and nsqd gives them to others within msg-timeout.
    """

    host: str
    lane: str
    requests: int
    clients: int
    unclaimed: int


@dataclass(frozen=True)
class Task:
    """A request that a worker has; ``said`` is what its state port says of it."""

    worker: settings.Service
    stage: str
    said: dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """What still runs. ``unknown``: who could not say, which is not idle either."""

    in_flight: list[InFlight]
    tasks: list[Task]
    unknown: list[str]
    #: lanes that are not paused somewhere: more can begin at any moment.
    unpaused: list[str]
    #: ``(host, lane) -> start and timeouts``: while these change, that nothing is in flight proves nothing.
    counters: dict[tuple[str, str], tuple[int, int]] = field(repr=False)

    @property
    def idle(self) -> bool:
        """Whether nothing runs."""
        return not (self.in_flight or self.tasks or self.unknown)

    def __str__(self) -> str:
        in_flight = sum(each.requests for each in self.in_flight)
        return f"in flight {in_flight}, {len(self.tasks)} in workers, {len(self.unknown)} do not answer"


@dataclass(frozen=True)
class Outcome:
    """The last reading, and how many in a row were idle up to it."""

    last: Reading
    readings: int

    @property
    def idle(self) -> bool:
        """Whether the gate is open."""
        return self.readings == READINGS


async def wait(
    config: settings.CliSettings,
    names: Sequence[str] | None,
    *,
    paused: bool = False,
    timeout_seconds: float,
    progress: Callable[[Outcome], None],
) -> Outcome:
    """Return when nothing of the lanes ``names`` (as ``read`` takes them) has run in READINGS readings, or time is up.

    Once a reading finds nothing there is time for those that confirm it. ``paused``: only readings count in which all
    these lanes are paused. ``progress`` hears of each reading.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    outcome = None
    while True:
        reading = await read(config, names)
        before = outcome.readings if outcome and reading.counters == outcome.last.counters else 0
        outcome = Outcome(reading, before + 1 if reading.idle and not (paused and reading.unpaused) else 0)
        progress(outcome)
        if outcome.idle or (not outcome.readings and loop.time() + READING_SECONDS > deadline):
            return outcome
        await asyncio.sleep(READING_SECONDS)


async def read(config: settings.CliSettings, names: Sequence[str] | None) -> Reading:
    """Ask every nsqd host, and every worker of the lanes ``names``, once.

    None: of all lanes, those as well that are configured no more and of which something still runs.
    """
    unknown: list[str] = []
    pools = {config.lanes[name].pool for name in (config.lanes if names is None else names)}
    async with nsq.session() as session:
        hosts = {f"nsqd {host}": _lanes(session, config, host, names) for host in config.nsqd.hosts}
        workers = {f"{s.name} on {s.host}": _tasks(session, s, names) for s in config.services if s.pool in pools}
        on_hosts, in_workers = await asyncio.gather(errors.try_all(hosts, unknown), errors.try_all(workers, unknown))
    found = [lane for on_host in on_hosts for lane in on_host]
    own = [lane for lane in found if not lane.left]
    tasks = [task for in_worker in in_workers for task in in_worker]
    return Reading(
        in_flight=[_in_flight(lane, tasks, unknown) for lane in found if lane.channel.in_flight],
        tasks=tasks,
        unknown=unknown,
        unpaused=sorted({lane.name for lane in own if lane.host in config.nsqd.serving and not lane.channel.paused}),
        counters={(lane.host, lane.name): (lane.start_time, lane.channel.timeouts) for lane in own},
    )


async def _lanes(
    session: aiohttp.ClientSession, config: settings.CliSettings, host: str, names: Sequence[str] | None
) -> list[lanes.Lane]:
    try:
        async with asyncio.timeout(lanes.ANSWER_SECONDS):
            if names is not None:
                return await lanes.read(session, config, host, names)
            return [
                *await lanes.read(session, config, host, config.lanes),
                *await lanes.read_left(session, config, host),
            ]
    except nsq.ERRORS:
        if host in config.nsqd.serving:
            raise
        return []  # a spare one is stopped until it is needed


async def _tasks(session: aiohttp.ClientSession, worker: settings.Service, names: Sequence[str] | None) -> list[Task]:
    try:
        said = await state_port.read(session, worker)
    except state_port.StoppedError:
        return []
    tasks = [Task(worker, stage, task) for stage in _STAGES for task in said[stage]]
    return [task for task in tasks if names is None or task.said["lane"] in names]


def _in_flight(lane: lanes.Lane, tasks: Sequence[Task], unknown: Sequence[str]) -> InFlight:
    requests, clients = lane.channel.in_flight, lane.channel.clients
    claimed = sum((task.said["lane"], task.said["nsqd"]) == (lane.name, lane.host) for task in tasks)
    # A worker that does not answer, and is connected, may have the rest.
    unclaimed = max(0, requests - claimed) if clients == 0 or not unknown else 0
    return InFlight(lane.host, lane.name, requests, clients, unclaimed)
