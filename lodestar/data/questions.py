"""Questions with several answers of which one is right: rows of a file, or made of the synthetic world's facts.

{"prompt": P, "choices": [C, …], "answer": 2}                       the prompt as it stands; answers follow it
{"question": Q, "choices": [C, …], "answer": 2 | "C" | "text"}      asked as "Question: Q\\nAnswer:"
{"question": {"stem": Q, "choices": [{"text", "label"}, …]}, "answerKey": "C"}      ARC, OpenBookQA, QASC
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodestar.data.world import best_reply, parse
from lodestar.data.world.facts import VALUES, belief, truth
from lodestar.errors import DataError
from lodestar.files import numbered_rows

CHOICES = 4
"""Of a question about the synthetic world."""


@dataclass(frozen=True, slots=True)
class Question:
    """``Question("Question: 2 + 2?\\nAnswer:", (" 3", " 4"), 1)``."""

    prompt: str
    choices: tuple[str, ...]
    """As they stand after the prompt."""
    answer: int
    """Which is right."""


def read_questions(path: Path) -> list[Question]:
    """The questions of a .jsonl or .jsonl.gz file.

    Raises:
        DataError: missing or empty file, or a row that is no question (file:line).
    """
    found = []
    for line, row in numbered_rows(path):
        try:
            found.append(parse_question(row))
        except ValueError as error:
            raise DataError(path, str(error), line) from None
    if not found:
        raise DataError(path, "has no questions")
    return found


def parse_question(row: Mapping[str, Any]) -> Question:
    """The question of a row.

    Raises:
        ValueError: it is in none of the forms above; says what is wrong.
    """
    asked = row.get("question")
    if isinstance(asked, Mapping):
        offered = asked.get("choices")
        if not isinstance(offered, list) or not all(isinstance(one, Mapping) for one in offered):
            raise ValueError("question.choices must be a list of {text, label}")
        labels = [str(one.get("label")) for one in offered]
        key = str(row.get("answerKey"))
        if key not in labels:
            raise ValueError(f"answerKey {key!r} is none of the labels {', '.join(labels)}")
        return _asked(asked.get("stem"), [one.get("text") for one in offered], labels.index(key))
    choices = row.get("choices")
    if not isinstance(choices, list):
        raise ValueError("needs choices, a list of answers, and which is right in answer")
    answer = _which(row.get("answer"), choices)
    if asked is not None:
        return _asked(asked, choices, answer)
    prompt = row.get("prompt")
    _check(prompt, "prompt", choices)
    return Question(str(prompt), tuple(choices), answer)


def world_questions(prompts: Sequence[str], *, seed: int) -> list[Question]:
    """One question per request of the synthetic world: the best reply, and the same with another word for the first
    fact asked for: what most people wrongly believe, and others of its kind.

    Raises:
        ValueError: a prompt that is no request.
    """
    questions = []
    for number, prompt in enumerate(prompts):
        request = parse(prompt)
        fact, rng = request.attributes[0], random.Random(f"{seed}/question {number}")
        right, right_reply = truth(request.subject, fact), best_reply(request)
        likely = belief(request.subject, fact)
        others = sorted(VALUES[fact] - {right, likely})
        wrong = ([likely] if likely != right else []) + rng.sample(others, len(others))
        words = [right, *wrong[: CHOICES - 1]]
        rng.shuffle(words)
        replies = tuple(" ".join(word if one == right else one for one in right_reply.split()) for word in words)
        questions.append(Question(prompt, replies, words.index(right)))
    return questions


def _asked(question: Any, choices: Sequence[Any], answer: int) -> Question:
    _check(question, "question", choices)
    return Question(f"Question: {question}\nAnswer:", tuple(f" {choice}" for choice in choices), answer)


def _check(question: Any, name: str, choices: Sequence[Any]) -> None:
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{name} must be a text, is {question!r}")
    if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError("choices must be two texts or more, none of them empty")
    if len(set(choices)) < len(choices):
        raise ValueError("choices has one answer twice")


def _which(answer: Any, choices: Sequence[Any]) -> int:
    """By number from 0, by letter, or by the answer's text."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if answer in choices:
            return list(choices).index(answer)
        if len(answer) == 1 and 0 <= ord(answer) - ord("A") < len(choices):
            return ord(answer) - ord("A")
    raise ValueError(f"answer {answer!r} is no number from 0, letter or text of one of {len(choices)} choices")
