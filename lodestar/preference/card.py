"""A reward model's card: what it is worth on pairs that no stage has seen, in plain numbers for card.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lodestar.evaluation import WinRate, spread, wilson
from lodestar.preference.baselines import BagOfWords, length_differences
from lodestar.preference.calibration import calibration_offset, expected_calibration_error, reliability
from lodestar.records import Comparison

HISTOGRAM_BINS = 30
LENGTH_BINS = 10


@dataclass(frozen=True, slots=True)
class Judged:
    """Comparisons with the model's scores of both completions, and their lengths in tokens."""

    comparisons: Sequence[Comparison]
    scores: Sequence[tuple[float, float]]
    lengths: Sequence[tuple[int, int]]

    @property
    def differences(self) -> list[float]:
        """Score of the first completion less that of the second."""
        return [first - second for first, second in self.scores]


def make_card(train: Sequence[Comparison], judged: Judged, demonstration_scores: Sequence[float]) -> dict[str, Any]:
    """The card of a model on ``judged``, beside baselines fitted to ``train``, which the model was trained on.

    Accuracies leave ties out and carry Wilson's 95% interval.
    """
    comparisons, differences = judged.comparisons, judged.differences
    labels = [row.label for row in comparisons]
    bins = reliability(differences, labels)
    card: dict[str, Any] = {
        "pairs": len(comparisons),
        "ties": sum(label == 0.5 for label in labels),
        "accuracy": asdict(accuracy(differences, labels)),
        "baselines": {
            "longer_is_better": asdict(accuracy(length_differences(comparisons), labels)),
            "bag_of_words": asdict(accuracy(BagOfWords(train).differences(comparisons), labels)),
        },
        "calibration": {"ece": expected_calibration_error(bins), "bins": [asdict(one) for one in bins]},
        "scores": _histogram([score for pair in judged.scores for score in pair]),
        "score_by_length": _score_by_length(judged),
        "offset": calibration_offset(demonstration_scores),
    }
    gaps = [row.gap for row in comparisons if row.gap is not None]
    if len(gaps) == len(comparisons):
        truth = [0.5 if gap == 0 else float(gap > 0) for gap in gaps]
        card["gold"] = {
            "model": asdict(accuracy(differences, truth)),
            "annotators": asdict(accuracy([label - 0.5 for label in labels], truth)),
        }
    return card


def accuracy(differences: Sequence[float], labels: Sequence[float]) -> WinRate:
    """Share of pairs whose winner has the higher score, with Wilson's interval; ties by label are left out.

    A difference of exactly 0 is half right, so that a model without an opinion gets 0.5.
    """
    outcomes = [
        0.5 if difference == 0 else float((difference > 0) == (label > 0.5))
        for difference, label in zip(differences, labels, strict=True)
        if label != 0.5
    ]
    return wilson(sum(outcomes), len(outcomes)) if outcomes else WinRate(0.5, 0.0, 1.0, 0)


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
    """Pearson's correlation, and the mean score of equally many completions from the shortest to the longest."""
    points = sorted(
        (length, score)
        for lengths, scores in zip(judged.lengths, judged.scores, strict=True)
        for length, score in zip(lengths, scores, strict=True)
    )
    bins = min(LENGTH_BINS, len(points))
    cuts = [points[len(points) * i // bins : len(points) * (i + 1) // bins] for i in range(bins)]
    return {
        "correlation": _correlation([length for length, _ in points], [score for _, score in points]),
        "bins": [
            {
                "tokens": sum(length for length, _ in cut) / len(cut),
                "score": sum(score for _, score in cut) / len(cut),
                "n": len(cut),
            }
            for cut in cuts
        ],
    }


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r; 0 where one of the two does not vary."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    scale = math.sqrt(math.fsum((a - mean_x) ** 2 for a in x) * math.fsum((b - mean_y) ** 2 for b in y))
    return covariance / scale if scale else 0.0
