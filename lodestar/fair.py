"""Fair shares of a server between training and outside callers, and among callers. Pure: no clock of its own, no I/O.

- **Between the two sides**, by tokens of a step (a forward pass). A step of n tokens takes a + b·n seconds, so the side
  that asks for less pays the a, and the other may take as many tokens as make its own part last as long::

      b·n_more ≤ (w_more / w_less) · (a + b·n_less)      in tokens:  n_more ≤ w (a/b + n_less)

  The side that asks for less is never cut, so both keep at least their share of the rate that each would have alone. On
  an accelerator, whose steps hardly grow with n, a/b is large and nobody is cut; on a CPU it is what a lone caller's
  latency is bounded by: with equal shares a step takes at most twice as long as the caller's own would.
- **Among callers**, by the tokens that each has been served: the virtual token counter of Sheng et al. (2024, "Fairness
  in Serving Large Language Models", OSDI, algorithm 2), whose counter of a caller that comes back is lifted to the
  least of those that are there, so that nobody saves up. Between two callers that always want more, the served
  tokens differ by at most twice the largest single charge.

What one side does not use, the other gets: after LENT_SECONDS without it, everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Generic, TypeVar

Item = TypeVar("Item")

LENT_SECONDS = 0.25
"""A side that asks again and again is away between two calls; its share is lent out after this."""
MEMORY = 0.98
"""Weight of a step in what is known of the steps' costs, relative to the step after it."""
ITS_OWN = 0.5
"""Of what is measured as the fixed part of a step. The rest is waiting for the event loop, which the other side's calls
keep busy: taken whole, training kept 0.88 of its share beside 300 callers, and a lone caller took 2.2 times its own."""
MOST_FIXED = 65_536.0
"""Tokens that the fixed part of a step may be worth: no measurement bounds it where steps do not grow at all."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Whose work it is: ``Flow(training=False, caller="evaluation")``."""

    training: bool = False
    """The run's own, and no outside caller's."""
    caller: str = ""
    """Name of the certificate or token, or the connection where nobody is asked for one."""


class Costs:
    """Seconds of a step of n tokens, a + b·n, by least squares over the steps of late."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5
        self.fixed = 0.0
        """a / b, of which ITS_OWN: the tokens that a step's fixed part is worth; 0 until it is known."""

    def observe(self, tokens: int, seconds: float) -> None:
        """A step took so long."""
        row = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = [MEMORY * old + new for old, new in zip(self._sums, row, strict=True)]
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if spread <= 1e-3 * x * x:  # steps of one size say nothing about others
            return
        slope = (n * xy - x * y) / spread
        intercept = (y - slope * x) / n
        self.fixed = min(MOST_FIXED, max(0.0, ITS_OWN * intercept / slope)) if slope > 0 else MOST_FIXED


