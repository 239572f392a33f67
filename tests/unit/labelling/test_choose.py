"""What is asked about."""

from __future__ import annotations

from typing import Any

import pytest

from lodestar.errors import FailedPrecondition
from lodestar.labelling.choose import AllReplies, RandomPairs, UncertainPairs


def row(ticket: int, scores: dict[str, float | None]) -> dict[str, Any]:
    replies = [{"text": text, "score": score} for text, score in scores.items()]
    return {"ticket": str(ticket), "prompt": f"q{ticket}", "replies": replies}


SAMPLES = [
    row(0, {"a": 0.0, "b": 3.0, "c": 3.5}),
    row(1, {"a": 1.0, "b": 1.1, " ": 1.1}),
    row(2, {"a": -4.0, "b": 4.0}),
    row(3, {"a": 7.0}),
]


def test_the_pairs_whose_scores_are_nearest_are_asked_about_and_every_prompt_first_once() -> None:
    chosen = UncertainPairs().choose(SAMPLES, 99, 0)
    said = [(one.prompt, "".join(sorted(one.replies))) for one in chosen]
    assert said == [("q1", "ab"), ("q0", "bc"), ("q2", "ab"), ("q0", "ab"), ("q0", "ac")]
    assert [one.prompt for one in UncertainPairs().choose(SAMPLES, 2, 1)] == ["q1", "q0"]
    assert len({one.id for one in chosen}) == len(chosen)
    assert chosen == UncertainPairs().choose(SAMPLES, 99, 0)


def test_uncertainty_needs_scores() -> None:
    with pytest.raises(FailedPrecondition, match="choose: uncertain needs the reward's scores"):
        UncertainPairs().choose([row(0, {"a": 1.0, "b": None})], 1, 0)


def test_pairs_at_random_go_round_the_prompts_and_leave_blank_replies_out() -> None:
    chosen = RandomPairs().choose(SAMPLES, 4, 5)
    assert sorted(one.prompt for one in chosen[:3]) == ["q0", "q1", "q2"]
    assert chosen[3].prompt == "q0"
    assert all(text.strip() for one in chosen for text in one.replies)


def test_all_replies_of_a_prompt_cost_as_many_comparisons_as_they_hold() -> None:
    everything = {one.prompt: one for one in AllReplies().choose(SAMPLES, 5, 0)}
    assert set(everything) == {"q0", "q1", "q2"}
    assert set(everything["q0"].replies) == {"a", "b", "c"}
    assert set(everything["q1"].replies) == {"a", "b"}
    assert "q0" not in {one.prompt for one in AllReplies().choose(SAMPLES, 2, 0)}
