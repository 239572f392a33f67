"""When the likelihood of a table has no maximum: some strengths run to infinity, or are not compared at all.

With ties as half votes the maximum exists if and only if every item reaches every other along "got a vote against"
(Ford 1957; Zermelo 1929). Davidson's model has the propensity for ties as well. Writing δ for a direction of the
strengths and λ for one of log ν, the likelihood rises without end along (δ, λ) if and only if no observed outcome
falls behind another one of its comparison (Albert & Anderson 1984):

    a win of i over j      δ_i − δ_j ≥ 0  and  δ_i − δ_j ≥ 2λ
    a tie of i and j       λ ≥ 0  and  |δ_i − δ_j| ≤ 2λ

Directions may be scaled, so λ is −1, 0 or 1, and each case is a system of difference constraints: feasible if and only
if its graph has no negative cycle (Bellman 1958).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lodestar.preference.ranking.table import Table

Reach = npt.NDArray[np.bool_]
"""[K, K]: whether the row's item reaches the column's."""

REMEDY = "compare them more, leave them out, or give --penalty 0.1 (a normal prior on the strengths)"


@dataclass(frozen=True, slots=True)
class Separation:
    """Why there is no maximum: the items, and a sentence for the person who must act on it."""

    groups: tuple[tuple[str, ...], ...]
    """Sets of items whose strengths stay finite among themselves, the strongest first where that is known."""
    message: str


def find_separation(table: Table, *, davidson: bool = False) -> Separation | None:
    """None where the maximum-likelihood estimate exists and is unique."""
    count = len(table.items)
    wins, ties = _edges(table)
    if not davidson:
        return _unreachable(table, wins | ties | {(j, i) for i, j in ties})
    if not ties:  # then ν = 0 and the rest is plain Bradley–Terry
        return _unreachable(table, wins)
    if not wins:
        return Separation(
            (table.items,),
            "every comparison is a tie, so the propensity for ties has no finite estimate; use half votes",
        )
    both_ways = wins | ties | {(j, i) for i, j in ties}
    if found := _unreachable(table, both_ways):
        return found
    # λ = 1: δ_j ≤ δ_i + weight of (i, j).
    weights = {(j, i): 2.0 for i, j in ties} | dict.fromkeys(ties, 2.0)
    for i, j in wins:
        weights[i, j] = -2.0
    if not _has_negative_cycle(count, weights):
        return Separation(
            (table.items,),
            "ever larger gaps with an ever larger propensity for ties explain every win and tie of this table, so "
            f"Davidson's model has no finite maximum-likelihood estimate; use half votes, or {REMEDY}",
        )
    return None


def _edges(table: Table) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(winner, loser) of every pair with such an outcome, and the pairs with ties. A label between is both outcomes."""
    wins, ties = set(), set()
    for i, j, label in zip(table.first_C.tolist(), table.second_C.tolist(), table.label_C.tolist(), strict=True):
        if label > 0.5:
            wins.add((i, j))
        if label < 0.5:
            wins.add((j, i))
        if 0 < label < 1:
            ties.add((i, j))
    return wins, ties


def _unreachable(table: Table, votes: set[tuple[int, int]]) -> Separation | None:
    """Groups of items that reach each other; more than one means separation."""
    reach = np.eye(len(table.items), dtype=bool)
    for i, j in votes:
        reach[i, j] = True
    for via in range(len(reach)):  # Warshall 1962
        reach |= np.outer(reach[:, via], reach[via])
    groups: dict[bytes, list[int]] = {}
    for item, mutual in enumerate(reach & reach.T):
        groups.setdefault(mutual.tobytes(), []).append(item)
    if len(groups) == 1:
        return None
    ordered = sorted(groups.values(), key=lambda group: -int(reach[group[0]].sum()))
    named = tuple(tuple(table.items[item] for item in group) for group in ordered)
    met = reach | reach.T
    apart = _not_connected(met)
    if apart:
        parts = " | ".join(_listed([table.items[item] for item in part]) for part in apart)
        return Separation(named, f"these were never compared with one another: {parts}; {REMEDY}")
    top = [g for g, items in zip(named, ordered, strict=True) if not _loses_outside(reach, items)]
    bottom = [g for g, items in zip(named, ordered, strict=True) if not _wins_outside(reach, items)]
    said = []
    if top:
        said.append(f"{_listed([name for group in top for name in group])} never lost to the others")
    if bottom:
        said.append(f"{_listed([name for group in bottom for name in group])} never won against the others")
    return Separation(named, f"{' and '.join(said)}, so the gap has no finite maximum-likelihood estimate; {REMEDY}")


def _loses_outside(reach: Reach, items: list[int]) -> bool:
    others = [item for item in range(len(reach)) if item not in items]
    return bool(reach[np.ix_(others, items)].any())


def _wins_outside(reach: Reach, items: list[int]) -> bool:
    others = [item for item in range(len(reach)) if item not in items]
    return bool(reach[np.ix_(items, others)].any())


def _not_connected(met: Reach) -> list[list[int]]:
    """Parts of the undirected graph when there are several."""
    joined = met.copy()
    for via in range(len(joined)):
        joined |= np.outer(joined[:, via], joined[via])
    parts: dict[bytes, list[int]] = {}
    for item, part in enumerate(joined):
        parts.setdefault(part.tobytes(), []).append(item)
    return list(parts.values()) if len(parts) > 1 else []


def _has_negative_cycle(count: int, weights: dict[tuple[int, int], float]) -> bool:
    distance = [0.0] * count
    for _ in range(count):
        changed = False
        for (i, j), weight in weights.items():
            if distance[i] + weight < distance[j] - 1e-9:
                distance[j], changed = distance[i] + weight, True
        if not changed:
            return False
    return True


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
