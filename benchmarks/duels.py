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
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
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


Found = dict[tuple[str, str, int], dict[str, Any]]
"""By case, method and seed."""


def _kept(path: Path | None) -> Found:
    """What an earlier start has measured."""
    if path is None or not path.exists():
        return {}
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return {(row["case"], row["method"], row["seed"]): row for row in rows}


def one(case: str, method: Method, seed: int, horizon: int, patience: int) -> dict[str, Any]:
    """A seed's regret and its contest."""
    p_KK = cases()[case]
    curve = regret(p_KK, method, seed, horizon, cyclic=case == "cycle")
    duels, right = contest(p_KK, method, seed, patience)
    tenth, end = float(curve[horizon // 10 - 1]), float(curve[-1])
    return {
        "case": case, "method": method, "seed": seed, "tenth": tenth, "regret": end, "duels": duels, "right": right
    }  # fmt: skip


def measure(arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    """One row per case and method. Seeds go round, so that a start that is cut off has some of everything."""
    horizon, patience = (300, 600) if arguments.small else (HORIZON, PATIENCE)
    seeds = range(2 if arguments.small else arguments.runs)
    found = _kept(arguments.kept)
    for seed, case, method in itertools.product(seeds, arguments.cases, METHODS):
        if (case, method, seed) in found:
            continue
        found[case, method, seed] = one(case, method, seed, horizon, patience)
        if arguments.kept is not None:
            with arguments.kept.open("a") as file:
                file.write(json.dumps(found[case, method, seed]) + "\n")
    return [_row(case, method, seeds, found) for case, method in itertools.product(arguments.cases, METHODS)]


def _row(case: str, method: str, seeds: range, found: Found) -> Mapping[str, Any]:
    rows = [found[case, method, seed] for seed in seeds]
    share = mean_with_interval([row["regret"] / found[case, "uniform", row["seed"]]["regret"] for row in rows])
    ended = sorted(row["duels"] for row in rows if row["right"] is not None)
    told = {
        "case": case,
        "method": method,
        "regret": round(fmean(row["regret"] for row in rows), 1),
        "of uniform": f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]",
        "after a tenth": round(fmean(row["tenth"] for row in rows), 1),
        "settled": f"{len(ended)}/{len(rows)}",
        "right": f"{sum(bool(row['right']) for row in rows)}/{len(ended)}",
        "duels (median)": ended[len(ended) // 2] if ended else 0,
    }
    print(told, flush=True)
    return told


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(runs=20)
    options.add_argument("--kept", type=Path, help="JSONL of each seed's figures: what is there is not measured again")
    options.add_argument("--cases", nargs="+", default=list(cases()), choices=list(cases()))
    chosen = options.parse_args()
    report("duels", measure(chosen), chosen, notes=f"{chosen.runs} seeds; error 0.05; at most {PATIENCE} duels")
