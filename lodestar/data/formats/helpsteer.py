"""NVIDIA's HelpSteer: ratings of 1 and 2 (Wang et al. 2023, 2024), preferences of 2 and 3 (Wang et al. 2024, 2025)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need, pair, refused, signed
from lodestar.data.verdicts import Row

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Rated 0 … 4; complexity and verbosity say how a response is, not how good."""
QUALITIES = ATTRIBUTES[:3]
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _rated(row: Row) -> Iterator[Converted]:
    yield {
        "prompt": _messages(need(row, "prompt", str)),
        "completions": [row["response"]],
        "ratings": {name: [row[name]] for name in ATTRIBUTES},
        "scales": {name: [0, 4] for name in ATTRIBUTES},
        "compared_by": list(QUALITIES),
    }


def _preference(row: Row) -> Iterator[Converted]:
    label, strength = signed(row["preference_strength"], "preference_strength", most=3)
    prompt = _messages(need(row, "prompt", str))
    yield pair(prompt, row["response_1"], row["response_2"], label, strength=strength)


def _three(row: Row) -> Iterator[Converted]:
    label, strength = signed(row["overall_preference"], "overall_preference", most=3)
    prompt = need(row, "context", list)
    yield pair(prompt, row["response1"], row["response2"], label, strength=strength, subset=row.get("domain"))


def _messages(prompt: str) -> list[dict[str, str]]:
    """Turns of a prompt that NeMo's tags separate; the first is the user's and has none."""
    pieces = _TURN.split(prompt)
    turns = [("User", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    return [{"role": role.lower(), "content": text} for role, text in turns if text.strip()]


FORMATS = (
    Format(
        "HelpSteer",
        "https://huggingface.co/datasets/nvidia/HelpSteer2",
        frozenset({"prompt", "response", *ATTRIBUTES}),
        _rated,
        rated_singly=True,
    ),
    Format(
        "HelpSteer2 preferences",
        "https://huggingface.co/datasets/nvidia/HelpSteer2/tree/main/preference",
        frozenset({"prompt", "response_1", "response_2", "preference_strength"}),
        _preference,
    ),
    Format(
        "HelpSteer3 preferences",
        "https://huggingface.co/datasets/nvidia/HelpSteer3",
        frozenset({"context", "response1", "response2", "overall_preference"}),
        _three,
    ),
    Format(
        "HelpSteer3 feedback and edits",
        "https://huggingface.co/datasets/nvidia/HelpSteer3",
        frozenset({"domain", "language", "context"}),
        refused("is a row of HelpSteer3's feedback or edits, which compare nothing: use its preference part"),
    ),
)
