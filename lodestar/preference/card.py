"""A reward model's card: what it is worth on feedback that no stage has seen, in plain numbers for card.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from lodestar.evaluation import bounded_mean, spread
from lodestar.feedback.rows import GROUP
from lodestar.preference.agreement import agreement
from lodestar.preference.baselines import BagOfWords, length_differences
from lodestar.preference.calibration import (
    calibration_noise,
    calibration_offset,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from lodestar.preference.pairs import choices, comparisons
from lodestar.preference.statistics import (
    accuracy,
    accuracy_difference,
    correlation,
    equal_parts,
    kendall_tau,
    spearman,
)
from lodestar.records import Comparison, Feedback, Ratings

HISTOGRAM_BINS = 30
LENGTH_BINS = 10
SUBSETS = 24
"""Largest subsets, and groups, that get a line of their own."""


@dataclass(frozen=True)
class Judged:
    """Feedback with the model's score of every completion, one after another, and its length in tokens."""

    feedback: Sequence[Feedback]
    scores: Sequence[float]
    lengths: Sequence[int]
    aspects: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Scores of the Likert heads, likewise."""
    deviations: Sequence[float] | None = None
    """Standard deviation over the ensemble's members, as it is served: population, divided by their number."""

    @cached_property
    def starts(self) -> list[int]:
        """Number of each row's first completion."""
        return [0, *accumulate(len(record.completions) for record in self.feedback)]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every pair that was judged."""
        return comparisons(self.feedback)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Numbers of the two completions of each comparison."""
        return [
            (start + choice.first, start + choice.second)
            for start, record in zip(self.starts, self.feedback, strict=False)
            for choice in choices(record)
        ]

    @cached_property
    def differences(self) -> list[float]:
        """Score of the first completion less that of the second."""
        return [self.scores[first] - self.scores[second] for first, second in self.pairs]


def make_card(
    train: Sequence[Comparison],
    judged: Judged,
    demonstration_scores: Sequence[float],
    held_out: Judged | None = None,
) -> dict[str, Any]:
    """The card of a model on ``judged``, beside baselines fitted to ``train``, which the model was trained on.

    Without demonstrations it has no offset. The temperature of its probabilities is fitted to ``held_out``. Accuracies
    leave ties out and carry 95% intervals.

    Nothing hangs on the order in which rows, or the completions of a row, are written.
    """
    rows, differences = judged.comparisons, judged.differences
    labels = [row.label for row in rows]
    prompts = [row.prompt for row in rows]
    card: dict[str, Any] = {
        "pairs": len(rows),
        "ties": sum(label == 0.5 for label in labels),
        "accuracy": asdict(accuracy(differences, labels, prompts)),
    }
    if rows:
        longer, words = length_differences(rows), BagOfWords(train).differences(rows)
        baselines = {"longer_is_better": longer, "bag_of_words": words}
        card |= {
            "baselines": {name: asdict(accuracy(theirs, labels, prompts)) for name, theirs in baselines.items()},
            "against_baselines": {
                name: asdict(accuracy_difference(differences, theirs, labels, prompts))
                for name, theirs in baselines.items()
            },
            "subsets": _subsets(rows, {"model": differences, **baselines}),
            "by_confidence": _by(rows, differences, _confidences(rows), "confidence"),
            "by_length_difference": _by_length_difference(judged),
            "calibration": _calibration(differences, labels, held_out),
        }
    card |= {
        "scores": _histogram(judged.scores),
        "score_by_length": _score_by_length(judged),
        "offset": calibration_offset(demonstration_scores) if demonstration_scores else None,
        "agreement": agreement(judged.feedback),
    }
    if groups := _groups(judged):
        card["groups"] = groups
    if tau := _taus(judged):
        card["kendall_tau"] = tau
    if judged.aspects:
        card["aspects"] = _aspects(judged)
    if judged.deviations is not None and rows:
        card["ensemble"] = _ensemble(judged)
    gaps = [row.gap for row in rows if row.gap is not None]
    if rows and len(gaps) == len(rows):
        truth = [0.5 if gap == 0 else float(gap > 0) for gap in gaps]
        card["gold"] = {
            "model": asdict(accuracy(differences, truth, prompts)),
            "annotators": asdict(accuracy([label - 0.5 for label in labels], truth, prompts)),
        }
    return card


