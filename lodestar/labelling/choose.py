"""What is asked about: pairs of a prompt's replies, at random or where the reward is least sure, or all replies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

from lodestar.errors import FailedPrecondition
from lodestar.labelling.port import Question
from lodestar.records import ChatMessage

Reply = dict[str, Any]
Pair = tuple[Reply, Reply]


class RandomPairs:
    """Every prompt gets one pair before any gets a second; equal replies and blank ones are never asked about."""

    def choose(self, samples: Sequence[dict[str, Any]], budget: int, seed: int) -> list[Question]:
        """See Chooser."""
        return _in_rounds(samples, budget, seed)


class UncertainPairs:
    """Pairs whose scores are nearest: under Bradley–Terry, P(first is better) = σ(s₁ − s₂) is nearest ½ there
    (uncertainty sampling: Lewis and Gale 1994).

    Every prompt gets its nearest pair before any gets a second, the nearest first: pairs of one prompt teach much the
    same.
    """

    def choose(self, samples: Sequence[dict[str, Any]], budget: int, seed: int) -> list[Question]:
        """See Chooser.

        Raises:
            FailedPrecondition: a reply has no score.
        """
        if any(reply["score"] is None for row in samples for reply in row["replies"]):
            raise FailedPrecondition(
                "label choose: uncertain needs the reward's scores, and samples have none: put a reward stage before "
                "sample, or set choose: random"
            )
        return _in_rounds(samples, budget, seed, lambda pair: abs(pair[0]["score"] - pair[1]["score"]))


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


def _in_rounds(
    samples: Sequence[dict[str, Any]], budget: int, seed: int, gap: Callable[[Pair], float] | None = None
) -> list[Question]:
    """A pair of every prompt, then a second of each that has one, …; the least gap first where there is one."""
    rng = random.Random(seed)
    queues = [_pairs(row, rng, gap) for row in rng.sample(list(samples), len(samples))]
    chosen: list[Question] = []
    while queues and len(chosen) < budget:
        drawn = [(queue, next(queue, None)) for queue in queues]
        queues = [queue for queue, found in drawn if found is not None]
        found = [one for _, one in drawn if one is not None]
        chosen += [question for _, question in sorted(found, key=lambda one: one[0])][: budget - len(chosen)]
    return chosen


def _pairs(
    row: dict[str, Any], rng: random.Random, gap: Callable[[Pair], float] | None
) -> Iterator[tuple[float, Question]]:
    pairs = list(combinations(_different(row), 2))
    rng.shuffle(pairs)
    if gap is not None:
        pairs.sort(key=gap)
    for number, pair in enumerate(pairs):
        shown = rng.sample(pair, 2)  # which is shown first says nothing
        yield gap(pair) if gap is not None else 0.0, _question(row, number, shown)


def _different(row: dict[str, Any]) -> list[Reply]:
    return list({reply["text"]: reply for reply in row["replies"] if reply["text"].strip()}.values())


def _question(row: dict[str, Any], number: int, shown: Sequence[Reply]) -> Question:
    texts, scores = tuple(reply["text"] for reply in shown), tuple(reply["score"] for reply in shown)
    messages = tuple(ChatMessage(**message) for message in row.get("messages", ()))
    return Question(f"{row['ticket']}-{number}", row["prompt"], texts, scores, messages)
