"""Bugs to be seeded into the services, each one what a rule of ours is there for: the harness has to notice them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from chaos.names import get, put

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_DELIVER = "slowjobs.worker.answers:Answers._deliver"
_DONE = "slowjobs.worker.events:Events.done"
_DRAIN = "slowjobs.worker.worker:Worker._drain"
_SETTLE = "slowjobs.bridge.ledger:Ledger.settle"


def _commit_before_done() -> None:
    settle = get(_SETTLE)

    def stored_is_done(ledger: Any, positions: Sequence[Any], stored: int) -> None:
        settle(ledger, positions, stored)
        for position in positions[:stored]:
            ledger.finish(position)

    put(_SETTLE, stored_is_done)


def _metadata_after_publishing() -> None:
    async def later(*_: object) -> None:
        pass

    put("slowjobs.bridge.publishing:Publishing._commit_for_sure", later)


def _finish_before_result() -> None:
    deliver = get(_DELIVER)

    async def finish_first(answers: Any, task: Any, result: Any) -> Any:
        task.source.subscription.finish(task.message)
        return await deliver(answers, task, result)

    put(_DELIVER, finish_first)


def _finish_before_done() -> None:
    done = get(_DONE)

    async def finish_first(events: Any, task: Any, *outcome: Any) -> None:
        task.source.subscription.finish(task.message)
        await done(events, task, *outcome)

    put(_DONE, finish_first)


def _done_before_result() -> None:
    deliver = get(_DELIVER)

    async def done_first(answers: Any, task: Any, result: Any) -> Any:
        await answers._events.done(task, "result")
        await asyncio.sleep(1)  # so that a kill comes between
        return await deliver(answers, task, result)

    put(_DELIVER, done_first)


def _no_touch_while_draining() -> None:
    drain = get(_DRAIN)

    async def drain_untouched(worker: Any) -> None:
        put("slowjobs.nsq:Subscription.touch", lambda *_: None)
        await drain(worker)

    put(_DRAIN, drain_untouched)


def _again_without_answer() -> None:
    async def none_stored(*_: object) -> int:
        return 0

    put("slowjobs.bridge.publishing:Publishing._stored", none_stored)


def _no_conclusion() -> None:
    put("slowjobs.bridge.ledger:Ledger._conclude", lambda *_: None)


BUGS: Mapping[str, Callable[[], None]] = {
    "commit-before-done": _commit_before_done,
    "metadata-after-publishing": _metadata_after_publishing,
    "finish-before-result": _finish_before_result,
    "finish-before-done": _finish_before_done,
    "done-before-result": _done_before_result,
    "no-touch-while-draining": _no_touch_while_draining,
    "again-without-answer": _again_without_answer,
    "no-conclusion": _no_conclusion,
}
