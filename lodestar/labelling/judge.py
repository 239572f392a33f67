"""Labels by an AI judge (Bai et al. 2022, section 4.1; Lee et al. 2023, RLAIF): a language or a reward model.

A language model sees a pair twice, once in each order. With p₁ and p₂ its probabilities that the question's first reply
is better, read where it is A and where it is B, the label is (p₁ + p₂)/2: exchanging the replies exchanges the label,
and a liking for A cancels where the replies are alike. How far it likes A is measured and told (``position_bias``).

A reward model's label is σ(r₁ − r₂), the probability that Bradley and Terry's model gives its scores.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lodestar.asking import ROWS_PER_CALL, Asking, gold_of, together
from lodestar.constitution import drawn, principles
from lodestar.data.marks import unmarked
from lodestar.errors import FailedPrecondition, InvalidArgument
from lodestar.labelling.options import JudgeOptions
from lodestar.labelling.port import NONE, Asked, Question
from lodestar.labelling.reading import chance_of_a
from lodestar.llm.answers import Answers, Row
from lodestar.llm.port import Answer, Ask
from lodestar.llm.reach import language_model
from lodestar.records import ChatMessage, Choice, Feedback, ScoreItem

JUDGE = "judge"
"""Whom its feedback is by."""
CANDIDATES = 20
"""Most likely tokens that endpoints tell at most."""
KEY = "label.judge"
Progress = Callable[[int], object]


class LanguageJudge:
    """Asks for A or B in both orders; answers are kept (lodestar.llm.answers)."""

    def __init__(self, asked: Asked) -> None:
        """
        Raises:
            ConfigError: a constitution, a token or the SDK is missing or cannot be used.
        """
        self._asked = asked
        self._options = _options(asked)
        self._principles = (
            principles(self._options.constitution, self._options.aspect, KEY, choosing=True)
            if self._options.aspect
            else ()
        )
        self._chances: list[tuple[float, float]] = []
        self._unread: list[dict[str, str]] = []
        self._costs: dict[str, float] = {}

    def label(self, questions: Sequence[Question], progress: Progress) -> list[Feedback]:
        """See Labeller. A question whose answer names neither A nor B, or that is too long, has no label: it is among
        ``figures["unread"]``.

        Raises:
            FailedPrecondition: no question has one; the message has what the judge said to the first.
        """
        return asyncio.run(self._label(questions, progress))

    @property
    def figures(self) -> dict[str, Any]:
        """See Labeller: ``unread`` rows, costs (lodestar.llm.answers), and what the order of the replies does:

        - position_bias: mean of P(A) less ½ over both orders; 0 where position does not count.
        - turned: share of pairs whose choice turns with the order.
        """
        found: dict[str, Any] = {"unread": sorted(self._unread, key=lambda row: row["id"]), **self._costs}
        if pairs := self._chances:
            found["position_bias"] = fmean((first + 1 - second) / 2 - 0.5 for first, second in pairs)
            found["turned"] = fmean(float((first - 0.5) * (second - 0.5) < 0) for first, second in pairs)
        return found

    async def _label(self, questions: Sequence[Question], progress: Progress) -> list[Feedback]:
        model = language_model(self._options, KEY, self._asked.servers.get("policy", ()), self._asked.tls)
        before = len(self._unread)
        async with Answers(model, self._options, self._asked.cache) as answers:

            async def one(question: Question) -> Feedback | None:
                row = await self._judged(answers, question)
                progress(1)
                return row

            rows = await together(one(question) for question in questions)
            for name, value in answers.figures().items():
                self._costs[name] = self._costs.get(name, 0) + value
        if questions and not any(rows):
            raise FailedPrecondition(
                f"{KEY}: none of {len(questions)} questions got a label; {why(self._unread[before])}. Set form or "
                "question to what this model understands, or take another judge"
            )
        return [row for row in rows if row is not None]

    async def _judged(self, answers: Answers, question: Question) -> Feedback | None:
        first, second = question.replies
        chances: list[float] = []
        for replies in ((first, second), (second, first)):
            try:
                row = await answers.of(self._ask(question, replies), read)
            except InvalidArgument as error:
                self._leave(question, "", str(error))
                return None
            if row["chance"] is None:
                self._leave(question, row["text"], "the answer names neither A nor B")
                return None
            chances.append(row["chance"])
        in_order, turned = chances[0], 1 - chances[1]
        self._chances.append((in_order, turned))
        return feedback(question, (in_order + turned) / 2, self._options)

    def _ask(self, question: Question, replies: tuple[str, str]) -> Ask:
        options, asks = self._options, self._options.question
        if self._principles:
            asks = drawn(self._principles, self._asked.seed, question.id).choice or ""
        shown = written(question, replies, asks)
        text = f"{shown}\nThe answer is: ("
        chat = (ChatMessage("user", f"{shown}\nAnswer with the letter alone, A or B."),)
        return Ask(
            chat if options.form == "chat" else text,
            options.max_tokens,
            candidates=CANDIDATES if options.logprobs else 0,
        )

    def _leave(self, question: Question, said: str, why: str) -> None:
        self._unread.append({"id": question.id, "said": said, "why": why})


class RewardJudge:
    """Scores both replies, as reward training reads them."""

    figures = NONE

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._options = _options(asked)

    def label(self, questions: Sequence[Question], progress: Progress) -> list[Feedback]:
        """See Labeller; raises as lodestar.asking.Asking.scores."""
        asking = Asking((), self._asked.servers["reward"], 0, tls=self._asked.tls)
        return asyncio.run(self._label(asking, questions, progress))

    async def _label(self, asking: Asking, questions: Sequence[Question], progress: Progress) -> list[Feedback]:
        rows = []
        for start in range(0, len(questions), ROWS_PER_CALL // 2):
            part = questions[start : start + ROWS_PER_CALL // 2]
            items = [ScoreItem(one.prompt, reply, messages=one.messages) for one in part for reply in one.replies]
            scores = await asking.scores(items)
            for question, first, second in zip(part, scores[::2], scores[1::2], strict=True):
                rows.append(feedback(question, sigmoid(first - second), self._options))
            progress(len(part))
        return rows


def why(unread: Mapping[str, str]) -> str:
    """One unread row in words."""
    said = f" ({unread['said']!r})" if unread["said"] else ""
    return f"{unread['id']}: {unread['why']}{said}"


def judge(asked: Asked) -> LanguageJudge | RewardJudge:
    """The judge that the options and the run's servers make."""
    return RewardJudge(asked) if asked.servers.get("reward") else LanguageJudge(asked)


