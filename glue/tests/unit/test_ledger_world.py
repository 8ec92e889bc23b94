"""The ledger keeps its promises in thousands of small worlds, which catch each tempting version that does not.

The promises P1 to P5, O and E are those of ``support.world``. A failure prints the seed, the faults and every step.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import pytest

from slowjobs.bridge import commit, ledger
from slowjobs.bridge.ledger import Figures
from support.world import FAULTS, Bridge, BrokenError, World, faults, times

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slowjobs import documents
    from support.world.nsqd import Nsqd
    from support.world.world import Process

PAIRS = list(itertools.combinations_with_replacement(FAULTS, 2))


@pytest.fixture(autouse=True)
def _short_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    times.shorten(monkeypatch)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_ledger_keeps_its_promises_whatever_fault_comes_at_whatever_step(fault: str) -> None:
    for seed in range(20):
        World(seed, Bridge, [fault]).run()


@pytest.mark.parametrize("seed", range(3))
def test_a_ledger_keeps_its_promises_whatever_two_faults_come(seed: int) -> None:
    for pair in PAIRS:
        World(seed, Bridge, pair).run()


def test_a_ledger_keeps_its_promises_where_clocks_differ_as_much_as_they_may() -> None:
    for seed, pair in enumerate(PAIRS):
        World(seed, Bridge, pair, clocks_differ=times.CLOCKS).run()


# What must not be: each is tempting, and the world tells why it is wrong.


def assert_breaks(promise: str, bridge: type[Bridge], *struck_by: str, still: bool = False) -> None:
    """Look for a world in which ``bridge`` breaks ``promise``, and keeps all others until then."""
    for seed in range(1000):
        try:
            World(seed, bridge, struck_by, still=still).run()
        except BrokenError as error:
            if str(error).startswith(promise):
                return
    pytest.fail(f"no world catches {bridge.__name__}")


def test_a_position_of_which_nothing_is_concluded_never_comes_to_its_end() -> None:
    class Silent(ledger.Ledger):
        def end_reading(self, hosts: Mapping[str, Figures], now: float) -> None:
            """Conclude nothing."""

    class NoConclusion(Bridge):
        ledger_class = Silent

    assert_breaks("P1", NoConclusion, "nsqd_killed")


def test_suspects_and_a_deficit_that_are_remembered_lead_to_a_false_conclusion() -> None:
    class Remembers(ledger.Ledger):
        remembered: tuple[set[int], int] | None = None

        def end_reading(self, hosts: Mapping[str, Figures], now: float) -> None:  # noqa: ARG002
            undone = [each for each in self._requests() if each.publication <= self._before]
            deficit = len(undone) - sum(figures.held for figures in hosts.values())
            suspects = {each.publication for each in undone if not each.evidence}
            if deficit <= 0:
                self.remembered = None
                return
            first_suspects, first_deficit = self.remembered or (suspects, deficit)
            self.remembered = first_suspects & suspects, first_deficit
            if len(first_suspects & suspects) <= first_deficit:
                for request in undone:
                    if request.publication in first_suspects & suspects:
                        self._lose(request)

    class WithMemory(Bridge):
        ledger_class = Remembers

    assert_breaks("P5", WithMemory, "nsqd_killed", "worker_killed")


def test_a_message_in_another_channel_hides_a_loss_if_it_is_counted() -> None:
    class CountsAllChannels(Bridge):
        def _figures_of(self, host: Nsqd) -> Process[Figures]:
            figures = yield from super()._figures_of(host)
            return dataclasses.replace(figures, queued=figures.queued + 1)

    assert_breaks("P1", CountsAllChannels, "nsqd_killed")


def test_a_message_by_hand_hides_a_loss_if_the_deficit_alone_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "EMPTY_MARGIN_SECONDS", math.inf)
    assert_breaks("P1", Bridge, "nsqd_killed", "not_understood")


def test_what_only_waits_long_is_not_lost() -> None:
    class FallsBackByAge(ledger.Ledger):
        def end_reading(self, hosts: Mapping[str, Figures], now: float) -> None:
            super().end_reading(hosts, now)
            for request in list(self._requests()):
                since = self.seen.setdefault(request.publication, now)
                if self.holding and not request.runs() and now - since > 2 * times.MSG_TIMEOUT:
                    self._lose(request)

        def __init__(self, **limits: float) -> None:
            super().__init__(**limits)
            self.seen: dict[int, float] = {}

    class Ages(Bridge):
        ledger_class = FallsBackByAge

    assert_breaks("P5", Ages, "nsqd_killed")


def test_a_reading_while_a_publication_is_open_leads_to_a_false_conclusion() -> None:
    class TakesItForPublished(ledger.Ledger):
        def publish(self, positions: Sequence[documents.Position], host: str) -> None:
            super().publish(positions, host)
            self.settle(positions, len(positions))

    class ReadsMeanwhile(Bridge):
        ledger_class = TakesItForPublished

        def _read(self) -> Process[dict[str, Figures] | None]:
            self.ledger.begin_reading(self._world.now)
            return (yield from self._figures())

    assert_breaks("P5", ReadsMeanwhile)


def test_without_the_balance_an_emptied_channel_hides_behind_what_runs() -> None:
    class Unbalanced(ledger.Ledger):
        def end_reading(self, hosts: Mapping[str, Figures], now: float) -> None:
            super().end_reading({host: self._hide(figures) for host, figures in hosts.items()}, now)

        def _hide(self, figures: Figures) -> Figures:
            """Have nsqd hold whatever workers tell of, in the same sum."""
            return Figures(figures.start_time, figures.queued - 200, figures.in_flight + 100, figures.deferred + 100)

    class NoBalance(Bridge):
        ledger_class = Unbalanced

    assert_breaks("P5", NoBalance, "emptied")


def test_evidence_does_not_end_within_a_reading_nor_before_nsqd_has_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndsAtOnce(ledger.Ledger):
        def _end(self, request: ledger._Request, event: documents.Event) -> None:  # noqa: ARG002
            request.evidence = None

    class Late(Bridge):
        ledger_class = EndsAtOnce

    # Three readings in a row hide it nearly always.
    monkeypatch.setattr(ledger, "READINGS", 1)
    assert_breaks("P5", Late, "emptied", "worker_killed", still=True)


def test_what_still_runs_is_not_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger._Request, "runs", lambda _: False)
    assert_breaks("O", Bridge, "nsqd_killed")


def test_a_host_is_not_taken_out_while_workers_take_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "wrong_order", faults.host_taken_out_of_the_bridge_alone)
    assert_breaks("P5", Bridge, "wrong_order")


def test_nothing_is_published_between_emptying_a_lane_and_telling() -> None:
    class EmptiesFirst(Bridge):
        def _discard(self) -> Process:
            for host in self._hosts():
                host.empty()
            self._locked = self.stopped = False
            yield from self._wait(20)
            yield from super()._discard()

    assert_breaks("E", EmptiesFirst, "lane_emptied")


def test_nothing_is_told_to_be_discarded_while_nsqd_has_it() -> None:
    class TellsFirst(Bridge):
        def _discard(self) -> Process:
            self._follow()
            yield from self._commit_all()
            yield from self._tell_of_all()
            for host in self._hosts():
                host.empty()

    assert_breaks("E", TellsFirst, "lane_emptied", "bridge_killed")


def test_nothing_is_told_of_a_partition_before_the_commit_says_where_to_read_it() -> None:
    class NeverCommits(Bridge):
        def _commit_all(self) -> Process:
            yield from self._step()

    assert_breaks("E", NeverCommits, "lane_emptied", "bridge_killed")


def test_a_batch_without_an_answer_is_not_published_again_at_once() -> None:
    class PublishesAtOnce(Bridge):
        def _stored(self, batch: commit.Batch) -> Process[int]:  # noqa: ARG002
            yield 0
            return 0

    assert_breaks("P5", PublishesAtOnce, "answer_lost")


def test_a_batch_is_not_settled_while_it_may_be_on_its_way() -> None:
    class Impatient(Bridge):
        def _outlast(self, host: Nsqd) -> Process:  # noqa: ARG002
            yield 0

    assert_breaks("P5", Impatient)


def test_the_mark_is_not_committed_after_its_batch_is_published() -> None:
    class CommitsAfterwards(Bridge):
        def _send(self, partition: int, positions: list[documents.Position]) -> Process:
            host = self._active()
            if (yield from self._mpub(host, positions, host.start_time)):
                self.ledger.publish(positions, host.name)
                self.ledger.settle(positions, len(positions))
                yield from self._commit_one(partition)

    assert_breaks("P2", CommitsAfterwards, "bridge_killed")


def test_the_commit_is_not_what_was_published() -> None:
    class CommitsWhatIsPublished(ledger.Ledger):
        def lowest(self, partition: int) -> int:
            return self.mark(partition)

    class Forgets(Bridge):
        ledger_class = CommitsWhatIsPublished

    assert_breaks("P3", Forgets)


def test_events_are_not_read_before_nsqd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "READINGS", 1)

    class ReadsEventsFirst(Bridge):
        def _follow_for_ever(self) -> Process:
            yield 0

        def _read(self) -> Process[dict[str, Figures] | None]:
            Bridge._follow(self)
            yield from self._wait(times.READING)
            return (yield from super()._read())

        def _follow(self) -> None:
            """Not now: it is done."""

    assert_breaks("P5", ReadsEventsFirst, still=True)
