"""What a reader hands to the data stage, and how it is split so that nobody is judged on what he learned from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lodestar.data.messages import family_of as normalised
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
        """Each distinct prompt once, in the order of first appearance, with its first row's columns."""
        answered: list[Example[Feedback] | Example[Demonstration]] = [*self.feedback, *self.demonstrations]
        prompts = [
            *self.prompts,
            *(Example(row.family, row.record.prompt, row.messages, row.columns) for row in answered),
        ]
        found: dict[str, Example[str]] = {}
        for prompt in prompts:
            found.setdefault(prompt.record, prompt)
        return list(found.values())

    def one_family_per_prompt(self) -> tuple[Corpus, list[tuple[str, str]]]:
        """The same rows, with families that share a prompt made one: rows with names of their own, or strings and
        messages that render alike. Also the pairs of families that were joined.
        """
        parent: dict[str, str] = {}
        family_of: dict[str, str] = {}
        joined: list[tuple[str, str]] = []

        def root(family: str) -> str:
            while parent.setdefault(family, family) != family:
                family = parent[family]
            return family

        rows: list[Example[Any]] = [*self.prompts, *self.feedback, *self.demonstrations]
        for row in rows:
            text = row.record if isinstance(row.record, str) else row.record.prompt
            known = family_of.setdefault(normalised(text), row.family)
            first, second = root(known), root(row.family)
            if first != second:
                parent[second] = first
                joined.append((first, second))
        if not joined:
            return self, []

        def renamed(examples: list[Example[Any]]) -> list[Example[Any]]:
            return [replace(example, family=root(example.family)) for example in examples]

        return Corpus(renamed(self.demonstrations), renamed(self.feedback), renamed(self.prompts)), joined


def preferred(feedback: Iterable[Example[Feedback]]) -> list[Example[Demonstration]]:
    """Demonstrations from feedback: the completion that beats all others, or one that was liked without a rival; where
    there is none there is nothing to show."""
    champions = ((row, best(row.record) or _liked(row.record)) for row in feedback)
    return [
        Example(row.family, Demonstration(row.record.prompt, champion, row.record.id), row.messages, row.columns)
        for row, champion in champions
        if champion is not None
    ]


def _liked(record: Feedback) -> str | None:
    """The only completion of a row, where everybody approved of it."""
    verdict = record.verdict
    if len(record.completions) > 1 or not isinstance(verdict, Ratings):
        return None
    return record.completions[0] if verdict.aspects.get("approval") == (1.0,) else None


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
        return replace(record, verdict=replace(verdict, aspects=aspects))

    return [replace(row, record=anew(row.record)) for row in feedback]
