"""PandaLM: two responses and the votes of annotator1 … annotatorN, 0 a tie (Wang et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, joined, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    question = joined(row["instruction"], row.get("input"))
    annotators = sorted(key for key in row if re.fullmatch(r"annotator\d+", key))
    for name in annotators:
        label = {0: 0.5, 1: 1.0, 2: 0.0}.get(row[name])
        if label is None:
            yield ValueError(f"{name} must be 0 (tie), 1 or 2, got {row[name]!r}")
            continue
        yield {
            "prompt": user(question),
            "completions": [row["response1"], row.get("response2")],
            "label": label,
            "annotator": name,
            "subset": str(row.get("cmp_key", "")),
        }


FORMATS = (
    Format(
        "PandaLM",
        "https://github.com/WeOpenML/PandaLM",
        frozenset({"instruction", "response1", "annotator1"}),
        _convert,
    ),
)
