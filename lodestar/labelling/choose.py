"""What is asked about: pairs of a prompt's replies, at random or where an answer teaches most, or all replies."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lodestar.errors import FailedPrecondition
from lodestar.labelling.port import Question
from lodestar.preference.active import CHOOSERS, best, diverse_batch
from lodestar.preference.active.choosers import Floats, probabilities
from lodestar.records import ChatMessage

Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that may be asked about, in the order in which it is shown."""

    row: dict[str, Any]
    """Of a samples artifact."""
    shown: tuple[Reply, Reply]


class RandomPairs:
    """Every prompt gets one pair before any gets a second, for pairs of one prompt teach much the same; equal replies
    and blank ones are never asked about.

    A subclass says what each answer would teach: a prompt's best pair comes first, and where not every prompt can have
    its turn, those that teach most do.
    """

    def choose(self, samples: Sequence[dict[str, Any]], budget: int, seed: int) -> list[Question]:
        """See Chooser."""
        candidates = _candidates(samples, random.Random(seed))
        if not candidates:
            return []
        gain_N = self.gains(candidates)
        chosen: list[Question] = []
        for turn, layer in enumerate(_turns(candidates, gain_N)):
            if left := budget - len(chosen):
                picked = self.batch([candidates[i] for i in layer], gain_N[layer], min(left, len(layer)))
                chosen += [_question(candidates[layer[i]].row, turn, candidates[layer[i]].shown) for i in picked]
        return chosen

    def gains(self, candidates: Sequence[Candidate]) -> Floats:
        """What an answer would teach, [N]; here nothing is known."""
        return np.zeros(len(candidates))

    def batch(self, candidates: Sequence[Candidate], gain_N: Floats, count: int) -> list[int]:
        """Indices of ``count`` of the candidates, first what is to be asked first."""
        return [int(i) for i in best(gain_N, count)]


class UncertainPairs(RandomPairs):
    """Pairs whose scores are nearest: under Bradley–Terry, P(first is better) = σ(s₁ − s₂) is nearest ½ there
    (uncertainty sampling: Lewis and Gale 1994)."""

    def gains(self, candidates: Sequence[Candidate]) -> Floats:
        """The gap of a pair's scores, less being more.

        Raises:
            FailedPrecondition: a reply has no score.
        """
        gaps = [[reply["score"] for reply in one.shown] for one in candidates]
        if any(score is None for pair in gaps for score in pair):
            raise FailedPrecondition(
                "label choose: uncertain needs the reward's scores, and samples have none: put a reward stage before "
                "sample, or set choose: random"
            )
        return -np.abs(np.diff(np.array(gaps, dtype=float), axis=1)[:, 0])


class ActivePairs(RandomPairs):
    """Pairs about which the members of the reward's ensemble say different things: ``ActivePairs("bald")``.

    Every member's margin is the score that it gives the first reply less that of the second. ``diverse``: of the pairs
    that teach most those that members do not answer alike, far from each other in P(first is better) − ½ under each
    member: two pairs about which every member says the same are one question, and so are a pair and its mirror image.
    """

    def __init__(self, chooser: str, *, diverse: bool = False) -> None:
        self._name = chooser
        self._diverse = diverse

    def gains(self, candidates: Sequence[Candidate]) -> Floats:
        """By lodestar.preference.active.

        Raises:
            FailedPrecondition: a reply lacks the members' scores, or another has more of them.
        """
        return CHOOSERS[self._name](self._margins(candidates))

    def batch(self, candidates: Sequence[Candidate], gain_N: Floats, count: int) -> list[int]:
        """The best, or the best that differ."""
        if not self._diverse:
            return super().batch(candidates, gain_N, count)
        features_NM = probabilities(self._margins(candidates)) - 0.5
        return [int(i) for i in diverse_batch(gain_N, features_NM, count)]

    def _margins(self, candidates: Sequence[Candidate]) -> Floats:
        members = [[reply.get("members", ()) for reply in one.shown] for one in candidates]
        counts = {len(scores) for pair in members for scores in pair}
        if len(counts) > 1 or min(counts) < 2:
            raise FailedPrecondition(
                f"label choose: {self._name} needs what each member of one reward ensemble says of every reply, and "
                "samples lack it: sample with an ensemble served (services.reward.sources), or set choose: random"
            )
        first_NM, second_NM = np.moveaxis(np.array(members, dtype=float), 1, 0)
        margins_NM: Floats = first_NM - second_NM
        return margins_NM


class AllReplies:
    """One question about all of a prompt's replies, for forms that rate or rank them; K replies are K(K − 1)/2
    comparisons of the budget."""

    def choose(self, samples: Sequence[dict[str, Any]], budget: int, seed: int) -> list[Question]:
        """See Chooser."""
        rng = random.Random(seed)
        chosen, left = [], budget
        for row in rng.sample(list(samples), len(samples)):
            replies = _different(row)
            cost = len(replies) * (len(replies) - 1) // 2
            if 0 < cost <= left:
                chosen.append(_question(row, 0, rng.sample(replies, len(replies))))
                left -= cost
        return chosen


def _candidates(samples: Sequence[dict[str, Any]], rng: random.Random) -> list[Candidate]:
    """All pairs of each prompt's replies; prompts, pairs and sides in an order that says nothing."""
    found = []
    for row in rng.sample(list(samples), len(samples)):
        pairs = list(combinations(_different(row), 2))
        rng.shuffle(pairs)
        for pair in pairs:
            first, second = rng.sample(pair, 2)
            found.append(Candidate(row, (first, second)))
    return found


def _turns(candidates: Sequence[Candidate], gain_N: Floats) -> Iterator[list[int]]:
    """Indices of every prompt's best pair, of the second best of each that has one, …"""
    of_prompt: dict[str, list[int]] = {}
    for i in best(gain_N, len(gain_N)).tolist():
        of_prompt.setdefault(candidates[i].row["ticket"], []).append(i)
    for turn in range(max(map(len, of_prompt.values()))):
        yield [pairs[turn] for pairs in of_prompt.values() if turn < len(pairs)]


def _different(row: dict[str, Any]) -> list[Reply]:
    return list({reply["text"]: reply for reply in row["replies"] if reply["text"].strip()}.values())


def _question(row: dict[str, Any], number: int, shown: Sequence[Reply]) -> Question:
    texts, scores = tuple(reply["text"] for reply in shown), tuple(reply["score"] for reply in shown)
    messages = tuple(ChatMessage(**message) for message in row.get("messages", ()))
    return Question(f"{row['ticket']}-{number}", row["prompt"], texts, scores, messages)
