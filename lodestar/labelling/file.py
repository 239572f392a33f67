"""Answers that somebody wrote to a file of feedback, elsewhere and in their own time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from lodestar.data.files import read_feedback
from lodestar.errors import DataError, FailedPrecondition
from lodestar.files import write_jsonl
from lodestar.labelling.port import NONE, Asked, Question
from lodestar.records import Feedback


class AnswerFile:
    """Takes the rows of a feedback file that are about the questions' replies; where the file is not there yet, writes
    the questions and says where."""

    figures = NONE

    def __init__(self, asked: Asked) -> None:
        if asked.file is None:
            raise FailedPrecondition("label by: file needs file: the feedback file that holds the answers")
        self._file = asked.file
        self._questions = asked.unfinished / "questions.jsonl"

    def label(self, questions: Sequence[Question], progress: Callable[[int], object]) -> list[Feedback]:
        """See Labeller.

        Raises:
            FailedPrecondition: the file is not there yet; the message says where the questions are.
            DataError: a row of it is bad, or none is about any question.
        """
        if not self._file.exists():
            rows = ({"id": q.id, "prompt": q.prompt, "completions": list(q.replies)} for q in questions)
            write_jsonl(self._questions, rows)
            raise FailedPrecondition(
                f"{len(questions)} questions wait for answers: they are in {self._questions}; write each with its "
                f"label (1: the first is better, 0: the second, 0.5: a tie) to {self._file}, then --resume"
            )
        wanted = {(q.prompt, frozenset(q.replies)): q for q in questions}
        answers: dict[str, Feedback] = {}
        for row in read_feedback(self._file):
            question = wanted.get((row.prompt, frozenset(row.completions)))
            if question is not None and question.id not in answers:
                answers[question.id] = replace(row, id=question.id)
                progress(1)
        if not answers:
            example = (
                json.dumps({"prompt": questions[0].prompt, "completions": list(questions[0].replies)})
                if questions
                else ""
            )
            raise DataError(self._file, f"no row is about a question of this stage, such as {example}")
        return list(answers.values())
