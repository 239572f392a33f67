"""What stands beside the completions of a row (schema.py): label, choices, ranking or ratings; checked and written."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from lodestar.records import Choice, Ranking, Ratings

Row = Mapping[str, Any]
LIKERT = (1.0, 5.0)
SCALES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "helpful",
            "helpfulness",
            "honest",
            "honesty",
            "harmless",
            "harmlessness",
            "correctness",
            "truthfulness",
            "coherence",
            "consistency",
            "fluency",
            "relevance",
            "quality",
            "overall",
            "instruction_following",
        ),
        LIKERT,
    ),
    "approval": (0.0, 1.0),
}
"""Scales of the aspects that a row need not declare in "scales"."""


def parse_verdict(form: str, row: Row, count: int) -> tuple[Choice, ...] | Ranking | Ratings:
    """The verdict of a row of the given form (schema.form_of) about ``count`` completions.

    Raises:
        ValueError: what is wrong, with the field.
    """
    match form:
        case "chosen and rejected":
            label = _label(row, "label") if row.get("label") is not None else _label_of_scores(row)
            return (Choice(0, 1, label, _strength(row)),)
        case "completion and label":
            return Ratings({"approval": (_liked(row["label"]),)}, {"approval": SCALES["approval"]})
        case "label":
            label = _label(row, "label")
            if count != 2:
                raise ValueError(f"label is for two completions, there are {count}; use ranking, choices or ratings")
            return (Choice(0, 1, label, _strength(row)),)
        case "choices":
            return _choices(row["choices"], count)
        case "ranking":
            return _ranking(row["ranking"], count)
        case _:
            return _ratings(row, count)


def verdict_row(verdict: tuple[Choice, ...] | Ranking | Ratings) -> dict[str, Any]:
    """The verdict's part of a row in normal form."""
    match verdict:
        case Ranking(order):
            return {"ranking": [tied[0] if len(tied) == 1 else list(tied) for tied in order]}
        case Ratings(aspects, scales, compared_by):
            return {
                "ratings": {name: list(values) for name, values in aspects.items()},
                "scales": {name: list(scale) for name, scale in scales.items()},
            } | ({"compared_by": list(compared_by)} if compared_by else {})
        case (Choice(0, 1, label, strength),):
            return {"label": label} | ({"strength": strength} if strength else {})
        case _:
            return {
                "choices": [
                    {"first": one.first, "second": one.second, "label": one.label, "strength": one.strength}
                    for one in verdict
                ]
            }


