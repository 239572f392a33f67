"""Helpful, honest and harmless pairs inside a judge's prompt (Askell et al. 2021; Prometheus's files, Kim et al.)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need, pair, user
from lodestar.data.verdicts import Row

_PARTS = re.compile(
    r"###The instruction to evaluate:\n(.*)\n\n###Response to evaluate:\n(.*)\n\n###Score Rubrics:", re.S
)


def _convert(row: Row) -> Iterator[Converted]:
    sides = {side: _PARTS.search(need(row, f"{side}_instruction", str)) for side in ("chosen", "rejected")}
    for side, found in sides.items():
        if found is None:
            raise ValueError(f"{side}_instruction lacks ###The instruction to evaluate or ###Response to evaluate")
    first, second = ((found[1].strip(), found[2].strip()) for found in sides.values() if found is not None)
    if first[0] != second[0]:
        raise ValueError("the instruction differs between chosen_instruction and rejected_instruction")
    yield pair(user(first[0]), first[1], second[1], 1.0, subset=str(row.get("source", "")))


FORMATS = (
    Format(
        "HHH alignment",
        "https://github.com/prometheus-eval/prometheus-eval",
        frozenset({"chosen_instruction", "rejected_instruction"}),
        _convert,
        leaves="the rubric around each response",
    ),
)
