"""From what each source says of a completion to one score: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from lodestar.config.rewards import SourceConfig
from lodestar.records import Score

MEMBER = "member-"
"""What the heads of an ensemble of several models begin with; of one model's heads, its labels are the members."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One source's opinion of one completion: ``Judgement(1.2, deviation=0.3)``."""

    value: float
    """The source's score, the mean over its ensemble, less its offset."""
    deviation: float = 0.0
    """Standard deviation over the ensemble."""
    heads: Mapping[str, float] = field(default_factory=dict)
    """Score per label of a model with several."""


def over_ensemble(members: Sequence[float], heads: Mapping[str, float], *, offset: float) -> Judgement:
    """Mean less offset, and the population standard deviation over the members (Coste et al. 2023)."""
    mean = math.fsum(members) / len(members)
    spread = math.sqrt(math.fsum((member - mean) ** 2 for member in members) / len(members))
    return Judgement(mean - offset, spread, heads)


def combine(judgements: Mapping[str, Judgement], weights: Mapping[str, float]) -> Score:
    """score = Σ w_s · value_s over the sources that have a weight; the others are reported among the heads alone.

    The deviation treats sources as independent: √Σ (w_s · deviation_s)². Heads are ``source`` and ``source.label``.
    """
    score = math.fsum(weight * judgements[name].value for name, weight in weights.items())
    deviation = math.sqrt(math.fsum((weight * judgements[name].deviation) ** 2 for name, weight in weights.items()))
    heads = {name: judgement.value for name, judgement in judgements.items()}
    for name, judgement in judgements.items():
        heads |= {f"{name}.{label}": value for label, value in judgement.heads.items()}
    return Score(score, mean=score, standard_deviation=deviation, heads=heads)


def member_scores(source: SourceConfig, score: float, heads: Mapping[str, float]) -> tuple[float, ...]:
    """What each member of an ensemble source would make of the score, all other sources unchanged, [M].

    Their mean is the score. ``heads`` are a Score's; empty where they hold no member of the source.
    """
    prefix = f"{source.name}."
    named = {name.removeprefix(prefix): value for name, value in heads.items() if name.startswith(prefix)}
    own = [name for name in named if name.startswith(MEMBER)] or member_labels(tuple(named))
    if not own:
        return ()
    mean = fmean(named[name] for name in own)
    in_order = sorted(own, key=lambda name: (len(name), name))  # a message's map has no order
    return tuple(score + source.weight * (named[name] - mean) for name in in_order)


def member_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Of a model whose heads are an ensemble: all, or those named reward-1 … where the others rate aspects."""
    return tuple(label for label in labels if label.startswith("reward-")) or tuple(labels)