def read(answer: Answer) -> Row:
    """What is kept of an answer: ``chance``, that A is better; null for neither."""
    return {"chance": chance_of_a(answer)}


def written(question: Question, replies: tuple[str, str], asks: str) -> str:
    """The question as the judge sees it."""
    prompt = "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in question.messages)
    return (
        "Here are a prompt and two replies to it.\n\n"
        f"Prompt:\n{unmarked(prompt or question.prompt).strip()}\n\n"
        f"Reply (A):\n{replies[0].strip()}\n\nReply (B):\n{replies[1].strip()}\n\n{asks}"
    )


def feedback(question: Question, chance: float, options: JudgeOptions) -> Feedback:
    """The label of a probability that the first reply is better."""
    label = chance if options.labels == "soft" else 0.5 if chance == 0.5 else float(chance > 0.5)
    known = [gold_of(question.prompt, reply) for reply in question.replies]
    gold = tuple(value for value in known if value is not None)
    verdict = (Choice(0, 1, label=label),)
    return Feedback(
        question.prompt,
        question.replies,
        verdict,
        question.id,
        JUDGE,
        gold=gold if len(gold) == len(known) else None,
    )


def sigmoid(x: float) -> float:
    """1 / (1 + e⁻ˣ) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _options(asked: Asked) -> JudgeOptions:
    if asked.judge is None:
        raise FailedPrecondition("label by: judge needs judge: who judges; judge: {} is the newest reward model")
    return asked.judge
