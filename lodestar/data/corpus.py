"""What a reader hands to the data stage, and how it is split so that nobody is judged on what he learned from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from lodestar.data.schema import Example
from lodestar.preference.pairs import best
from lodestar.records import Demonstration, Feedback, Ranking, Ratings

Split = Literal["train", "held_out", "evaluation"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a data source has."""

    demonstrations: list[Example[Demonstration]]
    feedback: list[Example[Feedback]]
    prompts: list[Example[str]] = field(default_factory=list)
    """Prompts beyond those of the rows above."""

    def every_prompt(self) -> list[Example[str]]:
        """Each distinct prompt once, in the order of first appearance."""
        prompts = [
            *self.prompts,
            *(Example(row.family, row.record.prompt) for row in self.feedback),
            *(Example(row.family, row.record.prompt) for row in self.demonstrations),
        ]
        return list({prompt.record: prompt for prompt in prompts}.values())


def preferred(feedback: Iterable[Example[Feedback]]) -> list[Example[Demonstration]]:
    """Demonstrations from feedback: the completion that beats all others; where none does there is nothing to show."""
    champions = ((row.family, row.record, best(row.record)) for row in feedback)
    return [
        Example(family, Demonstration(record.prompt, champion, record.id))
        for family, record, champion in champions
        if champion is not None
    ]


def split_families(families: Iterable[str], held_out_fraction: float, seed: int) -> dict[str, Split]:
    """Assigns each family of rows to one split: the fraction to held_out, as much to evaluation, the rest to train."""
    distinct = list(dict.fromkeys(families))
    random.Random(f"{seed}/split").shuffle(distinct)
    share = max(1, round(held_out_fraction * len(distinct)))
    splits: dict[str, Split] = dict.fromkeys(distinct, "train")
    splits.update(dict.fromkeys(distinct[:share], "evaluation"))
    splits.update(dict.fromkeys(distinct[share : 2 * share], "held_out"))
    return splits


def shuffle_labels(feedback: list[Example[Feedback]], seed: int) -> list[Example[Feedback]]:
    """The same completions with verdicts that say nothing of them: a control from which nothing can be learned.

    A choice is turned round with probability ½, so that "the first is always the better" teaches nothing either; places
    and ratings are dealt out anew among the completions of their row. Where one completion is rated alone, its ratings
    are mirrored in their scales with probability ½.
    """
    rng = random.Random(f"{seed}/shuffled labels")

    def anew(record: Feedback) -> Feedback:
        verdict = record.verdict
        if isinstance(verdict, tuple):
            turned = tuple(replace(one, label=1 - one.label) if rng.random() < 0.5 else one for one in verdict)
            return replace(record, verdict=turned)
        seats: list[int] = list(range(len(record.completions)))
        rng.shuffle(seats)
        if isinstance(verdict, Ranking):
            order = tuple(tuple(seats[index] for index in tied) for tied in verdict.order)
            return replace(record, verdict=Ranking(order))
        mirrored = len(seats) == 1 and rng.random() < 0.5
        aspects = {}
        for name, values in verdict.aspects.items():
            ends = sum(verdict.scales[name])
            dealt = (values[seat] for seat in seats)
            aspects[name] = tuple(ends - value if mirrored and value is not None else value for value in dealt)
        return replace(record, verdict=Ratings(aspects, verdict.scales))

    return [Example(row.family, anew(row.record)) for row in feedback]
