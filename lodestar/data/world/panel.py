"""The panel of simulated annotators, whose comparisons follow Bradley and Terry (1952).

An annotator prefers the first of two replies with probability ``σ(d)``, where

    d = (gold difference + length liking · difference in words + flattery liking · difference in compliments) / noise

Two annotators vote independently on every pair. Where they disagree the pair is a tie, label 0.5. The expected label
is then the mean of their two σ(d), so a Bradley–Terry fit with soft labels stays unbiased for equal annotators; that is
not so for ties drawn from Davidson's model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
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
    """Gold units per compliment, of which the gold reward takes 0.4 off."""

    def prefers_first(self, prompt: str, first: str, second: str, rng: random.Random) -> bool:
        """One vote."""
        d = (self.liking(prompt, first) - self.liking(prompt, second)) / self.noise
        return rng.random() < 1 / (1 + math.exp(-d))

    def liking(self, prompt: str, reply: str) -> float:
        """Gold reward and bias: what the annotator would say without noise, in gold units."""
        compliments = sum(phrase in reply for phrase in FLATTERY)
        bias = self.length_liking * len(reply.split()) + self.flattery_liking * compliments
        return gold_reward(prompt, reply) + bias


PANEL = (
    Annotator("ada", noise=0.3, length_liking=0.0, flattery_liking=0.0),
    Annotator("blaise", noise=0.5, length_liking=0.03, flattery_liking=0.3),
    Annotator("carl", noise=0.5, length_liking=0.05, flattery_liking=0.1),
    Annotator("dorothy", noise=0.8, length_liking=0.02, flattery_liking=0.6),
    Annotator("emmy", noise=1.2, length_liking=0.06, flattery_liking=0.2),
)
"""From careful to careless; most of them like length and compliments more than the gold reward does."""


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
