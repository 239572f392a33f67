"""How far a judge and people agree, on pairs that both have judged.

Which reply of a pair is the first means nothing, so each pair counts both ways round: both sides then choose the first
half of the time, chance agrees on ½, and Cohen's κ (1960) is (a − ½)/(1 − ½) = 2a − 1, where a is the share of pairs on
which they agree. Its interval is that of a, moved likewise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lodestar.labelling.port import Question
from lodestar.preference.pairs import comparisons
from lodestar.preference.statistics import accuracy
from lodestar.records import Comparison, Feedback


def shared_pairs(said: Sequence[Feedback], count: int, seed: int) -> dict[str, Comparison]:
    """At most so many pairs on which people decided, drawn by the seed: ``shared-0`` and so on."""
    decided = [pair for pair in comparisons(said) if pair.label != 0.5]
    drawn = random.Random(seed).sample(decided, min(count, len(decided)))
    return {f"shared-{number}": pair for number, pair in enumerate(drawn)}


def asked_of(pairs: dict[str, Comparison]) -> list[Question]:
    """The same as a judge is asked."""
    return [Question(name, pair.prompt, pair.completions) for name, pair in pairs.items()]


def agreement_with(pairs: dict[str, Comparison], judged: Sequence[Feedback]) -> dict[str, Any]:
    """``agreement`` (share of pairs, an even judge counting ½) and ``kappa``, each {value, low, high}, of ``n`` pairs
    that the judge had an answer to; intervals are over prompts."""
    sides, labels, prompts = [], [], []
    for row in judged:
        pair, choice = pairs[row.id], row.verdict[0]  # type: ignore[index]
        sides.append(choice.label - 0.5)
        labels.append(pair.label)
        prompts.append(pair.prompt)
    share = asdict(accuracy(sides, labels, prompts))
    n = share.pop("n")
    return {"n": n, "agreement": share, "kappa": {name: 2 * value - 1 for name, value in share.items()}}
