"""Anthropic's red-team attempts: dialogues rated 0 … 4 by how far they broke the assistant (Ganguli et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need
from lodestar.data.hh import parse_dialogue
from lodestar.data.verdicts import Row, number


def _convert(row: Row) -> Iterator[Converted]:
    messages = [{"role": one.role, "content": one.content} for one in parse_dialogue(need(row, "transcript", str))]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    rating = number(row["rating"], "rating")
    yield {
        "completions": [messages],
        "ratings": {"harmless": [4 - rating]},
        "scales": {"harmless": [0, 4]},
    }


FORMATS = (
    Format(
        "red-team attempts",
        "https://github.com/anthropics/hh-rlhf#red-team-data",
        frozenset({"transcript", "rating", "min_harmlessness_score_transcript"}),
        _convert,
        leaves="a rating of the whole dialogue is read as one of its last reply; words after that are left out",
    ),
)
