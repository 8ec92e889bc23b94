#!/usr/bin/env python3
"""Compare slowjobs with Celery and RQ by what a task that does nothing costs, and a slot that is idle.

In each round each system in turn starts its workers, works on a few tasks in every slot, stands still while tasks are
enqueued, and is let go: the clock runs from there to the last result. CPU time is that of the same tasks from their
enqueueing to the last acknowledgement, without the client that enqueues. Memory is measured in workers that have
worked and are idle, with more slots. Ratios mean something, on any machine; the figures themselves only on this one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import rich.box
import rich.console
import rich.progress
import rich.table
import tree
from system import SETTLE_SECONDS, System
from systems.celery import Celery
from systems.rq import Rq, RqPool
from systems.slowjobs import Slowjobs

if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEMS = (Slowjobs, Celery, Rq, RqPool)
MEGABYTE = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Figure:
    """Something that is measured, and how it is shown."""

    name: str
    label: str
    digits: int


FIGURES = (
    Figure("requests_per_second", "requests\na second", 0),
    Figure("worker_cpu_milliseconds", "CPU ms a request,\nworkers", 2),
    Figure("cpu_milliseconds", "CPU ms a request,\nservers, too", 2),
    Figure("idle_slot_megabytes", "MB (PSS)\nan idle slot", 1),
)


def speed(system: System, slots: int, tasks: int) -> dict[str, float]:
    """Return what ``tasks`` tasks cost on ``slots`` slots."""
    system.start(slots)
    try:
        before = system.warm_up(slots)
        system.freeze()
        workers, all_ = tree.cpu_seconds(system.worker_pids), tree.cpu_seconds(system.pids)
        system.enqueue(tasks, 0)
        time.sleep(SETTLE_SECONDS)
        begin = time.monotonic()
        system.thaw()
        system.complete(before + tasks)
        seconds = time.monotonic() - begin
        time.sleep(SETTLE_SECONDS)
        return {
            "requests_per_second": tasks / seconds,
            "worker_cpu_milliseconds": (tree.cpu_seconds(system.worker_pids) - workers) * 1000 / tasks,
            "cpu_milliseconds": (tree.cpu_seconds(system.pids) - all_) * 1000 / tasks,
        }
    finally:
        system.stop()


def memory(system: System, slots: int) -> dict[str, float]:
    """Return what a slot takes that has worked and is idle, the workers' common parts divided by ``slots``."""
    system.start(slots)
    try:
        system.warm_up(slots)
        return {"idle_slot_megabytes": tree.pss_bytes(system.worker_pids) / slots / MEGABYTE}
    finally:
        system.stop()


def measure(arguments: argparse.Namespace, console: rich.console.Console) -> dict[str, dict[str, list[float]]]:
    """Return ``system -> figure -> one value a round``. The systems take turns, so that a slow minute hits all."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slowjobs-bench-")))
        progress = stack.enter_context(rich.progress.Progress(console=console, disable=not console.is_terminal))
        bar = progress.add_task("servers", total=(arguments.rounds + 1) * len(SYSTEMS))

        def step(text: str) -> None:
            progress.update(bar, description=text)
            if not console.is_terminal:
                console.print(text)

        systems = []
        for number, make in enumerate(SYSTEMS):
            systems.append(make(folder / str(number)))
            stack.callback(systems[-1].close)
        found: dict[str, dict[str, list[float]]] = {system.name: {} for system in systems}

        def note(system: System, look: Callable[..., dict[str, float]], *sizes: int) -> None:
            for figure, value in look(system, *sizes).items():
                found[system.name].setdefault(figure, []).append(value)
            progress.advance(bar)

        for round_ in range(arguments.rounds):
            for system in systems:
                step(f"round {round_ + 1} of {arguments.rounds}: {system.name}")
                note(system, speed, arguments.slots, int(arguments.tasks * system.share))
        for system in systems:
            step(f"{arguments.idle_slots} idle slots: {system.name}")
            note(system, memory, arguments.idle_slots)
        return found


def report(found: dict[str, dict[str, list[float]]], console: rich.console.Console) -> None:
    """Print medians and spread, and each median as a multiple of slowjobs'."""
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, caption="median, as a multiple of slowjobs', least and most", caption_justify="left"
    )
    table.add_column()
    for figure in FIGURES:
        table.add_column(figure.label, justify="right")
    first = next(iter(found.values()))
    for system, series in found.items():
        table.add_row(system, *(_cell(series[figure.name], first[figure.name], figure.digits) for figure in FIGURES))
    console.print(table)


def _cell(series: list[float], unit: list[float], digits: int) -> str:
    median = statistics.median(series)
    ratio = f"x {median / statistics.median(unit):.2g}"
    return f"{median:.{digits}f}  {ratio}\n[dim]({min(series):.{digits}f}-{max(series):.{digits}f})[/dim]"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each works (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=5000, help="a round; RQ gets a tenth (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=10, help="tasks at once (default: %(default)s)")
    parser.add_argument("--idle-slots", type=int, default=40, help="for memory (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    arguments = parser.parse_args()
    # As after Ctrl-C: what was started is ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console = rich.console.Console(stderr=arguments.json)
    load = os.getloadavg()[0]
    found = measure(arguments, console)
    if arguments.json:
        sizes = {name: getattr(arguments, name) for name in ("rounds", "tasks", "slots", "idle_slots")}
        json.dump({"v": 1, "load_before": load, **sizes, "systems": found}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        report(found, console)


if __name__ == "__main__":
    main()
