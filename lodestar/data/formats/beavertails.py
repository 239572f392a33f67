"""PKU-SafeRLHF's pairs (Ji et al. 2024) and BeaverTails' judged answers (Ji et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, one_of, pair, user
from lodestar.data.verdicts import Row

_LABELS = {0: 1.0, 1: 0.0}


def _pairs(row: Row) -> Iterator[Converted]:
    """``better_response_id`` is the more helpful one; safety is a flag of each response."""
    unsafe = [i for i in (0, 1) if row.get(f"is_response_{i}_safe") is False]
    yield pair(
        user(row.get("prompt")),
        row["response_0"],
        row["response_1"],
        one_of(row.get("better_response_id"), "better_response_id", _LABELS),
        flags=[f"completion {i} unsafe" for i in unsafe],
    )


def _judged(row: Row) -> Iterator[Converted]:
    if not isinstance(row["is_safe"], bool):
        raise ValueError(f"is_safe must be true or false, got {row['is_safe']!r}")
    yield {"prompt": user(row.get("prompt")), "completion": row.get("response"), "label": row["is_safe"]}


FORMATS = (
    Format(
        "PKU-SafeRLHF",
        "https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
        frozenset({"prompt", "response_0", "response_1", "better_response_id"}),
        _pairs,
        leaves="which response is safer is another verdict than which is better: to train on it, map "
        "better_response_id to safer_response_id in data.columns",
    ),
    Format(
        "BeaverTails",
        "https://huggingface.co/datasets/PKU-Alignment/BeaverTails",
        frozenset({"prompt", "response", "is_safe"}),
        _judged,
    ),
)
