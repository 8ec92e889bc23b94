"""What goes wrong, by name. Each fault is over after a while, and says so to the world by ``heal``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.world import times
from support.world.nsqd import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world.nsqd import Nsqd
    from support.world.worker import Worker
    from support.world.world import Process, World


def bridge_killed(world: World) -> None:
    world.kill_bridge()
    world.heal(world.pause(5), world.start_bridge)


def bridge_frozen(world: World) -> None:
    world.bridge.freeze(world.pause(12))


def nsqd_killed(world: World) -> None:
    _down(world, _host(world), lambda host: host.kill())


def nsqd_restarted(world: World) -> None:
    _down(world, _host(world), lambda host: host.stop())


def nsqd_loses_its_disk(world: World) -> None:
    def lose(host: Nsqd) -> None:
        host.kill()
        host.waiting.clear()

    _down(world, _host(world), lose)


def nsqd_killed_while_it_copies(world: World) -> None:
    """What was on its way from the topic to the channel is lost, or there twice."""

    def tear(host: Nsqd) -> None:
        host.kill()
        if host.waiting:
            torn = host.waiting.pop()
            if world.chance(0.5):
                host.waiting += [Message(torn.position), Message(torn.position)]
                world.over_the_cap += 1
                world.excused.add("O")  # two runs of one request, by nsqd's doing: the end of one is taken for both

    _down(world, _host(world), tear)


def nsqd_tells_too_much(world: World) -> None:
    """After a kill its depth is a guess: too high until the queue is empty."""

    def kill(host: Nsqd) -> None:
        host.kill()
        host.misreported = 1

    _down(world, _host(world), kill)


def nsqd_tells_too_little(world: World) -> None:
    """The same, too low: ledger.md excuses what follows from that, and nothing else."""

    def kill(host: Nsqd) -> None:
        host.kill()
        host.misreported = -1

    world.excused |= {"P2", "P4", "P5", "O"}
    _down(world, _host(world), kill)


def nsqd_unreachable(world: World) -> None:
    host = _host(world)
    host.reachable = False
    world.drop_sendings(host)

    def back() -> None:
        host.reachable = True

    world.heal(world.pause(15), back)


def emptied(world: World) -> None:
    """Somebody empties the channel by nsqd's own means."""
    _host(world).empty()


def foreign(world: World) -> None:
    """Somebody publishes by hand."""
    for _ in range(world.random.randrange(1, 4)):
        _host(world).put(Message(None))


def not_understood(world: World) -> None:
    """Somebody publishes what no worker understands: each puts it back at once, for as long as nsqd allows."""
    message = Message(None)
    world.not_understood.add(message)
    _host(world).put(message)


def worker_killed(world: World) -> None:
    worker = _worker(world)
    worker.kill()
    world.heal(world.pause(8), worker.start)


def worker_frozen(world: World) -> None:
    """Longer than msg-timeout, and not so long that a try passes its limit."""
    seconds = times.MSG_TIMEOUT + world.pause(1)
    _worker(world).freeze(seconds, connected=world.chance(0.5))
    world.heal(seconds, lambda: None)


def connection_lost(world: World) -> None:
    _worker(world).disconnect(world.random.choice(world.hosts))


def answer_lost(world: World) -> None:
    """nsqd gets the next MPUB, or not, or the beginning of it; the bridge gets no answer."""
    world.lose_answers += 1


def commit_failed(world: World) -> None:
    world.fail_commits += 1


def host_taken_out(world: World) -> None:
    """Move to the other host, and take out the old one, which holds requests: workers, then nsqd, then bridge."""
    if world.configured != world.hosts[:1]:
        return
    old = _move(world)

    def take_out() -> None:
        _leave(world, old)
        old.kill()
        world.reconfigure_bridge(world.hosts[1:])

    world.heal(world.pause(12), take_out)


def host_taken_out_of_the_bridge_alone(world: World) -> None:
    """The same in the wrong order: workers still take from the old host."""
    _move(world)
    world.heal(world.pause(12), lambda: world.reconfigure_bridge(world.hosts[1:]))


def lane_emptied(world: World) -> None:
    """A person has the bridge discard all of the lane; when it dies of it asks again, or lets the rest go on."""
    world.start(_empty_lane(world))
    world.heal(20, lambda: None)


def _empty_lane(world: World) -> Process[None]:
    for host in world.hosts:
        host.paused = True
    while any(host.in_flight for host in world.hosts) or not all(worker.idle for worker in world.workers):
        yield 0.5
    asked = None
    while not world.bridge.emptied:
        if world.bridge is not asked:
            if asked and world.chance(0.5):
                break
            asked = world.bridge
            asked.empty_lane()
        yield 0.5
    for host in world.hosts:
        host.paused = False


def _host(world: World) -> Nsqd:
    return world.random.choice(world.configured)


def _worker(world: World) -> Worker:
    return world.random.choice(world.workers)


def _down(world: World, host: Nsqd, end: Callable[[Nsqd], None]) -> None:
    """End an nsqd that is up, for more than a second: it tells its start in whole ones."""
    if host not in world.configured:
        return
    if not host.up:
        world.heal(1, lambda: _down(world, host, end))
        return
    end(host)
    world.heal(
        1.1 + world.pause(world.random.choice((0.5, 5))), lambda: host.start() if host in world.configured else None
    )


def _move(world: World) -> Nsqd:
    old, new = world.hosts
    world.reconfigure_bridge([new, old])
    return old


def _leave(world: World, host: Nsqd) -> None:
    host.consumed = False
    for worker in world.workers:
        worker.disconnect(host)


#: faults that the ledger outlives; ``nsqd_tells_too_little`` with what ledger.md excuses.
FAULTS = {
    fault.__name__: fault
    for fault in (
        bridge_killed,
        bridge_frozen,
        nsqd_killed,
        nsqd_restarted,
        nsqd_loses_its_disk,
        nsqd_killed_while_it_copies,
        nsqd_tells_too_much,
        nsqd_tells_too_little,
        nsqd_unreachable,
        emptied,
        foreign,
        not_understood,
        worker_killed,
        worker_frozen,
        connection_lost,
        answer_lost,
        commit_failed,
        host_taken_out,
        lane_emptied,
    )
}
