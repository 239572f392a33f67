"""What feedback of every kind says of one reply alone: good, bad, or nothing.

Binary methods (AlpacaFarm's Binary FeedME and binary reward conditioning, Dubois et al. 2023, section 4) learn from
verdicts on replies and not from pairs. A comparison calls its winner good and its loser bad; a tie says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lodestar.preference.pairs import choices
from lodestar.records import Feedback, Ratings


@dataclass(frozen=True, slots=True)
class Verdict:
    """``Verdict("what color is the sky ?", "blue", good=True)``."""

    prompt: str
    completion: str
    good: bool


def verdicts(feedback: Iterable[Feedback]) -> list[Verdict]:
    """One verdict per reply that feedback calls good or bad, in order of first mention.

    Ratings are of the reply itself: above the middle of their scales is good, below it bad. Anything else compares: a
    reply is good when it won more than half of what it was compared in, bad when it won less. Several judgements of one
    reply count equally, and where they balance, as where all is tied, the reply is left out.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in feedback:
        for index, approval in _approvals(record):
            found[record.prompt, record.completions[index]].append(approval)
    means = {reply: sum(values) / len(values) for reply, values in found.items()}
    return [Verdict(*reply, good=mean > 0.5) for reply, mean in means.items() if abs(mean - 0.5) > 1e-9]


def _approvals(record: Feedback) -> Iterator[tuple[int, float]]:
    """Index of a completion and its approval in 0 … 1, for each judgement of it."""
    if isinstance(record.verdict, Ratings):
        for index in range(len(record.completions)):
            if (approval := record.verdict.overall(index)) is not None:
                yield index, approval
        return
    for choice in choices(record):
        yield choice.first, choice.label
        yield choice.second, 1 - choice.label
