"""Run `slowjobs` as it is but for times that are shorter, a step at which it dies, or a bug.

    python -m chaos.launch --die-at before-publish:3 --bug no-touch-while-draining -- bridge --config bridge.toml

All of it is done to named functions from outside, before the command line is called: the program has no hooks.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import os
import signal
from typing import Any

from chaos import bugs
from chaos.names import get, put

#: Shorter times, so that a round takes seconds: "module:name" -> value. Rules stay as they are.
SCALED = {
    "slowjobs.bridge.ledger:CLOCK_SECONDS": 1.0,
    "slowjobs.bridge.ledger:EMPTY_MARGIN_SECONDS": 1.0,
    "slowjobs.bridge.ledger:OVERDUE_MARGIN_SECONDS": 3.0,
    "slowjobs.bridge.ledger:DEFERRED_MARGIN_SECONDS": 1.0,
    "slowjobs.bridge.readings:READING_SECONDS": 0.25,
    "slowjobs.bridge.publishing:_COMMIT_SECONDS": 0.3,
    "slowjobs.bridge.publishing:_STORING_SECONDS": 0.5,
    "slowjobs.nsq:HEARTBEAT_SECONDS": 1.0,
    "slowjobs.nsq:CONNECT_TIMEOUT_SECONDS": 2.0,
    "slowjobs.nsq:ANSWER_TIMEOUT_SECONDS": 3.0,
    "slowjobs.retry:_LONGEST_WAIT_SECONDS": 1.0,
}

#: step -> the function before or behind which the process dies.
STEPS = {
    # the bridge
    "before-commit": ("before", "slowjobs.kafka.consumer:Consumer.commit_now"),
    "before-publish": ("before", "slowjobs.nsq:Publisher.publish"),
    "before-answer": ("after", "slowjobs.nsq:_Stream.flush"),
    "after-publish": ("after", "slowjobs.nsq:Publisher.publish"),
    # the worker
    "before-result": ("before", "slowjobs.worker.answers:Answers._deliver"),
    "before-done": ("before", "slowjobs.worker.events:Events.done"),
    "after-started": ("after", "slowjobs.worker.events:Events.started"),
    "after-result": ("after", "slowjobs.worker.answers:Answers._deliver"),
    "after-done": ("after", "slowjobs.worker.events:Events.done"),
    "after-finish": ("after", "slowjobs.nsq:Subscription.finish"),
}


def die_at(step: str, call: int) -> None:
    """Have this process killed at the ``call``-th time that it comes to ``step``."""
    when, name = STEPS[step]
    function = get(name)
    calls = itertools.count(1)

    def die(at: str) -> None:
        if at == when and next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(function)
    def around(*arguments: Any, **named: Any) -> Any:
        die("before")
        value = function(*arguments, **named)
        die("after")
        return value

    @functools.wraps(function)
    async def around_async(*arguments: Any, **named: Any) -> Any:
        die("before")
        value = await function(*arguments, **named)
        die("after")
        return value

    put(name, around_async if inspect.iscoroutinefunction(function) else around)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos.launch", description=__doc__.splitlines()[0])
    parser.add_argument("--die-at", metavar="STEP:CALL", help=f"steps: {', '.join(STEPS)}")
    parser.add_argument("--bug", choices=bugs.BUGS)
    parser.add_argument("arguments", nargs="+", help="of slowjobs, behind --")
    options = parser.parse_args()
    for name, value in SCALED.items():
        put(name, value)
    if options.die_at:
        step, call = options.die_at.split(":")
        die_at(step, int(call))
    if options.bug:
        bugs.BUGS[options.bug]()

    from slowjobs import cli  # noqa: PLC0415 - after the names have their values

    cli.main(options.arguments)


if __name__ == "__main__":
    main()
