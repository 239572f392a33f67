"""Pairs of a prompt's replies, drawn at random; active choice has the same form."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from lodestar.labelling.port import Question


class RandomPairs:
    """Every prompt gets one pair before any gets a second; equal replies and blank ones are never asked about."""

    def choose(self, samples: Sequence[dict[str, Any]], budget: int, seed: int) -> list[Question]:
        """See Chooser."""
        rng = random.Random(seed)
        queues = [self._pairs(row, rng) for row in rng.sample(list(samples), len(samples))]
        chosen: list[Question] = []
        while queues and len(chosen) < budget:
            left = []
            for queue in queues:
                question = next(queue, None)
                if question is not None and len(chosen) < budget:
                    chosen.append(question)
                    left.append(queue)
            queues = left
        return chosen

    def _pairs(self, row: dict[str, Any], rng: random.Random) -> Iterator[Question]:
        replies = list({reply["text"]: reply for reply in row["replies"] if reply["text"].strip()}.values())
        pairs = list(combinations(replies, 2))
        rng.shuffle(pairs)
        for number, pair in enumerate(pairs):
            first, second = rng.sample(pair, 2)  # which is shown first says nothing
            texts, scores = (first["text"], second["text"]), (first["score"], second["score"])
            yield Question(f"{row['ticket']}-{number}", row["prompt"], texts, scores)
