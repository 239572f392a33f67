"""Votes between two models: Chatbot Arena's and MT-bench's (Zheng et al. 2023)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, embedded, need, one_of, pair
from lodestar.data.verdicts import Row

LABELS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "both_bad": 0.5, "bothbad": 0.5}
"""``winner`` → probability that model_a is better."""
BOTH_BAD = ("tie (bothbad)", "both_bad", "bothbad")


def _votes(row: Row) -> Iterator[Converted]:
    """A vote on turn t is about the conversation up to its t-th answer."""
    first, second = (_until(need(row, f"conversation_{side}", list), row.get("turn")) for side in "ab")
    winner = row.get("winner")
    yield pair(
        None,
        first,
        second,
        one_of(winner, "winner", LABELS),
        annotator=_name(row.get("judge")),
        subset=_models(row),
        id=row.get("question_id"),
        flags=["both bad"] if winner in BOTH_BAD else [],
    )


def is_vote(columns: Collection[str]) -> bool:
    """Whether these are the columns of a vote between two models, with or without what they said."""
    return {"model_a", "model_b"} <= set(columns) and bool({"winner", "winner_model_a"} & set(columns))


def vote_label(row: Row) -> float:
    """Probability that model_a is better.

    Raises:
        ValueError: the vote is none that is known.
    """
    return float(one_of(row["winner"], "winner", LABELS)) if "winner" in row else _winner(row)


def _until(conversation: list[Any], turn: Any) -> list[Any]:
    return conversation[: 2 * turn] if isinstance(turn, int) and turn > 0 else conversation


def _name(judge: Any) -> str:
    return "/".join(map(str, judge)) if isinstance(judge, list) else str(judge or "")


def _models(row: Row) -> str:
    return " against ".join(sorted(str(row.get(f"model_{side}")) for side in "ab"))


def _table(row: Row) -> Iterator[Converted]:
    """Turns in lists: prompts, and each model's responses."""
    prompts = embedded(row, "prompt", list)
    sides = []
    for side in "ab":
        responses = embedded(row, f"response_{side}", list)
        if len(responses) != len(prompts):
            raise ValueError(f"response_{side} has {len(responses)} turns, prompt has {len(prompts)}")
        turns: list[dict[str, Any]] = []
        for prompt, response in zip(prompts, responses, strict=True):
            turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        sides.append(turns)
    yield pair(None, sides[0], sides[1], _winner(row), subset=_models(row), id=row.get("id"))


def _winner(row: Row) -> float:
    won = [str(row.get(name)) in ("1", "1.0", "True") for name in ("winner_model_a", "winner_model_b", "winner_tie")]
    if sum(won) != 1:
        raise ValueError("one of winner_model_a, winner_model_b and winner_tie must be 1")
    return (1.0, 0.0, 0.5)[won.index(True)]


FORMATS = (
    Format(
        "Arena votes",
        "https://huggingface.co/datasets/lmsys/chatbot_arena_conversations",
        frozenset({"model_a", "model_b", "winner", "conversation_a", "conversation_b"}),
        _votes,
    ),
    Format(
        "Arena votes (55k)",
        "https://huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k",
        frozenset({"model_a", "model_b", "response_a", "response_b", "winner_model_a", "winner_tie"}),
        _table,
    ),
)
