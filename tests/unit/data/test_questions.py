"""Multiple-choice questions: of a file in its three forms, and of the synthetic world's facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lodestar.data.questions import Question, parse_question, read_questions, world_questions
from lodestar.data.world import Request, gold_reward
from lodestar.errors import DataError

ARC = {"question": {"stem": "2 + 2?", "choices": [{"text": "3", "label": "A"}, {"text": "4", "label": "B"}]}}
ASKED = "Question: 2 + 2?\nAnswer:"


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1}, Question("2 + 2 =", (" 3", " 4"), 1)),
        ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}, Question(ASKED, (" 3", " 4"), 1)),
        ({"question": "2 + 2?", "choices": ["3", "4"], "answer": "3"}, Question(ASKED, (" 3", " 4"), 0)),
        (ARC | {"answerKey": "B"}, Question(ASKED, (" 3", " 4"), 1)),
    ],
)
def test_every_form_is_read(row: dict[str, Any], question: Question) -> None:
    assert parse_question(row) == question


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ARC | {"answerKey": "E"}, "answerKey 'E' is none of the labels A, B"),
        (
            {"question": "x", "choices": ["a", "b"], "answer": 2},
            "answer 2 is no number from 0, letter or text of one of 2",
        ),
        ({"question": "x", "choices": ["a", "b"], "answer": True}, "answer True is no number"),
        ({"question": "x", "choices": ["a", "a"], "answer": 0}, "choices has one answer twice"),
        ({"question": "x", "choices": ["a"], "answer": 0}, "choices must be two texts or more"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, "question must be a text"),
        ({"choices": ["a", "b"], "answer": 0}, "prompt must be a text, is None"),
        ({"prompt": "x"}, "needs choices, a list of answers"),
        ({"question": {"stem": "x"}, "answerKey": "A"}, "question.choices must be a list"),
    ],
)
def test_what_is_no_question_is_refused_by_file_and_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"prompt": "x", "choices": ["a", "b"], "answer": 0}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"q.jsonl:2: {says}"):
        read_questions(path)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no questions"):
        read_questions(tmp_path / "q.jsonl")


def test_the_worlds_right_answer_is_the_one_that_gold_prefers() -> None:
    prompts = [
        Request("mia", "pirate", animal, pair).text
        for animal in ("owl", "goat", "crab")
        for pair in (("home", "color"), ("fear", "food"), ("instrument", "home"))
    ]
    questions = world_questions(prompts, seed=1)
    assert len({question.answer for question in questions}) > 1
    for question in questions:
        assert len(set(question.choices)) == 4
        rewards = [gold_reward(question.prompt, choice) for choice in question.choices]
        assert rewards.index(max(rewards)) == question.answer
        assert rewards.count(max(rewards)) == 1
    assert world_questions(prompts, seed=1) == questions