class Shares:
    """How many tokens of the next step each side may take."""

    def __init__(self, training_share: float, away: float = 1.0) -> None:
        """
        Args:
            training_share: training's part while both sides want more than there is, between 0 and 1.
            away: what a side's absence leaves to the other within LENT_SECONDS, of what its presence would.
        """
        self.costs = Costs()
        self._weights = {True: training_share, False: 1.0 - training_share}
        self._away = away
        self._seen = {True: (0.0, -inf), False: (0.0, -inf)}
        """By side: tokens that it asked for when it was there last, and when."""
        self._left = {True: inf, False: inf}

    def here(self, training: bool, now: float) -> bool:
        """Whether a side was there within LENT_SECONDS."""
        return now - self._seen[training][1] < LENT_SECONDS

    def share(self, training: bool) -> float:
        """A side's part while both want more than there is."""
        return self._weights[training]

    def entitled(self, training: bool, places: int) -> int:
        """A side's part of so many places."""
        return max(1, ceil(self._weights[training] * places - 1e-9))

    def parts(self, wanted: dict[bool, int], now: float) -> dict[bool, float]:
        """Tokens that each side may take of a step, by whether it is training; infinite where it need not share.

        Args:
            wanted: tokens that each could use in this step.
        """
        parts = {}
        for side, tokens in wanted.items():
            if tokens:
                self._seen[side] = (tokens, now)
        for side in wanted:
            other = not side
            weight = self._weights[side] / self._weights[other]
            if wanted[other]:
                parts[side] = weight * (self.costs.fixed + wanted[other])
            elif self.here(other, now):
                parts[side] = max(1.0, self._away * weight * (self.costs.fixed + self._seen[other][0]))
            else:
                parts[side] = inf
        return parts

    def begin(self, wanted: dict[bool, int], now: float) -> None:
        """Begins a step: each side has its part of :meth:`parts`, less what it took beyond the one before.

        What it takes is whole sequences, so that the last may go beyond its part: that is paid back.
        """
        parts = self.parts(wanted, now)
        for side, part in parts.items():
            debt = min(0.0, self._left[side]) if wanted[not side] and part < inf else 0.0
            self._left[side] = part + debt
        if all(wanted.values()) and max(self._left.values()) <= 0:  # as many steps later one of them has paid
            steps = min(floor(-self._left[side] / part) + 1 for side, part in parts.items())
            for side, part in parts.items():
                self._left[side] += steps * part

    def may_take(self, training: bool) -> bool:
        """Whether anything is left of a side's part."""
        return self._left[training] > 0

    def left(self, training: bool) -> float:
        """Tokens that are left of a side's part."""
        return self._left[training]

    def take(self, training: bool, tokens: int) -> None:
        """A side takes so much of the step."""
        self._left[training] -= tokens


class Served:
    """Tokens that each caller has been served: whoever has the least is next."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}

    def join(self, caller: str, present: set[str]) -> None:
        """A caller that had nothing here brings work, beside those ``present`` who have."""
        self._tokens = {name: self._tokens.get(name, 0.0) for name in present | {caller}}
        least = min((self._tokens[name] for name in present), default=0.0)
        self._tokens[caller] = max(self._tokens[caller], least)

    def charge(self, caller: str, tokens: float) -> None:
        """It was served so much."""
        self._tokens[caller] = self._tokens.get(caller, 0.0) + tokens

    def of(self, caller: str) -> float:
        """What it was served, beyond where it came in."""
        return self._tokens.get(caller, 0.0)


class FairLine(Generic[Item]):
    """Work that waits, a line per flow: training's in order of arrival, callers' in turns by what each was served."""

    def __init__(self, tokens_of: Callable[[Item], int]) -> None:
        self._tokens_of = tokens_of
        self._lines: dict[Flow, deque[Item]] = {}
        self._served = Served()
        self.tokens = {True: 0, False: 0}
        """That wait, by whether they are training's."""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Item]:
        for line in self._lines.values():
            yield from line

    def push(self, flow: Flow, item: Item) -> None:
        """Puts an item at the end of its flow's line."""
        if flow not in self._lines:
            if not flow.training:
                self._served.join(flow.caller, {one.caller for one in self._lines if not one.training})
            self._lines[flow] = deque()
        self._lines[flow].append(item)
        self.tokens[flow.training] += self._tokens_of(item)

    def next(self, training: bool) -> Item | None:
        """The side's next item, which stays in line; None where it has none."""
        flow = self._next_flow(training)
        return None if flow is None else self._lines[flow][0]

    def pop(self, training: bool) -> Item:
        """Takes the side's next item out."""
        flow = self._next_flow(training)
        assert flow is not None
        item = self._lines[flow].popleft()
        tokens = self._tokens_of(item)
        self.tokens[training] -= tokens
        if not training:
            self._served.charge(flow.caller, tokens)
        if not self._lines[flow]:
            del self._lines[flow]
        return item

    def forget(self, gone: Callable[[Item], bool]) -> None:
        """Drops items that nobody waits for any more."""
        for flow, line in list(self._lines.items()):
            kept = deque(item for item in line if not gone(item))
            self.tokens[flow.training] -= sum(map(self._tokens_of, line)) - sum(map(self._tokens_of, kept))
            if kept:
                self._lines[flow] = kept
            else:
                del self._lines[flow]

    def _next_flow(self, training: bool) -> Flow | None:
        flows = (flow for flow in self._lines if flow.training is training)
        return min(flows, key=lambda flow: self._served.of(flow.caller), default=None)
