"""The synthetic world's answers: its panel of noisy annotators, and its gold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lodestar.data.world import compare, gold_reward
from lodestar.errors import FailedPrecondition
from lodestar.labelling.port import NONE, Asked, Question
from lodestar.records import Choice, Feedback


class _Simulated:
    """Answers one question after another."""

    figures = NONE

    def __init__(self, asked: Asked) -> None:
        self._seed = asked.seed

    def label(self, questions: Sequence[Question], progress: Callable[[int], object]) -> list[Feedback]:
        """See Labeller; an answer depends on the seed and the question alone."""
        answers = []
        for question in questions:
            try:
                answers.append(self._answer(question))
            except ValueError as error:
                raise FailedPrecondition(
                    f"label by panel or gold knows the synthetic world's prompts alone ({error}); set by: file or "
                    "people"
                ) from None
            progress(1)
        return answers

    def _answer(self, question: Question) -> Feedback:
        raise NotImplementedError


class Panel(_Simulated):
    """Two annotators vote on every pair, as on the comparisons that the data stage draws (data.world.panel)."""

    def _answer(self, question: Question) -> Feedback:
        first, second = question.replies
        rng = random.Random(f"{self._seed}/{question.id}")
        return compare(question.prompt, first, second, rng, row=question.id)


class Gold(_Simulated):
    """The hidden gold reward itself, which never errs: an upper bound for what labels are worth."""

    def _answer(self, question: Question) -> Feedback:
        gold = tuple(gold_reward(question.prompt, reply) for reply in question.replies)
        label = 0.5 if gold[0] == gold[1] else float(gold[0] > gold[1])
        verdict = (Choice(0, 1, label=label),)
        return Feedback(question.prompt, question.replies, verdict, question.id, "gold", gold=gold)
