"""What one aspect of the reward costs another (helpful against harmless): methods of different weights as points.

A method is on the front (Pareto) where no other is better in one aspect and at least as good in the other. Policies
that are each the best for their weights lie on it: what is better in both is better for any weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lodestar.compare.means import over_seeds
from lodestar.compare.runs import Outcome, Row

Point = tuple[float, float]


def front(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other beats, from the least of the first aspect to the most."""
    best, kept = -float("inf"), list[str]()
    for name, (_, y) in sorted(points.items(), key=lambda one: (-one[1][0], -one[1][1])):
        if y > best or any(points[name] == points[other] for other in kept):
            kept.append(name)
            best = y
    return kept[::-1]


def aspect_means(of: Sequence[Outcome]) -> dict[str, Row]:
    """One method's means over its seeds: aspect → {value, low, high}; one seed has no interval."""
    found = {}
    for name in of[0].aspects:
        values = [one.aspects[name] for one in of if name in one.aspects]
        mean = fmean(values)
        found[name] = asdict(over_seeds(values)) if len(values) > 1 else {"value": mean, "low": mean, "high": mean}
    return found


def trade_offs(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Every two aspects that two methods have or more: {x, y, front, start}.

    ``front`` are methods, ``start`` the start model's means over seeds.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.get("aspects", {})))
    found = []
    for x, y in itertools.combinations(names, 2):
        of = {row["method"]: row["aspects"] for row in rows if {x, y} <= row.get("aspects", {}).keys()}
        if len(of) > 1:
            points = {method: (one[x]["value"], one[y]["value"]) for method, one in of.items()}
            starts = [one.baseline_aspects for one in outcomes if {x, y} <= one.baseline_aspects.keys()]
            start = [fmean(one[axis] for one in starts) for axis in (x, y)] if starts else None
            found.append({"x": x, "y": y, "front": front(points), "start": start})
    return found
