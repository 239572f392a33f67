"""OpenAI's fine-tuning files: preferences, and conversations with a weight on each answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, need, pair
from lodestar.data.verdicts import Row


def _preference(row: Row) -> Iterator[Converted]:
    messages = need(need(row, "input", dict), "messages", list, "input")
    if need(row, "input", dict).get("tools"):
        raise ValueError("input.tools: tools are not written into prompts here; put them into a system message")
    yield pair(messages, row["preferred_output"], row["non_preferred_output"], 1.0)


def _weighted(row: Row) -> Iterator[Converted]:
    """An answer of weight 0 is shown and not learned."""
    messages = need(row, "messages", list)
    learned = [i for i, one in enumerate(messages) if _weight(one, i) and one.get("role") == "assistant"]
    if not learned:
        raise ValueError("messages: every answer has weight 0, so that nothing is left to learn")
    for i in learned:
        yield {"messages": messages[: i + 1], "id": row.get("id")}


def _weight(message: Any, place: int) -> bool:
    weight = message.get("weight", 1) if isinstance(message, dict) else 1
    if weight not in (0, 1):
        raise ValueError(f"messages[{place}].weight must be 0 or 1, got {weight!r}")
    return bool(weight)


def _has_weights(row: Row) -> bool:
    messages = row["messages"]
    return isinstance(messages, list) and any(isinstance(one, dict) and "weight" in one for one in messages)


FORMATS = (
    Format(
        "OpenAI preferences",
        "https://platform.openai.com/docs/guides/direct-preference-optimization",
        frozenset({"input", "preferred_output", "non_preferred_output"}),
        _preference,
    ),
    Format(
        "OpenAI conversations with weights",
        "https://platform.openai.com/docs/guides/supervised-fine-tuning",
        frozenset({"messages"}),
        _weighted,
        told_by=_has_weights,
    ),
)
