"""How far annotators agree: Krippendorff's alpha, and each one's agreement with the others."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lodestar.preference.pairs import choices
from lodestar.records import Feedback, Ratings

Level = Literal["nominal", "ordinal", "interval"]
Units = Mapping[str, Sequence[tuple[str, float]]]
"""What was judged → (annotator, value) of everybody who judged it."""


def krippendorff_alpha(units: Iterable[Sequence[float]], level: Level) -> float | None:
    """1 − observed / expected disagreement (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Each unit lists the values that its judges gave, in any order; units with fewer than two say nothing. 1 is perfect
    agreement, 0 what chance gives, below 0 systematic disagreement. None where it is undefined: nothing was judged
    twice, or all values are the same. Distances: nominal [a ≠ b]; interval (a − b)²; ordinal (Σ_{a…b} n − (n_a +
    n_b)/2)², with n the frequencies of the values between.
    """
    pairable = [list(unit) for unit in units if len(unit) > 1]
    totals: dict[float, float] = defaultdict(float)
    together: dict[tuple[float, float], float] = defaultdict(float)
    for unit in pairable:
        for i, one in enumerate(unit):
            totals[one] += 1
            for j, other in enumerate(unit):
                if i != j:
                    together[one, other] += 1 / (len(unit) - 1)
    n = sum(totals.values())
    distance = _distances(totals, level)
    expected = sum(totals[a] * totals[b] * distance[a, b] for a in totals for b in totals)
    if not expected:
        return None
    observed = sum(weight * distance[pair] for pair, weight in together.items())
    return 1 - (n - 1) * observed / expected


def alpha_interval(
    units: Iterable[Sequence[float]], level: Level, *, seed: int = 0, resamples: int = 1000
) -> tuple[float, float] | None:
    """95% percentile bootstrap over units of :func:`krippendorff_alpha`; None where that is None.

    Values of few kinds (a scale's steps) are assumed: a unit is kept as its counts of pairs of values.
    """
    pairable = [list(unit) for unit in units if len(unit) > 1]
    if krippendorff_alpha(pairable, level) is None:
        return None
    values = sorted({value for unit in pairable for value in unit})
    place = {value: i for i, value in enumerate(values)}
    together_UVV = np.zeros((len(pairable), len(values), len(values)))
    for u, unit in enumerate(pairable):
        for i, one in enumerate(unit):
            for j, other in enumerate(unit):
                if i != j:
                    together_UVV[u, place[one], place[other]] += 1 / (len(unit) - 1)
    drawn_RU = np.random.default_rng(seed).multinomial(
        len(pairable), np.full(len(pairable), 1 / len(pairable)), resamples
    )
    together_RVV = np.tensordot(drawn_RU, together_UVV, axes=1)
    found = []
    for together_VV in together_RVV:
        totals_V = together_VV.sum(1)
        apart = _distances(dict(zip(values, totals_V.tolist(), strict=True)), level)
        apart_VV = np.array([[apart[a, b] for b in values] for a in values])
        expected = totals_V @ apart_VV @ totals_V
        if expected:
            found.append(1 - (totals_V.sum() - 1) * float((together_VV * apart_VV).sum()) / float(expected))
    if not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return low, high


def _distances(totals: Mapping[float, float], level: Level) -> dict[tuple[float, float], float]:
    values = sorted(totals)
    found = {}
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if level == "nominal":
                found[a, b] = float(a != b)
            elif level == "interval":
                found[a, b] = (a - b) ** 2
            else:
                between = sum(totals[value] for value in values[min(i, j) : max(i, j) + 1])
                found[a, b] = (between - (totals[a] + totals[b]) / 2) ** 2 if i != j else 0.0
    return found


def judged_pairs(feedback: Iterable[Feedback]) -> dict[str, list[tuple[str, float]]]:
    """Labels by pair of completions, whichever way round a row has them."""
    units: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for record in feedback:
        for choice in choices(record):
            first, second = record.completions[choice.first], record.completions[choice.second]
            turned = first > second
            key = _key(record.prompt, *sorted((first, second)))
            units[key].append((record.annotator, 1 - choice.label if turned else choice.label))
    return units


def judged_ratings(feedback: Iterable[Feedback]) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """Aspect → ratings by completion."""
    aspects: dict[str, dict[str, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in feedback:
        if isinstance(record.verdict, Ratings):
            for name, values in record.verdict.aspects.items():
                for completion, value in zip(record.completions, values, strict=True):
                    if value is not None:
                        aspects[name][_key(record.prompt, completion)].append((record.annotator, value))
    return aspects


def agreement(feedback: Sequence[Feedback]) -> dict[str, float]:
    """Krippendorff's alpha of what more than one annotator judged: ``pairs`` (ordinal), and every aspect (interval).

    Which completion of a pair is the first means nothing, so every pair counts both ways round.
    """
    alphas = {} if _rated_only(feedback) else {"pairs": _alpha(_both_ways(judged_pairs(feedback)), "ordinal")}
    alphas |= {name: _alpha(units, "interval") for name, units in judged_ratings(feedback).items()}
    return {name: alpha for name, alpha in alphas.items() if alpha is not None}


def reliabilities(feedback: Sequence[Feedback]) -> dict[str, float]:
    """Each annotator's weight by agreement: 1 − his mean |label − mean label of the others| ÷ what chance gives, ≥ 0.

    Chance is the same distance between labels of different pairs, that is, what an annotator who ignores the
    completions would have; every pair counts both ways round. Those who share no pair with another get the mean of the
    rest; the mean over all is 1.
    """
    everybody = [_once(votes) for votes in _both_ways(judged_pairs(feedback)).values()]
    units = [votes for votes in everybody if len(votes) > 1]
    distances: dict[str, list[float]] = defaultdict(list)
    own: list[list[float]] = []
    others: list[list[float]] = []
    for votes in units:
        total = sum(label for _, label in votes)
        own.append([label for _, label in votes])
        others.append([(total - label) / (len(votes) - 1) for label in own[-1]])
        for (name, label), mean in zip(votes, others[-1], strict=True):
            distances[name].append(abs(label - mean))
    chance = _distance_between(own, others)
    known = {name: max(0.0, 1 - sum(far) / len(far) / chance) if chance else 1.0 for name, far in distances.items()}
    usual = sum(known.values()) / len(known) if known else 1.0
    if not usual:
        return {record.annotator: 1.0 for record in feedback}
    return {record.annotator: known.get(record.annotator, usual) / usual for record in feedback}


def _distance_between(own: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Mean |a − b| of a label and a mean of others' labels that are of different units; 0 of fewer than two units."""
    labels, means = (Counter(value for unit in values for value in unit) for values in (own, others))
    everything = sum(n * m * abs(a - b) for a, n in labels.items() for b, m in means.items())
    within = sum(abs(a - b) for one, other in zip(own, others, strict=True) for a in one for b in other)
    count = labels.total() * means.total() - sum(len(unit) ** 2 for unit in own)
    return (everything - within) / count if count else 0.0


def _both_ways(units: Units) -> dict[tuple[str, bool], Sequence[tuple[str, float]]]:
    """Every pair as it is, and turned."""
    turned = {(key, True): [(name, 1 - label) for name, label in votes] for key, votes in units.items()}
    return {(key, False): votes for key, votes in units.items()} | turned


def _alpha(units: Mapping[Any, Sequence[tuple[str, float]]], level: Level) -> float | None:
    """Of what distinct annotators said."""
    return krippendorff_alpha(([value for _, value in _once(votes)] for votes in units.values()), level)


def _once(votes: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The first vote of each annotator: nobody agrees with himself."""
    return list(dict(reversed(votes)).items())


def _rated_only(feedback: Sequence[Feedback]) -> bool:
    return all(isinstance(record.verdict, Ratings) for record in feedback)


def _key(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
