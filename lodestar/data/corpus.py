"""What a reader hands to the data stage, and how it is split so that nobody is judged on what he learned from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from lodestar.data.schema import Example
from lodestar.records import Comparison, Demonstration

Split = Literal["train", "held_out", "evaluation"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a data source has."""

    demonstrations: list[Example[Demonstration]]
    comparisons: list[Example[Comparison]]
    prompts: list[Example[str]] = field(default_factory=list)
    """Prompts beyond those of the rows above."""

    def every_prompt(self) -> list[Example[str]]:
        """Each distinct prompt once, in the order of first appearance."""
        prompts = [
            *self.prompts,
            *(Example(row.family, row.record.prompt) for row in self.comparisons),
            *(Example(row.family, row.record.prompt) for row in self.demonstrations),
        ]
        return list({prompt.record: prompt for prompt in prompts}.values())


def preferred(comparisons: Iterable[Example[Comparison]]) -> list[Example[Demonstration]]:
    """Demonstrations from comparisons: the completion that was preferred; ties show none."""
    return [
        Example(family, Demonstration(pair.prompt, pair.completions[pair.label < 0.5], pair.id))
        for family, pair in ((row.family, row.record) for row in comparisons)
        if pair.label != 0.5
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


def shuffle_labels(comparisons: list[Example[Comparison]], seed: int) -> list[Example[Comparison]]:
    """The same pairs with their labels dealt out anew: a control from which nothing can be learned."""
    labels = [row.record.label for row in comparisons]
    random.Random(f"{seed}/shuffled labels").shuffle(labels)
    return [Example(r.family, replace(r.record, label=label)) for r, label in zip(comparisons, labels, strict=True)]
