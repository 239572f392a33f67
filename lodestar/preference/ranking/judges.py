"""Who says which of two contestants is better, for duels: recorded comparisons, a score, or people."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from lodestar.data.files import read_demonstrations
from lodestar.errors import DataError, InvalidArgument
from lodestar.feedback.campaign import Campaign
from lodestar.feedback.port import People
from lodestar.feedback.records import Item, Judgement
from lodestar.feedback.verdicts import PairVerdict
from lodestar.preference.ranking.table import Table

Pairing = tuple[str, str]
Score = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""(prompt, completion) pairs → one number each, larger is better."""


class UsedUp(Exception):
    """There is nothing left to ask about a pair; names it."""


class Judge(Protocol):
    """Answers pairs of names with labels: 1 the first is better, 0 the second, ½ a tie."""

    def judge(self, pairs: Sequence[Pairing]) -> list[float]:
        """One label per pair, in order.

        Raises:
            UsedUp: it cannot say more about one of them.
        """


class Recorded:
    """Comparisons that were made before, each used once, in a random order."""

    def __init__(self, table: Table, *, seed: int = 0) -> None:
        """
        Raises:
            InvalidArgument: a row counts a fraction of a comparison.
        """
        self._left: dict[frozenset[str], list[tuple[str, float]]] = defaultdict(list)
        for first, second, label, count in zip(
            table.first_C, table.second_C, table.label_C, table.count_C, strict=True
        ):
            if count != int(count):
                raise InvalidArgument("count", f"duels use whole comparisons, one row counts {count:g}")
            names = table.items[first], table.items[second]
            self._left[frozenset(names)] += [(names[0], float(label))] * int(count)
        rng = random.Random(seed)
        for rows in self._left.values():
            rng.shuffle(rows)

    def judge(self, pairs: Sequence[Pairing]) -> list[float]:
        """See Judge."""
        found = []
        for first, second in pairs:
            rows = self._left[frozenset((first, second))]
            if not rows:
                raise UsedUp(f"no comparison of {first} and {second} is left")
            named, label = rows.pop()
            found.append(label if named == first else 1 - label)
        return found


class Replies:
    """What each contestant replied to the same prompts; draws a prompt per duel."""

    def __init__(self, replies: Mapping[str, Mapping[str, str]], *, seed: int = 0) -> None:
        """
        Args:
            replies: contestant → prompt → completion.

        Raises:
            InvalidArgument: two contestants share no prompt.
        """
        self._replies = replies
        self._rng = random.Random(seed)
        names = sorted(replies)
        for i, one in enumerate(names):
            for other in names[:i]:
                if not replies[one].keys() & replies[other].keys():
                    raise InvalidArgument("replies", f"{other} and {one} have replied to no prompt in common")

    @staticmethod
    def read(files: Mapping[str, Path], *, seed: int = 0) -> Replies:
        """Of JSONL files {"prompt", "completion"}, one per contestant; the first reply to a prompt counts.

        Raises:
            DataError: a file cannot be read.
            InvalidArgument: as above.
        """
        replies: dict[str, dict[str, str]] = {}
        for name, path in files.items():
            rows = replies.setdefault(name, {})
            for row in read_demonstrations(path):
                rows.setdefault(row.prompt, row.completion)
        return Replies(replies, seed=seed)

    def draw(self, first: str, second: str) -> tuple[str, str, str]:
        """A prompt and the two replies to it. Where these are the same another prompt is drawn, while there is one.

        Raises:
            UsedUp: the two always reply alike.
        """
        ours, theirs = self._replies[first], self._replies[second]
        prompts = sorted(prompt for prompt in ours.keys() & theirs.keys() if ours[prompt] != theirs[prompt])
        if not prompts:
            raise UsedUp(f"{first} and {second} reply alike to every prompt: neither is better")
        prompt = self._rng.choice(prompts)
        return prompt, ours[prompt], theirs[prompt]


class Scored:
    """The higher score wins; equal ones are a tie."""

    def __init__(self, replies: Replies, score: Score) -> None:
        self._replies, self._score = replies, score

    def judge(self, pairs: Sequence[Pairing]) -> list[float]:
        """See Judge."""
        drawn = [self._replies.draw(*pair) for pair in pairs]
        scores = self._score([(prompt, reply) for prompt, *both in drawn for reply in both])
        return [
            0.5 if first == second else float(first > second)
            for first, second in zip(scores[::2], scores[1::2], strict=True)
        ]


class Asked:
    """People, on the page. Started again with the same seed it asks the same, and what was answered is there."""

    def __init__(
        self, replies: Replies, people: Callable[[], AbstractAsyncContextManager[People]], campaign: Campaign
    ) -> None:
        """``people`` connects: every batch is an event loop of its own."""
        self._replies, self._people, self._campaign = replies, people, campaign
        self._asked = 0

    def judge(self, pairs: Sequence[Pairing]) -> list[float]:
        """See Judge; waits for as long as people take."""
        items = []
        for first, second in pairs:
            prompt, *both = self._replies.draw(first, second)
            items.append(Item(f"duel-{self._asked}", prompt, tuple(both), models=(first, second)))
            self._asked += 1
        return asyncio.run(self._ask(items))

    async def _ask(self, items: Sequence[Item]) -> list[float]:
        wanted = {item.id for item in items}
        labels: dict[str, list[float]] = {}
        async with self._people() as people:
            await people.add_items(self._campaign, items)
            await people.finished(self._campaign.name)
            async for one in _settled(people, self._campaign.name):
                if one.item_id in wanted and isinstance(one.verdict, PairVerdict):
                    labels.setdefault(one.item_id, []).append(one.verdict.label)
        missing = wanted - labels.keys()
        if missing:
            raise UsedUp("the campaign was closed before all was answered")
        return [sum(labels[item.id]) / len(labels[item.id]) for item in items]


async def _settled(people: People, campaign: str) -> AsyncIterator[Judgement]:
    """What counts now."""
    progress = await people.progress(campaign)
    async for one in people.watch(campaign):
        if not one.set_aside:
            yield one
        if one.position >= progress.position:
            return


def contestants(arguments: Sequence[str]) -> dict[str, Path]:
    """``NAME=FILE`` or ``FILE``, whose name is the file's.

    Raises:
        InvalidArgument: a name twice.
        DataError: no such file.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, sign, path = argument.partition("=")
        file = Path(path if sign else argument)
        name = name if sign else file.name.partition(".")[0]
        if not file.is_file():
            raise DataError(file, "no such file")
        if name in found:
            raise InvalidArgument("replies", f"{name} is named twice; write NAME=FILE")
        found[name] = file
    return found
