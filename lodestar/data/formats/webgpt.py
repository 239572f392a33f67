"""WebGPT's comparisons: two answers with scores that sum to 0 (Nakano et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need, pair, user
from lodestar.data.verdicts import Row, number


def _convert(row: Row) -> Iterator[Converted]:
    first, second = (number(row[f"score_{i}"], f"score_{i}") for i in (0, 1))
    label = 0.5 if first == second else float(first > second)
    question = need(need(row, "question", dict), "full_text", str, "question")
    yield pair(user(question), row["answer_0"], row["answer_1"], label, strength=abs(first - second))


FORMATS = (
    Format(
        "WebGPT comparisons",
        "https://huggingface.co/datasets/openai/webgpt_comparisons",
        frozenset({"question", "answer_0", "answer_1", "score_0", "score_1"}),
        _convert,
        leaves="the quotes that an answer refers to",
    ),
)
