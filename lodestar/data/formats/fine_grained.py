"""Fine-grained RLHF: four predictions and the six preferences between them (Wu et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations

from lodestar.data.formats.base import Converted, Format, need, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    count = sum(1 for key in row if re.fullmatch(r"prediction \d+", key))
    pairs = list(combinations(range(count), 2))
    preference = need(row, "preference", list)
    if len(preference) != len(pairs):
        raise ValueError(f"preference must have {len(pairs)} values, one per pair of {count} predictions")
    label_of = {0: 0.5, 1: 1.0, 2: 0.0}
    choices = []
    for i, ((first, second), value) in enumerate(zip(pairs, preference, strict=True)):
        if value not in label_of:
            raise ValueError(f"preference[{i}] must be 0 (tie), 1 or 2, got {value!r}")
        choices.append({"first": first, "second": second, "label": label_of[value]})
    yield {
        "prompt": user(row["question"]),
        "completions": [row.get(f"prediction {i + 1}") for i in range(count)],
        "choices": choices,
    }


FORMATS = (
    Format(
        "fine-grained RLHF",
        "https://github.com/allenai/FineGrainedRLHF",
        frozenset({"question", "prediction 1", "preference"}),
        _convert,
        leaves="retrieved passages, ten times as long as the question, are no part of the prompt",
    ),
)
