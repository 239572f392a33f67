"""Which of an evaluation's samples a person is shown: spread over what they gained, never picked by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def judgement(reply: Row, judge: str) -> float:
    """The number by which a reply was compared."""
    return float(reply["gold"] if judge == "gold" else reply["score"])


def gain(row: Row, judge: str) -> float:
    """By how much the judge likes the reply after training better than the one before."""
    return judgement(row["after"], judge) - judgement(row["before"], judge)


def spread(rows: Iterable[Row], judge: str, count: int) -> list[dict[str, Any]]:
    """So many rows that have both replies, with their ``gain``: in even steps from the largest to the largest loss."""
    ordered = sorted((row for row in rows if "after" in row), key=lambda row: gain(row, judge), reverse=True)
    count = min(count, len(ordered))
    if count > 1:
        ordered = [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]
    return [{**row, "gain": gain(row, judge)} for row in ordered[:count]]
