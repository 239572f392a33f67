"""Stack Exchange questions and their answers with a score each (Lambert et al. 2023, after Askell et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need, user
from lodestar.data.formats.nectar import by_place
from lodestar.data.verdicts import Row, number


def _convert(row: Row) -> Iterator[Converted]:
    answers = need(row, "answers", list)
    scores = [number(answer.get("pm_score"), f"answers[{i}].pm_score") for i, answer in enumerate(answers)]
    yield {
        "prompt": user(row.get("question")),
        "completions": [answer.get("text") for answer in answers],
        "ranking": by_place([-score for score in scores]),
        "id": str(row.get("qid", "")),
    }


FORMATS = (
    Format(
        "Stack Exchange preferences",
        "https://huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences",
        frozenset({"qid", "question", "answers"}),
        _convert,
        leaves="text is HTML and stays so; which answer was accepted counts as the score says",
    ),
)
