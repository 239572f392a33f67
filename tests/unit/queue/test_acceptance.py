"""What the learner takes for an answer to a ticket that it issued."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lodestar.queue.port import DeadLetter
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion
from lodestar.rollouts import collector as module
from lodestar.rollouts.acceptance import fault_of
from tests.unit.queue.fleet import Fleet, collector, rollout, schedule

TICKET = Ticket("demo", "a", 0, 0, Prompt("p", "what ?", (5, 6)), 2, 7, 0, 4, 0.7)
SAMPLE = Sample((3, 1), (-0.5, 0.0), (-0.25, -1.0), 1.5, FinishReason.EOS, heads={"help": 2.0})


def answer(ticket: Ticket = TICKET, **changes: Any) -> Rollout:
    return Rollout(ticket, WeightVersion("a", 0, "d"), (SAMPLE, replace(SAMPLE, **changes)), "w")


def test_an_answer_to_the_ticket_is_taken() -> None:
    assert fault_of(answer(), TICKET, vocabulary=4) == ""
    assert fault_of(answer(finish_reason=FinishReason.LENGTH, token_ids=(1, 2, 3, 0), behaviour_logprobs=(-1.0,) * 4,
                           reference_logprobs=(-1.0,) * 4), TICKET, vocabulary=4) == ""  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"token_ids": (10**6, 1)}, "sample 1 has token id 1000000, and the policy's vocabulary ends at 3"),
        ({"token_ids": ()}, "sample 1 has 0 tokens, and 1 to 4 were asked for"),
        ({"token_ids": (1,) * 4000}, "sample 1 has 4000 tokens, and 1 to 4 were asked for"),
        ({"behaviour_logprobs": (-1.0,)}, "sample 1 has 2 tokens and 1 behaviour log-probs"),
        ({"reference_logprobs": (-1.0,) * 3}, "sample 1 has 2 tokens and 3 reference log-probs"),
        ({"behaviour_logprobs": (-1.0, 50.0)}, "sample 1 has a behaviour log-prob of 50, and none is above 0"),
        ({"score": 1e30}, "sample 1 has a score of 1e+30, and none is beyond ±1e+09"),
        ({"heads": {"help": -1e30}}, "sample 1 has a score of -1e+30"),
        ({"score_standard_deviation": -1.0}, "sample 1 has a score with a standard deviation below 0"),
        ({"finish_reason": FinishReason.ERROR}, "sample 1 did not come to an end (finish reason error)"),
    ],
)
def test_a_sample_that_answers_nothing_asked_for_says_why(changes: dict[str, Any], fault: str) -> None:
    assert fault_of(answer(**changes), TICKET, vocabulary=4).startswith(fault)


def test_the_number_of_samples_and_the_ticket_itself_are_those_that_were_issued() -> None:
    five = replace(answer(), samples=(SAMPLE,) * 5)
    assert fault_of(five, TICKET) == "the rollout has 5 samples, and 2 were asked for"
    for change in ({"seed": 8}, {"n": 1}, {"max_tokens": 4000}, {"prompt": Prompt("p", "what ?", (5, 7))}):
        other = answer(replace(TICKET, **change))  # type: ignore[arg-type]
        assert "holds another one than was issued" in fault_of(other, TICKET)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(module, "RECEIVE_SECONDS", 0.001)
    return Fleet()


def put(fleet: Fleet, item: Rollout | DeadLetter) -> None:
    fleet.broker.streams["demo", "a"].done[fleet.broker.receipt()] = item


def test_what_is_no_answer_fails_its_ticket_and_another_prompt_takes_the_place(fleet: Fleet) -> None:
    order = schedule(batch=20)
    gatherer = collector(fleet.queue, order, vocabulary=100)
    gatherer.issue(0)
    ticket = order.ticket("a", 0, 3)
    forged = rollout(ticket)
    put(fleet, replace(forged, samples=(replace(forged.samples[0], token_ids=(10**6, 1)),)))
    rollouts = gatherer.collect(0, lambda _: bool(fleet.answer()) or True)
    assert rollouts is not None
    assert rollouts[3].ticket.prompt == order.reserve(0, 0)
    assert gatherer.totals()["failed"] == 1
    assert ("0.3.0", "failed") in [(entry.id, entry.outcome) for entry in gatherer.settle(0)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_left_to_the_trainer(value: float) -> None:
    assert fault_of(answer(score=value), TICKET) == ""
    assert fault_of(answer(reference_logprobs=(math.nan, -1.0)), TICKET) == ""


def test_an_unreadable_entry_without_a_ticket_is_removed_and_changes_nothing(fleet: Fleet) -> None:
    gatherer = collector(fleet.queue, schedule())
    gatherer.issue(0)
    put(fleet, DeadLetter(None, "entry 1-1 of rollouts is garbage", 0, ""))
    fleet.answer()
    assert gatherer.collect(0) is not None
    assert gatherer.totals()["failed"] == gatherer.totals()["duplicates_refused"] == 0
    gatherer.settle(0)
    assert fleet.queue.depth().dead == 0
