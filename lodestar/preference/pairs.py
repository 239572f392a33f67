"""Feedback of every kind as comparisons of two completions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from lodestar.records import Choice, Comparison, Feedback, Ranking, Ratings


def choices(feedback: Feedback) -> tuple[Choice, ...]:
    """The pairwise choices that a verdict holds: its own, or all C(K, 2) of a ranking or of ratings.

    Equal places and equal ratings are ties (label 0.5). The strength is places apart, or the difference of overall
    ratings as a share of the scale. Pairs of the same text say nothing and are left out, as are pairs without an aspect
    that both were rated for.
    """
    return tuple(
        choice
        for choice in _choices(feedback)
        if feedback.completions[choice.first] != feedback.completions[choice.second]
    )


def comparisons(feedback: Iterable[Feedback]) -> list[Comparison]:
    """Every choice with its texts, in order."""
    return [
        Comparison(
            prompt=record.prompt,
            completions=(record.completions[choice.first], record.completions[choice.second]),
            label=choice.label,
            id=record.id,
            annotator=record.annotator,
            gap=record.gold[choice.first] - record.gold[choice.second] if record.gold is not None else None,
            strength=choice.strength,
            subset=record.subset,
        )
        for record in feedback
        for choice in choices(record)
    ]


def best(feedback: Feedback) -> str | None:
    """The completion that beats every other one it was compared with; None when none does, or nothing was compared."""
    beaten: set[int] = set()
    seen: set[int] = set()
    for choice in choices(feedback):
        seen |= {choice.first, choice.second}
        if choice.label <= 0.5:
            beaten.add(choice.first)
        if choice.label >= 0.5:
            beaten.add(choice.second)
    (*champions,) = seen - beaten
    return feedback.completions[champions[0]] if len(champions) == 1 else None


def _choices(feedback: Feedback) -> Iterator[Choice]:
    match feedback.verdict:
        case Ranking() as ranking:
            for first, second in itertools.combinations(range(len(feedback.completions)), 2):
                yield _by_value(first, second, -ranking.places[first], -ranking.places[second])
        case Ratings() as ratings:
            for first, second in itertools.combinations(range(len(feedback.completions)), 2):
                above, below = ratings.overall(first, beside=second), ratings.overall(second, beside=first)
                if above is not None and below is not None:
                    yield _by_value(first, second, above, below)
        case own:
            yield from own


def _by_value(first: int, second: int, above: float, below: float) -> Choice:
    return Choice(first, second, 0.5 if above == below else float(above > below), abs(above - below))