def _calibration(differences: Sequence[float], labels: Sequence[float], held_out: Judged | None) -> dict[str, Any]:
    """Scaled only by a temperature that the held-out pairs support; ends that they leave open are None."""
    found: dict[str, Any] = _reliability(differences, labels)
    if held_out is not None and held_out.comparisons:
        rows = held_out.comparisons
        fitted = fit_temperature(held_out.differences, [row.label for row in rows], [row.prompt for row in rows])
        found["temperature"] = fitted.value if math.isfinite(fitted.value) else None
        found["temperature_low"] = fitted.low if math.isfinite(fitted.low) else None
        found["temperature_high"] = fitted.high if math.isfinite(fitted.high) else None
        if fitted.supported:
            found["scaled"] = _reliability([difference / fitted.value for difference in differences], labels)
    return found


def _reliability(differences: Sequence[float], labels: Sequence[float]) -> dict[str, Any]:
    bins = reliability(differences, labels)
    return {
        "ece": expected_calibration_error(bins),
        "ece_of_chance": calibration_noise(bins),
        "bins": [asdict(one) for one in bins],
    }


def _subsets(rows: Sequence[Comparison], opinions: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Accuracy of the model and the baselines on each named part of the data, the largest first."""
    members: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row.subset, []).append(i)
    largest = sorted(members.items(), key=lambda item: -len(item[1]))[:SUBSETS]
    if len(largest) < 2:
        return {}
    return {
        name: {
            who: asdict(
                accuracy([theirs[i] for i in chosen], [rows[i].label for i in chosen], [rows[i].prompt for i in chosen])
            )
            for who, theirs in opinions.items()
        }
        for name, chosen in largest
    }


def _groups(judged: Judged) -> dict[str, Any]:
    """Whose preferences were learned: accuracy on what each declared group said, and how far its members agree."""
    members: dict[str, list[int]] = {}
    for number, record in enumerate(judged.feedback):
        for flag in record.flags:
            if flag.startswith(GROUP):
                members.setdefault(flag.removeprefix(GROUP), []).append(number)
    ends = [0, *accumulate(len(choices(record)) for record in judged.feedback)]
    found = {}
    for name, records in sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))[:SUBSETS]:
        chosen = [pair for number in records for pair in range(ends[number], ends[number + 1])]
        rows = [judged.comparisons[pair] for pair in chosen]
        rate = accuracy(
            [judged.differences[pair] for pair in chosen], [row.label for row in rows], [row.prompt for row in rows]
        )
        found[name] = {"accuracy": asdict(rate), "agreement": agreement([judged.feedback[i] for i in records])}
    return found


def _confidences(rows: Sequence[Comparison]) -> list[str]:
    """How clear the annotators were: by strength where one was given, else by the share of votes."""
    if any(row.strength for row in rows):
        grades = sorted({row.strength for row in rows})
        if len(grades) <= 6:
            return [f"strength {row.strength:g}" for row in rows]
        cuts = [grades[len(grades) * part // 3] for part in (1, 2)]
        names = ("least clear third", "middle third", "clearest third")
        return [names[sum(row.strength >= cut for cut in cuts)] for row in rows]
    return [f"{max(row.label, 1 - row.label):.0%} of votes" for row in rows]


def _by(rows: Sequence[Comparison], differences: Sequence[float], names: Sequence[str], what: str) -> list[Any]:
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if rows[i].label != 0.5:
            members.setdefault(name, []).append(i)
    return [
        {
            what: name,
            **asdict(
                accuracy(
                    [differences[i] for i in chosen], [rows[i].label for i in chosen], [rows[i].prompt for i in chosen]
                )
            ),
        }
        for name, chosen in sorted(members.items())
    ]


def _by_length_difference(judged: Judged) -> list[dict[str, Any]]:
    """Accuracy of pairs from "the winner is much shorter" to "much longer", in fifths; equal ones stay together."""
    rows = judged.comparisons
    longer = [
        (judged.lengths[first] - judged.lengths[second]) * (1 if row.label > 0.5 else -1)
        for (first, second), row in zip(judged.pairs, rows, strict=True)
    ]
    decided = [i for i, row in enumerate(rows) if row.label != 0.5]
    parts = equal_parts([longer[i] for i in decided], 5)
    return [
        {
            "winner_longer_by": sum(longer[i] for i in part) / len(part),
            **asdict(
                accuracy(
                    [judged.differences[i] for i in part],
                    [rows[i].label for i in part],
                    [rows[i].prompt for i in part],
                )
            ),
        }
        for part in ([decided[i] for i in part] for part in parts if part)
    ]


def _taus(judged: Judged) -> dict[str, Any] | None:
    """Kendall's τ_b between scores and verdict in each group of three and more, averaged; over the pairs judged."""
    taus, prompts = [], []
    for start, record in zip(judged.starts, judged.feedback, strict=False):
        pairs = choices(record)
        if len({index for pair in pairs for index in (pair.first, pair.second)}) < 3:
            continue
        scores = judged.scores[start : start + len(record.completions)]
        tau = kendall_tau([scores[p.first] - scores[p.second] for p in pairs], [p.label for p in pairs])
        if tau is not None:
            taus.append(tau)
            prompts.append(record.prompt)
    return asdict(bounded_mean(taus, prompts, low=-1.0, high=1.0)) if taus else None


def _aspects(judged: Judged) -> dict[str, Any]:
    """How each Likert head's scores follow the ratings."""
    found = {}
    for name, scores in judged.aspects.items():
        points = [
            (scores[start + i], value)
            for start, record in zip(judged.starts, judged.feedback, strict=False)
            if isinstance(record.verdict, Ratings)
            for i, value in enumerate(record.verdict.aspects.get(name, ()))
            if value is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            found[name] = {"n": len(points), "spearman": spearman(x, y), "pearson": correlation(x, y)}
    return found


def _ensemble(judged: Judged) -> dict[str, Any]:
    """Mean disagreement, and accuracy where the members agree most and least."""
    assert judged.deviations is not None
    deviations = judged.deviations
    doubt = [deviations[first] + deviations[second] for first, second in judged.pairs]
    rows = judged.comparisons
    decided = [i for i, row in enumerate(rows) if row.label != 0.5]
    parts = equal_parts([doubt[i] for i in decided], 3)
    named = zip(("surest third", "middle third", "most doubtful third"), parts, strict=True)
    return {
        "mean_standard_deviation": sum(deviations) / len(deviations),
        "by_doubt": [
            {
                "doubt": name,
                **asdict(
                    accuracy(
                        [judged.differences[i] for i in part],
                        [rows[i].label for i in part],
                        [rows[i].prompt for i in part],
                    )
                ),
            }
            for name, part in ((name, [decided[i] for i in part]) for name, part in named if part)
        ],
    }


def _histogram(scores: Sequence[float]) -> dict[str, Any]:
    least, most = min(scores), max(scores)
    width = (most - least) / HISTOGRAM_BINS or 1.0
    counts = [0] * HISTOGRAM_BINS
    for score in scores:
        counts[min(HISTOGRAM_BINS - 1, int((score - least) / width))] += 1
    figures = spread(scores)
    return {
        "mean": figures.mean,
        "standard_deviation": figures.standard_deviation,
        "edges": [least + i * width for i in range(HISTOGRAM_BINS + 1)],
        "counts": counts,
    }


def _score_by_length(judged: Judged) -> dict[str, Any]:
    """Pearson's correlation, and the mean score of tenths of the completions from the shortest to the longest."""
    parts = [part for part in equal_parts(judged.lengths, LENGTH_BINS) if part]
    return {
        "correlation": correlation(judged.lengths, judged.scores),
        "bins": [
            {
                "tokens": sum(judged.lengths[i] for i in part) / len(part),
                "score": sum(judged.scores[i] for i in part) / len(part),
                "n": len(part),
            }
            for part in parts
        ],
    }
