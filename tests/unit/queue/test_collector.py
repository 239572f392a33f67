"""The collector against the in-memory queue, step by step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from lodestar.errors import FailedPrecondition, NonFinite, RunPaused
from lodestar.queue.memory import MemoryLearnerQueue
from lodestar.records import WeightVersion
from lodestar.rollouts import collector as module
from tests.unit.queue.fleet import Fleet, collector, rollout, schedule


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECEIVE_SECONDS", 0.001)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_rollouts_come_back_ordered_and_settle_into_the_ledger(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    for _ in range(4):
        fleet.worker = type(fleet.worker)(fleet.broker, "demo", "other")
        fleet.answer(count=1)
    rollouts = gatherer.collect(0)
    assert rollouts is not None
    assert [item.ticket.index for item in rollouts] == [0, 1, 2, 3]
    entries = gatherer.settle(0)
    assert [(e.id, e.outcome, e.tokens) for e in entries] == [
        (item.ticket.id, "trained", item.token_hash()) for item in rollouts
    ]
    assert fleet.queue.depth().finished == 0
    expected = {"issued": 4, "trained": 4, "failed": 0, "superseded": 0, "duplicates_refused": 0}
    assert gatherer.totals() == expected


@pytest.mark.parametrize(("staleness", "outstanding"), [(0, 4), (1, 8), (3, 16)])
def test_outstanding_tickets_never_exceed_what_staleness_allows(fleet: Fleet, staleness: int, outstanding: int) -> None:
    gatherer = collector(fleet.queue, schedule(max_staleness=staleness, steps=6))
    for step in range(6):
        gatherer.issue(step)
        gatherer.issue(step)
        assert fleet.queue.depth().waiting <= outstanding
        if step == 0:
            assert fleet.queue.depth().waiting == outstanding
        fleet.answer(WeightVersion("a", step, ""))
        assert gatherer.collect(step) is not None
        gatherer.settle(step)
    assert gatherer.totals()["issued"] == 24
    assert fleet.queue.depth().waiting == 0


def test_watch_may_give_a_step_up_and_collecting_goes_on_later(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    fleet.answer(count=3)
    seen: list[int] = []

    def watch(received: int) -> bool:
        seen.append(received)
        return received < 3

    assert gatherer.collect(0, watch) is None
    assert seen == [0, 3]
    fleet.answer()
    rollouts = gatherer.collect(0, lambda _: True)
    assert rollouts is not None
    assert len(rollouts) == 4


def test_a_stale_rollout_is_superseded_and_its_place_issued_again(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule(max_staleness=1, steps=4))
    for step in range(2):
        gatherer.issue(step)
        fleet.answer(WeightVersion("a", step, ""))
        gatherer.collect(step)
        gatherer.settle(step)
    gatherer.issue(2)  # step 2's tickets were answered by version 1: staleness 1 is allowed
    assert gatherer.collect(2) is not None
    gatherer.settle(2)
    fleet.answer(WeightVersion("a", 1, ""))  # step 3 needs version 2
    answered = []

    def watch(received: int) -> bool:
        answered.extend(fleet.answer(WeightVersion("a", 2, "")))
        return True

    rollouts = gatherer.collect(3, watch)
    assert rollouts is not None
    assert {item.ticket.attempt for item in rollouts} == {1}
    first = gatherer._schedule.ticket("a", 3, 0)
    assert answered[0] == replace(first, attempt=1)  # same prompt, same seed
    outcomes = [(e.id, e.outcome) for e in gatherer.settle(3)]
    assert outcomes[:2] == [("3.0.0", "superseded"), ("3.0.1", "trained")]
    assert gatherer.totals()["superseded"] == 4


def test_rollouts_by_another_incarnations_weights_are_superseded(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    fleet.answer(WeightVersion("dead", 7, ""))
    rollouts = gatherer.collect(0, lambda _: bool(fleet.answer()) or True)
    assert rollouts is not None
    assert {item.version.incarnation for item in rollouts} == {"a"}
    assert gatherer.totals()["superseded"] == 4


def test_the_start_model_counts_as_every_incarnations_step_0(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    fleet.answer(WeightVersion("", 0, "d"))
    assert gatherer.collect(0) is not None
    gatherer.settle(0)
    gatherer.issue(1)
    fleet.answer(WeightVersion("", 0, "d"))
    assert gatherer.collect(1, lambda _: gatherer.totals()["superseded"] == 0) is None


def test_weights_that_never_fit_pause_the_run(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUPERSEDED_LIMIT", 3)
    gatherer = collector(fleet.queue, schedule())
    with pytest.raises(RunPaused, match=r"last: incarnation dead, step 9; wanted a, step 0 or later"):
        gatherer.collect(0, lambda _: bool(fleet.answer(WeightVersion("dead", 9, ""))) or True)
    assert gatherer.collect(0, lambda _: bool(fleet.answer()) or True) is not None


def test_a_failed_ticket_is_replaced_by_the_steps_next_reserve_prompt(fleet: Fleet) -> None:
    order = schedule(batch=8)
    gatherer = collector(fleet.queue, order, max_failed_fraction=0.25)
    gatherer.issue(0)
    failed = fleet.refuse(2)
    rollouts = gatherer.collect(0, lambda _: bool(fleet.answer()) or True)
    assert rollouts is not None
    assert [item.ticket.prompt for item in rollouts[:2]] == [order.reserve(0, 0), order.reserve(0, 1)]
    assert [item.ticket.prompt for item in rollouts[2:]] == [order.prompt(0, index) for index in range(2, 8)]
    entries = {e.id: (e.outcome, bool(e.tokens)) for e in gatherer.settle(0)}
    assert entries[failed[0].id] == ("failed", False)
    assert entries["0.0.1"] == ("trained", True)
    assert gatherer.totals()["failed"] == 2


def test_too_many_failures_pause_the_run_with_the_last_error_and_resuming_accepts_them(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule(batch=20), max_failed_fraction=0.05)
    gatherer.issue(0)
    fleet.refuse(1, "first")
    assert gatherer.collect(0, lambda _: gatherer.totals()["failed"] == 0) is None
    fleet.refuse(1, "prompt 17 is too long")
    with pytest.raises(RunPaused, match=r"2 of 20 tickets of step 0 failed.*0\.05.*prompt 17 is too long"):
        gatherer.collect(0)
    rollouts = gatherer.collect(0, lambda _: bool(fleet.answer()) or True)
    assert rollouts is not None
    assert len(rollouts) == 20


def test_scores_that_are_no_numbers_end_the_run_instead(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule(batch=20), max_failed_fraction=0.05)
    gatherer.issue(0)
    fleet.refuse(2, "DATA_LOSS: the score is nan")
    with pytest.raises(NonFinite, match=r"2 of 20 tickets of step 0 failed.*the score is nan"):
        gatherer.collect(0)


def test_lost_contents_are_issued_again_except_what_is_here(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    fleet.answer(count=2)
    assert gatherer.collect(0, lambda received: received < 2) is None
    fleet.broker.lose_everything()
    again: list[str] = []

    def watch(_: int) -> bool:
        again.extend(ticket.id for ticket in fleet.answer())
        return True

    rollouts = gatherer.collect(0, watch)
    assert rollouts is not None
    assert again == ["0.2.0", "0.3.0"]
    assert len(gatherer.settle(0)) == 4


def test_silence_makes_the_learner_issue_again(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule(), reconcile_seconds=0.01)
    gatherer.issue(0)
    fleet.queue.withdraw(["0.1.0"])  # as if Redis had lost just this one and did not know it
    calls = itertools.count()

    def watch(_: int) -> bool:
        fleet.answer()
        return next(calls) < 200

    assert gatherer.collect(0, watch) is not None


def test_a_second_rollout_for_a_ticket_is_refused_and_counted(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    (first, *_) = fleet.answer()
    done = fleet.broker.streams["demo", "a"].done
    done["again"] = rollout(first)
    assert gatherer.collect(0) is not None
    entries = gatherer.settle(0)
    assert [e.id for e in entries] == [f"0.{index}.0" for index in range(4)]
    done["late"] = rollout(first)  # for a step that was settled
    gatherer.issue(1)
    fleet.answer()
    gatherer.collect(1)
    assert gatherer.totals()["duplicates_refused"] == 2
    assert "late" not in done
    assert "again" not in done


def test_a_redelivery_of_what_is_held_is_no_duplicate(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    fleet.answer(count=2)
    assert gatherer.collect(0, lambda received: received < 2) is None
    fleet.queue._received.clear()  # what a restart of Redis with all its contents does
    fleet.answer()
    assert gatherer.collect(0) is not None
    assert gatherer.totals()["duplicates_refused"] == 0


def test_a_rollout_of_another_incarnations_ticket_is_refused(fleet: Fleet) -> None:
    order = schedule()
    gatherer = collector(fleet.queue, order)
    fleet.broker.streams["demo", "a"].done["x"] = rollout(order.ticket("dead", 0, 0))
    gatherer.issue(0)
    assert gatherer.collect(0, lambda _: gatherer.totals()["duplicates_refused"] == 0) is None
    assert fleet.queue.depth().finished == 0


def test_second_finishers_that_the_queue_refused_are_counted_too(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    fleet.broker.streams["demo", "a"].duplicates = 3
    fleet.answer()
    gatherer.collect(0)
    assert gatherer.totals()["duplicates_refused"] == 3


def test_withdrawing_takes_back_what_is_out(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule(max_staleness=1))
    gatherer.issue(0)
    fleet.answer(count=1)
    gatherer.withdraw()
    assert fleet.answer() == []


def test_totals_continue_from_a_checkpoint_and_places_are_issued_again_under_their_ids(fleet: Fleet) -> None:
    order = schedule(max_staleness=1, batch=20)
    first = collector(fleet.queue, order)
    first.issue(0)
    fleet.answer(count=20)
    first.collect(0)
    first.settle(0)
    first.issue(1)
    fleet.refuse(1)
    assert first.collect(1, lambda _: first.totals()["failed"] == 0) is None
    state = first.state_dict()

    second = collector(MemoryLearnerQueue(fleet.broker), order, incarnation="b")
    second.load_state_dict(state)
    assert second.totals() == {"issued": 20, "trained": 20, "failed": 0, "superseded": 0, "duplicates_refused": 0}
    second.issue(1)
    rollouts = second.collect(1, lambda _: bool(fleet.answer(WeightVersion("b", 1, ""))) or True)
    assert rollouts is not None
    assert [item.ticket.id for item in rollouts] == [f"1.{index}.0" for index in range(20)]
    with pytest.raises(FailedPrecondition, match="another learner"):
        first.collect(1)