def number(value: Any, name: str) -> float:
    """A real number, NaN refused.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        raise ValueError(f"{name} is missing")
    found = value
    if isinstance(value, str):  # a cell of a CSV file, and numbers that some sets write as strings
        try:
            found = float(value)
        except ValueError:
            found = None
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
        raise ValueError(f"{name} must be a number, got {value!r}")
    try:
        return float(found)
    except OverflowError:
        raise ValueError(f"{name} is too large a number") from None


def _liked(value: Any) -> float:
    """1 for what was liked, 0 for what was not: true and false, 1 and 0, or these words in a CSV file."""
    known = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    if isinstance(value, bool | int | float | str) and str(value).strip().lower() in known:
        return known[str(value).strip().lower()]
    raise ValueError(f"label must be true or false, or 1 or 0, got {value!r}")


def _label_of_scores(row: Row) -> float:
    """1, or 0.5 where the scores of chosen and rejected are equal.

    Raises:
        ValueError: the rejected one has the better score: the row contradicts itself.
    """
    if row.get("score_chosen") is None or row.get("score_rejected") is None:
        return 1.0
    chosen, rejected = number(row["score_chosen"], "score_chosen"), number(row["score_rejected"], "score_rejected")
    if chosen < rejected:
        raise ValueError(
            f"score_chosen {chosen:g} is below score_rejected {rejected:g}: which is better? If low scores are "
            "good, leave both out by data.ignore; if they are swapped, map them in data.columns: "
            "{score_chosen: score_rejected, score_rejected: score_chosen}"
        )
    return 0.5 if chosen == rejected else 1.0


def _label(row: Row, name: str) -> float:
    label = number(row.get("label"), name)
    if not 0 <= label <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {label}")
    return label


def _strength(row: Row) -> float:
    if row.get("strength") is not None:
        strength = number(row["strength"], "strength")
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength must be 0 or more, got {strength}")
        return strength
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        return abs(number(row["score_chosen"], "score_chosen") - number(row["score_rejected"], "score_rejected"))
    return 0.0


def _choices(rows: Any, count: int) -> tuple[Choice, ...]:
    if not isinstance(rows, list) or not rows:
        raise ValueError("choices must be a list of {first, second, label}")
    found = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"choices[{i}] must be an object {{first, second, label}}")
        first, second = (_index(row.get(side), f"choices[{i}].{side}", count) for side in ("first", "second"))
        if first == second:
            raise ValueError(f"choices[{i}] compares completion {first} with itself")
        found.append(Choice(first, second, _label(row, f"choices[{i}].label"), _strength(row)))
    pairs = [frozenset((choice.first, choice.second)) for choice in found]
    if len(set(pairs)) < len(pairs):
        raise ValueError("choices has a pair twice; one annotator judges a pair once")
    return tuple(found)


def _ranking(value: Any, count: int) -> Ranking:
    if not isinstance(value, list) or not value:
        raise ValueError("ranking must be a list of indices, best first, ties in a list: [2, [0, 3], 1]")
    order = []
    for place, tied in enumerate(value):
        members = tied if isinstance(tied, list) else [tied]
        if not members:
            raise ValueError(f"ranking[{place}] is empty")
        order.append(tuple(_index(member, f"ranking[{place}]", count) for member in members))
    seen = [index for tied in order for index in tied]
    missing = sorted(set(range(count)) - set(seen))
    repeated = sorted({index for index in seen if seen.count(index) > 1})
    for indices, what in ((missing, "misses"), (repeated, "repeats")):
        if indices:
            noun = "completion" if len(indices) == 1 else "completions"
            raise ValueError(f"ranking {what} {noun} {', '.join(map(str, indices))}")
    return Ranking(tuple(order))


def _ratings(row: Row, count: int) -> Ratings:
    given, declared = row["ratings"], row.get("scales") or {}
    if not isinstance(given, Mapping) or not given:
        raise ValueError('ratings must be an object such as {"helpful": [4, 5]}')
    if not isinstance(declared, Mapping):
        raise ValueError('scales must be an object such as {"helpful": [1, 5]}')
    aspects: dict[str, tuple[float | None, ...]] = {}
    scales: dict[str, tuple[float, float]] = {}
    for name, values in given.items():
        scales[name] = low, high = _scale(name, declared)
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"ratings.{name} must be a list of {count}, one rating per completion")
        aspects[name] = tuple(
            None if value is None else number(value, f"ratings.{name}[{i}]") for i, value in enumerate(values)
        )
        for i, value in enumerate(aspects[name]):
            if value is not None and not low <= value <= high:
                raise ValueError(f"ratings.{name}[{i}] must be between {low:g} and {high:g}, got {value:g}")
    if all(value is None for values in aspects.values() for value in values):
        raise ValueError("ratings holds no rating")
    return Ratings(aspects, scales, _compared_by(row, aspects))


def _compared_by(row: Row, aspects: Mapping[str, Any]) -> tuple[str, ...]:
    names = row.get("compared_by") or []
    if not isinstance(names, list) or any(name not in aspects for name in names):
        raise ValueError(f"compared_by must be a list of rated aspects ({', '.join(aspects)}), got {names!r}")
    return tuple(names)


def _scale(name: str, declared: Row) -> tuple[float, float]:
    scale = declared.get(name)
    if scale is None:
        if name not in SCALES:
            near = difflib.get_close_matches(name, SCALES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"ratings.{name}: unknown aspect, give its lowest and highest rating in scales{hint}")
        return SCALES[name]
    if not isinstance(scale, list) or len(scale) != 2:
        raise ValueError(f"scales.{name} must be [lowest, highest]")
    low, high = (number(value, f"scales.{name}") for value in scale)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"scales.{name} must be [lowest, highest], got [{low:g}, {high:g}]")
    return low, high


def _index(value: Any, name: str, count: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be the index of a completion, got {value!r}")
    if not 0 <= value < count:
        raise ValueError(f"{name} must be 0 … {count - 1}, the index of a completion, got {value}")
    return value
