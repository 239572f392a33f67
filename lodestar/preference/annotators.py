"""Whether to believe them: each annotator against the others, on gold items, and by how they click.

    marks = marks_of(campaign, items, judgements)
    for person in assess(marks): print(person.name, person.agreement, person.doubts)

Doubts are sequential: they may be looked at after every judgement, and an annotator who clicks honestly is doubted at
any time at all with probability ``ALARM`` at most per test (Ville's inequality: a likelihood ratio, or a mixture of
ratios, is a martingale under the hypothesis in its denominator). What "honestly" means is the denominator:

    side      picks of the first-shown reply are Bernoulli ½, as replies are shuffled; against a mixture of other rates
              by Beta(½, ½) (Robbins 1970)
    chance    agrees with what others (or gold) say at least at the rate p₀ = ½ + KEEN·(p − ½), where p is the others'
              rate; against ½, what random clicks give (Wald 1945). Who is honest but agrees less than p₀ is doubted too
    run       the same answer, as shown, L times in a row at the n-th judgement, qᴸ⁻¹ < ALARM·6/(π²n²), where q is the
              others' share of their commonest answer; the bounds add up to ALARM over all n
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lodestar.evaluation import WinRate, clopper_pearson

ALARM = 0.02
"""Largest probability, per test and annotator, of ever doubting somebody whose hypothesis holds."""
KEEN = 0.7
"""Share of the others' agreement beyond chance that still counts as honest."""
ENOUGH = 30
"""Comparisons among the others, before their rate of agreement is believed."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One judgement, reduced to what can be compared: ``Mark("ada", "17", {"17": 1.0}, side=1, answer="A")``."""

    annotator: str
    item: str
    values: Mapping[str, float]
    """What was judged (a pair, a completion's rating) → its value, 0 … 1."""
    side: int = 0
    """1 where the reply shown first was preferred, −1 where the last was, 0 for neither."""
    answer: str = ""
    """As it was given, in the order shown: what a straight-liner repeats."""
    seconds: float = 0.0
    expected: Mapping[str, float] = field(default_factory=dict)
    """The values that are known to be right, of gold items."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """``Doubt("side", 12, "…")``: which test, after how many judgements, and a sentence for the lead."""

    test: str
    after: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is known of one annotator."""

    name: str
    judgements: int
    agreement: WinRate
    """Share of comparisons with the others' mean that point the same way; n = 0 where nothing was judged twice."""
    gold: WinRate
    """The same with gold answers."""
    first: WinRate
    """Share of decided comparisons in which the reply shown first was preferred."""
    longest_run: int
    """Of equal answers, as shown."""
    median_seconds: float | None
    """None where no time is known."""
    doubts: tuple[Doubt, ...]


def assess(marks: Sequence[Mark]) -> list[Assessment]:
    """Every annotator, in the order of their first mark."""
    by_person: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        by_person[mark.annotator].append(mark)
    said = _said(marks)
    hits = {name: _hits(name, own, said) for name, own in by_person.items()}
    golds = {name: [_gold_hits(mark) for mark in own] for name, own in by_person.items()}
    return [_assessment(name, own, by_person, hits, golds) for name, own in by_person.items()]


def side_evidence(firsts: int, decided: int) -> float:
    """log of the mixture's likelihood ratio: ∫ pᵏ(1−p)ⁿ⁻ᵏ dBeta(½, ½)(p) ÷ 2⁻ⁿ."""
    return _log_beta(firsts + 0.5, decided - firsts + 0.5) - _log_beta(0.5, 0.5) + decided * math.log(2)


def chance_evidence(hit: bool, honest: float) -> float:
    """log of ½ ÷ what an honest annotator of this rate does."""
    return math.log(0.5 / (honest if hit else 1 - honest))


