"""How many judgements it takes to know which of 16 policies is best: cumulative regret, and the stopping rule.

    python benchmarks/duels.py --runs 20

Three tables of win probabilities: a Condorcet winner; a cycle among the three best, so that nobody beats all others;
near-ties (the best beats the next by 0.52). Regret after 10,000 duels is Condorcet's where there is such a winner and
Copeland's in the cycle, with self-duels as the papers count them (Zoghi et al. 2014; Wu & Liu 2016); its ratio to
uniform's is paired by seed with a bootstrap interval. The stopping rule runs in contests of their own, without
self-duels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from harness import mean_with_interval, parser, report

from lodestar.preference.ranking.duels import METHODS, Duels, Method, condorcet_regret, copeland_regret
from lodestar.preference.ranking.table import Floats

ITEMS = 16
HORIZON = 10_000
PATIENCE = 20_000
"""Duels after which a contest that is not settled is given up."""


def bradley_terry(strength_K: Floats) -> Floats:
    """P(i beats j)."""
    return 1 / (1 + np.exp(strength_K[None, :] - strength_K[:, None]))


def cases() -> dict[str, Floats]:
    """Win probabilities by case; item 0 is (one of) the best."""
    condorcet = bradley_terry(np.linspace(2.0, -1.0, ITEMS))
    near = np.concatenate([[0.08, 0.0], np.linspace(-0.2, -1.5, ITEMS - 2)])
    cycle = bradley_terry(np.concatenate([np.full(3, 1.2), np.linspace(0.0, -1.0, ITEMS - 3)]))
    for one, other in ((0, 1), (1, 2), (2, 0)):
        cycle[one, other], cycle[other, one] = 0.65, 0.35
    return {"condorcet": condorcet, "cycle": cycle, "near-ties": bradley_terry(near)}


def regret(p_KK: Floats, method: Method, seed: int, horizon: int, *, cyclic: bool) -> Floats:
    """[horizon] cumulative."""
    rng = np.random.default_rng([seed, 1])
    outcomes = np.random.default_rng([seed, 2]).random(horizon)
    w_KK, pairs = np.zeros_like(p_KK), []
    for t in range(horizon):
        first, second = METHODS[method](w_KK, t + 1, rng)
        pairs.append((first, second))
        if first != second:
            won = outcomes[t] < p_KK[first, second]
            w_KK[(first, second) if won else (second, first)] += 1
    return (copeland_regret if cyclic else condorcet_regret)(p_KK, pairs)


def contest(p_KK: Floats, method: Method, seed: int, patience: int) -> tuple[int, bool | None]:
    """Duels until it was settled, and whether the right one was named; None where it was not settled."""
    names = [str(i) for i in range(len(p_KK))]
    duels = Duels(names, method=method, error=0.05, seed=seed)
    rng = np.random.default_rng([seed, 3])
    scores = (p_KK > 0.5).sum(axis=1)
    right = {names[i] for i in np.flatnonzero(scores == scores.max())}
    while duels.told < patience:
        for _ in range(20):  # the rule may be looked at whenever one likes
            first, second = duels.propose()
            duels.tell(first, second, float(rng.random() < p_KK[first, second]))
        if duels.settled:
            return duels.told, set(duels.winners) <= right
    return duels.told, None


def measure(arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    """One row per case and method."""
    horizon, patience = (300, 600) if arguments.small else (HORIZON, PATIENCE)
    seeds = range(2 if arguments.small else arguments.runs)
    rows = []
    for case, p_KK in cases().items():
        if case not in arguments.cases:
            continue
        base: list[float] = []
        for method in METHODS:
            curves = [regret(p_KK, method, seed, horizon, cyclic=case == "cycle") for seed in seeds]
            ends = [float(curve[-1]) for curve in curves]
            base = base or ends  # uniform is the first
            share = mean_with_interval([end / other for end, other in zip(ends, base, strict=True)])
            ended = [contest(p_KK, method, seed, patience) for seed in seeds]
            counts = sorted(count for count, right in ended if right is not None)
            rows.append(
                {
                    "case": case,
                    "method": method,
                    "regret": round(sum(ends) / len(ends), 1),
                    "of uniform": f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]",
                    "after a tenth": round(float(np.mean([curve[horizon // 10 - 1] for curve in curves])), 1),
                    "settled": f"{len(counts)}/{len(ended)}",
                    "right": f"{sum(bool(right) for _, right in ended)}/{len(counts)}",
                    "duels (median)": counts[len(counts) // 2] if counts else 0,
                }
            )
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(runs=20)
    options.add_argument("--cases", nargs="+", default=list(cases()), choices=list(cases()))
    chosen = options.parse_args()
    report("duels", measure(chosen), chosen, notes=f"{chosen.runs} seeds; error 0.05; at most {PATIENCE} duels")
