"""A win rate of comparisons by people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lodestar.evaluation import clopper_pearson
from lodestar.labelling.port import Question
from lodestar.labelling.versus import pairs_of, versus
from lodestar.records import Choice, Feedback


class Said:
    """Answers a question as it is told, for each of several people."""

    def __init__(self, *labels: dict[str, float]) -> None:
        self.labels = labels
        self.asked: list[str] = []

    def label(self, questions: Sequence[Question], progress: Callable[[int], object]) -> list[Feedback]:
        self.asked = [one.prompt for one in questions]
        return [
            Feedback(one.prompt, one.replies, (Choice(0, 1, label=said[one.prompt]),), annotator=f"person {number}")
            for number, said in enumerate(self.labels)
            for one in questions
            if one.prompt in said
        ]


def nobody(_amount: int) -> None:
    pass


def test_a_tie_counts_half_and_replies_that_are_alike_are_one_nobody_is_asked_about(tmp_path: Path) -> None:
    questions = pairs_of(tmp_path / "kept.json", ["a", "b", "c", "d"], ["x"] * 4, ["y", "y", "x", "y"])
    people = Said({"a": 1.0, "b": 0.5, "d": 0.0})
    found = versus(questions, people, nobody)
    assert people.asked == ["a", "b", "d"]
    assert (found["value"], found["n"], found["alike"], found["annotators"]) == (0.5, 4, 1, 1)
    assert found["low"] < 0.5 < found["high"]
    assert found["alpha"] is None


def test_people_who_judge_the_same_are_no_more_prompts(tmp_path: Path) -> None:
    prompts = [str(i) for i in range(20)]
    questions = pairs_of(tmp_path / "kept.json", prompts, ["x"] * 20, ["y"] * 20)
    labels = {prompt: float(int(prompt) < 15) for prompt in prompts}
    found = versus(questions, Said(labels, labels, labels), nobody)
    exact = clopper_pearson(15, 20)
    assert (found["value"], found["n"], found["annotators"], found["alpha"]) == (0.75, 60, 3, 1.0)
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high))


def test_a_choice_told_the_other_way_round_is_the_same_answer(tmp_path: Path) -> None:
    (question,) = pairs_of(tmp_path / "kept.json", ["a"], ["x"], ["y"])

    class Turned(Said):
        def label(self, questions: Sequence[Question], progress: Callable[[int], object]) -> list[Feedback]:
            return [Feedback(one.prompt, one.replies, (Choice(1, 0, label=1.0),)) for one in questions]

    assert versus([question], Turned(), nobody)["value"] == 0.0


def test_a_stage_that_was_killed_asks_the_same_again(tmp_path: Path) -> None:
    first = pairs_of(tmp_path / "kept.json", ["a"], ["x"], ["y"])
    assert pairs_of(tmp_path / "kept.json", ["a"], ["rounded otherwise"], ["y"]) == first