def _assessment(
    name: str,
    own: Sequence[Mark],
    by_person: Mapping[str, Sequence[Mark]],
    hits: Mapping[str, list[list[bool]]],
    golds: Mapping[str, list[list[bool]]],
) -> Assessment:
    decided = [mark.side for mark in own if mark.side]
    flat = [hit for found in hits[name] for hit in found]
    gold = [hit for found in golds[name] for hit in found]
    times = sorted(mark.seconds for mark in own if mark.seconds > 0)
    rest = [mark for other, theirs in by_person.items() if other != name for mark in theirs]
    doubts = (
        _doubt_side(own),
        _doubt_chance(name, hits, golds),
        _doubt_run(own, rest),
    )
    return Assessment(
        name,
        len(own),
        _share(flat),
        _share(gold),
        _share([side > 0 for side in decided]),
        max(_runs(own), default=0),
        times[len(times) // 2] if times else None,
        tuple(doubt for doubt in doubts if doubt is not None),
    )


def _said(marks: Iterable[Mark]) -> dict[str, dict[str, float]]:
    said: dict[str, dict[str, float]] = defaultdict(dict)
    for mark in marks:
        for unit, value in mark.values.items():
            said[unit][mark.annotator] = value
    return said


def _hits(name: str, own: Sequence[Mark], said: Mapping[str, Mapping[str, float]]) -> list[list[bool]]:
    """By judgement: whether each value lies on the side of the middle on which the others' mean lies."""
    found = []
    for mark in own:
        row = []
        for unit, value in mark.values.items():
            others = [theirs for other, theirs in said[unit].items() if other != name]
            if others and (hit := _same_side(value, sum(others) / len(others))) is not None:
                row.append(hit)
        found.append(row)
    return found


def _gold_hits(mark: Mark) -> list[bool]:
    pairs = [(mark.values[unit], right) for unit, right in mark.expected.items() if unit in mark.values]
    return [hit for value, right in pairs if (hit := _same_side(value, right)) is not None]


def _same_side(value: float, other: float) -> bool | None:
    """None where one of the two is in the middle and says nothing."""
    if value == 0.5 or other == 0.5:
        return None
    return (value > 0.5) == (other > 0.5)


def _doubt_side(own: Sequence[Mark]) -> Doubt | None:
    firsts = decided = 0
    for count, mark in enumerate(own, start=1):
        if mark.side:
            decided, firsts = decided + 1, firsts + (mark.side > 0)
            if side_evidence(firsts, decided) >= math.log(1 / ALARM):
                which, often = ("first", firsts) if 2 * firsts > decided else ("last", decided - firsts)
                return Doubt("side", count, f"preferred the reply shown {which} in {often} of {decided} judgements")
    return None


def _doubt_chance(
    name: str, hits: Mapping[str, list[list[bool]]], golds: Mapping[str, list[list[bool]]]
) -> Doubt | None:
    honest_agree, honest_gold = (_honest(name, each) for each in (hits, golds))
    evidence, compared = 0.0, 0
    for count, (agreed, known) in enumerate(zip(hits[name], golds[name], strict=True), start=1):
        # One comparison each: the parts of one judgement are not independent of each other.
        for found, honest in ((agreed, honest_agree), (known, honest_gold)):
            if found and honest is not None:
                share = sum(found) / len(found)
                evidence += share * chance_evidence(True, honest) + (1 - share) * chance_evidence(False, honest)
                compared += 1
        if evidence >= math.log(1 / ALARM):
            return Doubt(
                "chance", count, f"agrees with others and gold like random clicks, over {compared} comparisons"
            )
    return None


def _honest(name: str, hits: Mapping[str, list[list[bool]]]) -> float | None:
    """p₀ from the other annotators' rate, each weighing the same; None while too little is known of it."""
    rates, total = [], 0
    for other, rows in hits.items():
        flat = [hit for row in rows for hit in row]
        if other != name and flat:
            rates.append(sum(flat) / len(flat))
            total += len(flat)
    if total < ENOUGH:
        return None
    usual = sorted(rates)[len(rates) // 2]  # the median: one more random clicker must not lower the bar
    return 0.5 + KEEN * (usual - 0.5) if usual > 0.5 else None


def _doubt_run(own: Sequence[Mark], rest: Sequence[Mark]) -> Doubt | None:
    if len(rest) < ENOUGH:
        return None
    shares: dict[str, int] = defaultdict(int)
    for mark in rest:
        shares[mark.answer] += 1
    share = (max(shares.values()) + 1) / (len(rest) + 2)
    length, previous = 0, None
    for count, mark in enumerate(own, start=1):
        length = length + 1 if mark.answer == previous else 1
        previous = mark.answer
        if share ** (length - 1) < ALARM * 6 / (math.pi * count) ** 2:
            return Doubt("run", count, f"gave the same answer {length} times in a row")
    return None


def _runs(own: Sequence[Mark]) -> list[int]:
    runs: list[int] = []
    previous = None
    for mark in own:
        if runs and mark.answer == previous:
            runs[-1] += 1
        else:
            runs.append(1)
        previous = mark.answer
    return runs


def _share(hits: Sequence[bool]) -> WinRate:
    return clopper_pearson(sum(hits), len(hits)) if hits else WinRate(0.5, 0.0, 1.0, 0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
