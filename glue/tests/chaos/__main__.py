"""Play rounds of requests and faults against a real slowjobs, and keep an account of what becomes of each request.

Local processes run it, at shorter times than it usually has. With HOSTS=1 (--hosts) it is what site.yml deploys on six
hosts with systemd, containers that are made for this and taken away at the end: as slow as it really is, and what needs
processes of the harness's own (a death at a step, connections that break, a full disk, a second bridge, seeded bugs) is
not there, but hosts are cut off from the network.

examples:
  make chaos                                         20 rounds of each fault, and 40 with two that the seed draws
  make chaos SEED=7 ROUNDS=30 FAULTS=nsqd-killed     30 rounds, of the seeds 7 to 36
  make chaos FAULTS=pair,nsqd-killed+worker-frozen   two at the same time: drawn, and these
  make chaos HOSTS=1 ROUNDS=25                       on hosts
  python -m chaos --rounds 5 --faults bridge-killed-at-a-step --bug metadata-after-publishing    is it noticed?
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import queue
import signal
import sys
from collections import defaultdict
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING

from chaos import theatre
from chaos.account import Figures
from chaos.bugs import BUGS
from chaos.faults import FAULTS, PAIR, names, pair
from chaos.on_hosts import Hosts
from chaos.on_processes import Processes
from chaos.rounds import REQUESTS, Round

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chaos.arena import Arena

#: of local processes, side by side: most of a round is waiting.
SYSTEMS = 2


def plan(seed: int, count: int, faults: Sequence[str], requests: int, arena: type[Arena]) -> Iterator[Round]:
    """Yield the rounds: ``faults`` in turn, each round with a seed of its own."""
    for number, chosen in zip(range(count), itertools.cycle(faults)):
        own = seed + number
        names = pair(Random(own), arena) if chosen == PAIR else tuple(chosen.split("+"))
        yield Round(own, names, requests)


def play(rounds: Sequence[Round], systems: int, arena: type[Arena], bug: str | None) -> Iterator[Round]:
    """Yield the rounds as they end, played on several systems side by side."""
    context = multiprocessing.get_context("spawn")
    tasks, played = context.Queue(), context.Queue()
    for task in (*rounds, *[None] * systems):
        tasks.put(task)
    theatres = [context.Process(target=theatre.run, args=(tasks, played, arena, bug)) for _ in range(systems)]
    for process in theatres:
        process.start()
    try:
        for _ in rounds:
            yield _next(played, theatres)
    except BaseException:
        tasks.cancel_join_thread()  # nobody reads the rest of them
        for process in theatres:
            process.terminate()
        raise
    finally:
        for process in theatres:
            process.join()


def _next(played: multiprocessing.Queue[Round], theatres: Sequence[multiprocessing.Process]) -> Round:
    while True:
        try:
            return played.get(timeout=1)
        except queue.Empty:
            broken = [process.exitcode for process in theatres if process.exitcode]
            if broken:
                sys.exit(f"a system could not be started or ended: exit status {broken[0]}")


def line(round_: Round) -> str:
    figures = round_.figures
    beyond = {
        "lost": figures.lost,
        "duplicates": figures.duplicates,
        "run again": figures.run_again,
        "overlaps": figures.overlaps,
        "published again": figures.published_again,
        "restarts": len(round_.restarts),
    }
    return (
        f"seed {round_.seed:<6} {'+'.join(round_.faults):44} {round_.seconds:5.1f} s, "
        f"{round_.settled_seconds:4.1f} s to settle, {figures.acknowledged} requests: "
        + (", ".join(f"{count} {what}" for what, count in beyond.items() if count) or "each once")
        + "".join(f"\n  FAILED {complaint}" for complaint in round_.complaints)
        + (f"\n  again: {round_.repeat}\n  logs: {round_.kept}" if round_.complaints else "")
    )


def summary(rounds: Sequence[Round]) -> list[dict[str, object]]:
    """Return the sums for each fault, for pairs together, and for all."""
    groups: defaultdict[str, list[Round]] = defaultdict(list)
    for round_ in rounds:
        groups[round_.faults[0] if len(round_.faults) == 1 else "pairs"].append(round_)
        groups["all"].append(round_)
    return [_sums(name, groups[name]) for name in (*FAULTS, "pairs", "all") if name in groups]


def _sums(name: str, rounds: Sequence[Round]) -> dict[str, object]:
    figures = Figures()
    for round_ in rounds:
        figures.add(round_.figures)
    return {
        "faults": name,
        "rounds": len(rounds),
        "failed": sum(bool(round_.complaints) for round_ in rounds),
        **asdict(figures),
        "restarts": sum(len(round_.restarts) for round_ in rounds),
        "settled_seconds": round(max(round_.settled_seconds for round_ in rounds), 1),
    }


def _table(sums: Sequence[dict[str, object]]) -> str:
    rows = [[name.replace("_", " ") for name in sums[0]], *([str(value) for value in each.values()] for each in sums)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first round; each next one has the next (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, help="20 for each fault there is, and 40")
    parser.add_argument("--faults", help="in turn; A+B: at the same time; all that there are, and two pairs drawn")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of a round (%(default)s)")
    parser.add_argument("--systems", type=int, default=SYSTEMS, help="side by side (%(default)s)")
    parser.add_argument("--bug", choices=BUGS, help="that is seeded into each service")
    parser.add_argument(
        "--hosts", action="store_true", help="on six hosts that site.yml deploys to, one system; needs root"
    )
    parser.add_argument("--json", action="store_true", help="one document on stdout; what is played goes to stderr")
    options = parser.parse_args()
    arena = Hosts if options.hosts else Processes
    there = names(arena)
    faults = options.faults.split(",") if options.faults else [*there, PAIR, PAIR]
    unknown = {name.partition(":")[0] for chosen in faults for name in chosen.split("+")} - {*there, PAIR}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not with {arena.command}, which has {', '.join(there)} and {PAIR}")
    if options.hosts and options.bug:
        parser.error("a bug is seeded into local processes alone; what site.yml deploys has none")
    if options.hosts and os.geteuid() != 0:
        parser.error("--hosts enters the hosts' namespaces: run it as root (sudo --preserve-env make chaos HOSTS=1)")

    signal.signal(signal.SIGTERM, theatre.leave)
    count = options.rounds or 20 * (len(there) + 2)
    rounds = list(plan(options.seed, count, faults, options.requests, arena))
    systems = 1 if options.hosts else min(options.systems, count)
    played: list[Round] = []
    for round_ in play(rounds, systems, arena, options.bug):
        played.append(round_)
        file = sys.stderr if options.json else sys.stdout
        print(f"{len(played)}/{len(rounds)}", line(round_), file=file, flush=True)
    sums = summary(played)
    document = {"v": 1, "sums": sums, "rounds": [asdict(each) for each in played]}
    print(json.dumps(document) if options.json else _table(sums))  # noqa: T201
    sys.exit(any(round_.complaints for round_ in played))


if __name__ == "__main__":
    main()
