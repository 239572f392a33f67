"""Taskmaster: contexts, one generation each, reward 0 or 1 (Byrne et al. 2019; PERL)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, embedded
from lodestar.data.verdicts import Row, number


def _convert(row: Row) -> Iterator[Converted]:
    turns = [_turn(turn) for turn in embedded(row, "context", list)]
    reward = number(row.get("reward"), "reward")
    if reward not in (0.0, 1.0):
        raise ValueError(f"reward must be 0 or 1, got {reward:g}")
    yield {
        "prompt": "\n".join([*turns, "agent:"]),
        "family": "\n".join(turns),
        "completions": [" " + _turn(embedded(row, "generation", dict)).partition(": ")[2]],
        "ratings": {"approval": [reward]},
        "id": str(row.get("conversation_id", "")),
    }


def _turn(turn: Row) -> str:
    """``user: can i get an espresso``, or the call or reply of an interface as JSON."""
    said = turn.get("text") or json.dumps(turn.get("api") or turn.get("response") or {})
    return f"{turn.get('role')}: {said}"


FORMATS = (
    Format(
        "Taskmaster rewards",
        "https://github.com/google-research-datasets/Taskmaster",
        frozenset({"context", "generation", "reward"}),
        _convert,
        rated_singly=True,
    ),
)
