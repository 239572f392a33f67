"""``lodestar duel``: which of K policies, checkpoints or decoding settings is best, with few judgements."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lodestar.cli.rank import rank
from lodestar.errors import InvalidArgument
from lodestar.files import write_atomically
from lodestar.preference.ranking.duels import Duels, Method
from lodestar.preference.ranking.judges import Asked, Judge, Recorded, Replies, Score, Scored, UsedUp, contestants
from lodestar.preference.ranking.table import read_table

PEOPLE_AT_ONCE = 20
"""Duels that people are asked before their answers are looked at."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What was asked for."""

    method: Method
    error: float
    tolerance: float
    limit: int
    seed: int
    output: Path | None


def duel(replies: Sequence[str], by: str, contest: Contest) -> None:
    """Runs the contest and prints the winner and ``lodestar rank``'s table of all that was judged.

    Args:
        replies: files of replies, one per contestant; none with a table.
        by: table:FILE, gold, reward:ADDRESS or people:ADDRESS.

    Raises:
        LodestarError: a file or an address cannot be used.
    """
    console = Console()
    judge, names, batch = _judge(replies, by, contest.seed)
    duels = Duels(names, method=contest.method, error=contest.error, tolerance=contest.tolerance, seed=contest.seed)
    rows: list[tuple[str, str, float]] = []
    ended = "the limit is reached"
    while duels.told < contest.limit and not duels.settled:
        pairs = [duels.propose() for _ in range(min(batch, contest.limit - duels.told))]
        named = [(names[first], names[second]) for first, second in pairs]
        try:
            labels = judge.judge(named)
        except UsedUp as reason:
            ended = str(reason)
            break
        for (first, second), pair, label in zip(pairs, named, labels, strict=True):
            duels.tell(first, second, label)
            rows.append((*pair, label))
    if not rows:
        raise InvalidArgument("duels", f"nothing could be judged: {ended}")
    path = contest.output or Path("duels.csv")
    _write(path, rows)
    if duels.settled:
        verdict = f"best after {duels.told} duels, wrong with probability {contest.error:g} at most"
        console.print(Text(f"{', '.join(duels.winners)}: {verdict}"), soft_wrap=True)
    else:
        console.print(Text(f"not settled after {duels.told} duels: {ended}; {duels.leader} leads"), soft_wrap=True)
    rank(path, ties="half", penalty=0.0, as_json=False)


def _judge(replies: Sequence[str], by: str, seed: int) -> tuple[Judge, tuple[str, ...], int]:
    kind, _, where = by.partition(":")
    if kind == "table" and where:
        if replies:
            raise InvalidArgument("replies", "a table names its contestants itself")
        table = read_table(Path(where))
        return Recorded(table, seed=seed), table.items, 1
    files = contestants(replies)
    if len(files) < 2:
        raise InvalidArgument("replies", "give the replies of two contestants or more, or --by table:FILE")
    read = Replies.read(files, seed=seed)
    names = tuple(files)
    if kind == "gold" and not where:
        return Scored(read, _gold), names, 1
    if kind == "reward" and where:
        return Scored(read, _reward(where)), names, 1
    if kind == "people" and where:
        from lodestar.feedback import AsyncFeedbackClient, Campaign

        campaign = Campaign(name="duel", form="pair", strength=False)
        return Asked(read, lambda: AsyncFeedbackClient(where), campaign), names, PEOPLE_AT_ONCE
    raise InvalidArgument("--by", f"{by!r}: write table:FILE, gold, reward:ADDRESS or people:ADDRESS")


def _gold(texts: Sequence[tuple[str, str]]) -> Sequence[float]:
    from lodestar.data.world import gold_reward

    return [gold_reward(prompt, reply) for prompt, reply in texts]


def _reward(address: str) -> Score:
    from lodestar.client import RewardClient

    client = RewardClient(address)
    return lambda texts: [score.score for score in client.score(texts).scores]


def _write(path: Path, rows: Sequence[tuple[str, str, float]]) -> None:
    """What ``lodestar rank`` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("first", "second", "label"), *rows])
    write_atomically(path, text.getvalue())
