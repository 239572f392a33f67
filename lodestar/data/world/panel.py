"""The panel of simulated annotators, whose comparisons follow Bradley and Terry (1952).

An annotator prefers the first of two replies with probability ``σ(d)``, where

    d = (gold difference + length liking · difference in words + flattery liking · difference in compliments) / noise

Two annotators vote independently on every pair. Where they disagree the pair is a tie, label 0.5. The expected label
is then the mean of their two σ(d), so a Bradley–Terry fit with soft labels stays unbiased for equal annotators; that is
not so for ties drawn from Davidson's model.

As all of it is known, so is what the best possible judge of the votes can reach: ``bayes_accuracy``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lodestar.data.world.gold import gold_reward
from lodestar.data.world.replies import FLATTERY
from lodestar.records import Choice, Feedback, Ranking


@dataclass(frozen=True, slots=True)
class Annotator:
    """``Annotator("ada", noise=0.5, length_liking=0.02, flattery_liking=0.3)``."""

    name: str
    noise: float
    """Gold units that change the odds of a vote by e; larger is less reliable."""
    length_liking: float
    """Gold units per word of length."""
    flattery_liking: float
    """Gold units for a compliment, of which the gold reward takes 0.6 off."""

    def prefers_first(self, prompt: str, first: str, second: str, rng: random.Random) -> bool:
        """One vote."""
        return rng.random() < self.chance(self.liking(prompt, first) - self.liking(prompt, second))

    def chance(self, difference: float) -> float:
        """σ(difference / noise): how likely a reply wins that the annotator likes better by so much."""
        return 1 / (1 + math.exp(-difference / self.noise))

    def liking(self, prompt: str, reply: str) -> float:
        """Gold reward and bias: what the annotator would say without noise, in gold units."""
        return gold_reward(prompt, reply) + self.bias(reply)

    def bias(self, reply: str) -> float:
        """Gold units by which the annotator likes a reply more than it is worth. Only the first compliment works."""
        return self.length_liking * len(reply.split()) + self.flattery_liking * any(text in reply for text in FLATTERY)


PANEL = (
    Annotator("ada", noise=0.2, length_liking=0.0, flattery_liking=0.0),
    Annotator("blaise", noise=0.3, length_liking=0.01, flattery_liking=0.9),
    Annotator("carl", noise=0.3, length_liking=0.02, flattery_liking=0.8),
    Annotator("dorothy", noise=0.5, length_liking=0.01, flattery_liking=1.5),
    Annotator("emmy", noise=0.8, length_liking=0.03, flattery_liking=1.0),
)
"""From careful to careless; all but the first like a compliment better than its price in gold, and words as such."""


def compare(prompt: str, first: str, second: str, rng: random.Random, *, row: str) -> Feedback:
    """Two annotators' verdict on two replies."""
    voters = rng.sample(PANEL, 2)
    votes = [voter.prefers_first(prompt, first, second, rng) for voter in voters]
    return Feedback(
        prompt=prompt,
        completions=(first, second),
        verdict=(Choice(0, 1, label=sum(votes) / len(votes)),),
        id=row,
        annotator=",".join(voter.name for voter in voters),
        gold=(gold_reward(prompt, first), gold_reward(prompt, second)),
    )


def expected_label(prompt: str, first: str, second: str) -> float:
    """Mean label that ``compare`` gives the pair: the panel's mean σ(d)."""
    return sum(_chances(prompt, first, second)) / len(PANEL)


def bayes_accuracy(pairs: Iterable[tuple[str, str, str]]) -> float:
    """Share of decided votes of ``compare`` on (prompt, first, second) that the best judge can expect to foretell.

    It names the reply that both voters are likelier to prefer: E max(P₁₁, P₀₀) / E (P₁₁ + P₀₀), where P₁₁ and P₀₀ are
    the chances that two different members of the panel both prefer the first, or the second.

    Raises:
        ValueError: no pairs.
    """
    right = decided = 0.0
    for pair in pairs:
        chances = _chances(*pair)
        couples = list(itertools.combinations(chances, 2))
        first = sum(a * b for a, b in couples) / len(couples)
        second = sum((1 - a) * (1 - b) for a, b in couples) / len(couples)
        right, decided = right + max(first, second), decided + first + second
    if not decided:
        raise ValueError("no pairs to foretell votes on")
    return right / decided


def _chances(prompt: str, first: str, second: str) -> list[float]:
    gap = gold_reward(prompt, first) - gold_reward(prompt, second)
    return [voter.chance(gap + voter.bias(first) - voter.bias(second)) for voter in PANEL]


def rank(prompt: str, replies: Sequence[str], annotator: Annotator, rng: random.Random, *, row: str) -> Feedback:
    """One annotator's ranking of K replies by Plackett and Luce: likings plus Gumbel noise, best first.

    Every pair of it then follows Bradley and Terry with the annotator's noise, as ``prefers_first`` does.
    """
    noisy = [
        annotator.liking(prompt, reply) / annotator.noise - math.log(-math.log(rng.random() or 5e-324))
        for reply in replies
    ]
    order = sorted(range(len(replies)), key=lambda index: -noisy[index])
    return Feedback(
        prompt=prompt,
        completions=tuple(replies),
        verdict=Ranking(tuple((index,) for index in order)),
        id=row,
        annotator=annotator.name,
        gold=tuple(gold_reward(prompt, reply) for reply in replies),
    )
