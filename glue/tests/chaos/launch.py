"""Run `slowjobs` as it is but for times that are shorter, a step at which it dies, or a bug.

    python -m chaos.launch --die-at before-publish:3 --bug no-touch-while-draining -- bridge --config bridge.toml

All is done to named functions from outside, before the command line is called: the program has no hooks for it. A name
that is there no longer ends the start.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import os
import pkgutil
import signal
from typing import TYPE_CHECKING, Any

from chaos import bugs

if TYPE_CHECKING:
    from collections.abc import Callable

#: Shorter times, so that a round takes seconds: "module:name" -> value. Rules stay as they are.
SCALED = {
    "slowjobs.nsq:HEARTBEAT_SECONDS": 1.0,
    "slowjobs.nsq:CONNECT_TIMEOUT_SECONDS": 2.0,
    "slowjobs.nsq:ANSWER_TIMEOUT_SECONDS": 3.0,
    "slowjobs.retry:_LONGEST_WAIT_SECONDS": 1.0,
}

#: step -> the function before or behind which the process dies.
STEPS = {
    # the bridge
    "before-commit": ("before", "slowjobs.kafka.consumer:Consumer.commit"),
    "before-publish": ("before", "slowjobs.nsq:Publisher.publish"),
    "before-answer": ("after", "slowjobs.nsq:_Stream.flush"),
    "after-publish": ("after", "slowjobs.nsq:Publisher.publish"),
    # the worker
    "after-started": ("after", "slowjobs.worker.events:Events.started"),
    "after-result": ("after", "slowjobs.worker.answers:Answers._deliver"),
    "after-done": ("after", "slowjobs.worker.events:Events.done"),
    "after-finish": ("after", "slowjobs.nsq:Subscription.finish"),
}


def die_at(step: str, call: int) -> None:
    """Have this process killed at the ``call``-th time that it comes to ``step``."""
    when, name = STEPS[step]
    calls = itertools.count(1)

    def die() -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    wrap(name, before=die if when == "before" else None, after=die if when == "after" else None)


def wrap(name: str, *, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None) -> None:
    """Have ``before`` and ``after`` called around the function ``name``, "module:Class.method"."""
    wrapped = pkgutil.resolve_name(name)

    @functools.wraps(wrapped)
    async def around_async(*arguments: Any, **named: Any) -> Any:
        if before:
            before()
        value = await wrapped(*arguments, **named)
        if after:
            after()
        return value

    @functools.wraps(wrapped)
    def around(*arguments: Any, **named: Any) -> Any:
        if before:
            before()
        value = wrapped(*arguments, **named)
        if after:
            after()
        return value

    put(name, around_async if inspect.iscoroutinefunction(wrapped) else around)


def put(name: str, value: object) -> None:
    """Put ``value`` in the place of ``name``, "module:name" or "module:Class.name". AttributeError if nothing is there."""
    module, _, path = name.partition(":")
    owner, _, attribute = path.rpartition(".")
    holder = pkgutil.resolve_name(f"{module}:{owner}")
    getattr(holder, attribute)
    setattr(holder, attribute, value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos.launch", description=__doc__.splitlines()[0])
    parser.add_argument("--die-at", metavar="STEP:CALL", help=f"steps: {', '.join(STEPS)}")
    parser.add_argument("--bug", choices=bugs.BUGS)
    parser.add_argument("arguments", nargs="+", help="of slowjobs, behind --")
    options = parser.parse_args()
    for name, value in SCALED.items():
        put(name, value)
    if options.bug:
        bugs.BUGS[options.bug]()
    if options.die_at:
        step, call = options.die_at.split(":")
        die_at(step, int(call))

    from slowjobs import cli  # noqa: PLC0415 - after the names have their values

    cli.main(options.arguments)


if __name__ == "__main__":
    main()
