"""Which pairs to ask: how many comparisons each chooser needs for the accuracy that random choice has after 4,000.

    python benchmarks/active_choice.py --runs 5

The synthetic world, a linear reward on features of request and reply (below), fitted by penalised logistic regression
after every batch of 200; an ensemble of 16 draws from its Laplace posterior says what each of 12,000 candidate pairs
would teach. Labels are one vote each of an annotator of known noise (lodestar.data.world). Accuracy is against gold on
4,000 other pairs whose requests are in none of the candidates. The ratio of comparisons is paired by seed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from harness import mean_with_interval, parser, report

from lodestar.data.world import Annotator, Request, every_request, gold_reward, write
from lodestar.data.world.replies import DEMONSTRATION_MIX, WRITERS
from lodestar.preference.active import CHOOSERS, at_random, best, diverse_batch
from lodestar.preference.ranking.table import Floats

ANNOTATOR = Annotator("one", noise=0.5, length_liking=0.0, flattery_liking=0.0)
CANDIDATES, TESTED, BUDGET, BATCH, MEMBERS, PENALTY = 12_000, 4_000, 4_000, 200, 16, 1.0
METHODS = ("random", "disagreement", "bald", "volume_removal", "bald, diverse", "volume_removal, diverse")


class Features:
    """Words of the reply, alone and with each of the request's words that say what is wanted (its tone, name, subject
    and attributes), numbered as they come up. What is true of the subject is not among them: that is to be learned."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def of(self, request: Request, reply: str) -> dict[int, float]:
        """Feature → count of one reply."""
        words = reply.split()
        names = [f"length {min(len(words) // 3, 12)}", f"last {words[-1]}"]
        names += words
        names += [f"{request.tone} {word}" for word in words]
        names += [f"{request.subject} {word}" for word in words]
        names += [f"said {what}" for what in (request.name, request.subject) if what in words]
        names += [f"{kind} asked {kind in request.attributes}" for kind, _ in _values(words)]
        if request.name in words:
            names.append("by name")
        if request.subject in words:
            names.append("of the subject")
        found: dict[int, float] = {}
        for name in names:
            place = self.number.setdefault(name, len(self.number))
            found[place] = found.get(place, 0.0) + 1.0
        return found


def _values(words: list[str]) -> list[tuple[str, str]]:
    from lodestar.data.world.facts import VALUES

    return [(kind, word) for word in words for kind, values in VALUES.items() if word in values]


class World:
    """Candidates and test pairs of a seed: φ, gold differences and the votes that would be given."""

    def __init__(self, seed: int, candidates: int, tested: int) -> None:
        rng = random.Random(f"{seed}/active")
        requests = every_request()
        rng.shuffle(requests)
        features = Features()
        rows, golds, votes = [], [], []
        for i in range(candidates + tested):
            test = i >= candidates
            request = rng.choice(requests[:1000] if test else requests[1000:])
            while True:
                first, second = (write(request, rng.choices(WRITERS, DEMONSTRATION_MIX)[0], rng).text for _ in range(2))
                gap = gold_reward(request.text, first) - gold_reward(request.text, second)
                if first != second and gap:
                    break
            rows.append((features.of(request, first), features.of(request, second)))
            golds.append(gap)
            votes.append(float(ANNOTATOR.prefers_first(request.text, first, second, rng)))
        phi_NF = np.zeros((len(rows), len(features.number)))
        for i, (first_of, second_of) in enumerate(rows):
            for place, count in first_of.items():
                phi_NF[i, place] += count
            for place, count in second_of.items():
                phi_NF[i, place] -= count
        common = (phi_NF[:candidates] != 0).sum(axis=0) >= 100
        phi_NF = phi_NF[:, common]
        self.phi_NF, self.tested_NF = phi_NF[:candidates], phi_NF[candidates:]
        self.votes_N = np.array(votes[:candidates])
        self.test_gap_N = np.array(golds[candidates:])

    def accuracy(self, weight_F: Floats) -> float:
        """Against gold, on test pairs."""
        margin_N = self.tested_NF @ weight_F
        return float(((margin_N > 0) == (self.test_gap_N > 0)).mean())


def fit(phi_NF: Floats, votes_N: Floats, weight_F: Floats) -> tuple[Floats, Floats]:
    """Maximum a posteriori of a logistic regression with a normal prior, by Newton's method from ``weight_F``; and the
    Cholesky factor of the negative log-posterior's curvature there."""
    identity_FF = np.eye(phi_NF.shape[1])
    sign_N = 2 * votes_N - 1

    def loss(weight_F: Floats) -> float:
        return float(np.logaddexp(0, -sign_N * (phi_NF @ weight_F)).sum() + 0.5 * PENALTY * weight_F @ weight_F)

    for _ in range(30):
        p_N = np.exp(-np.logaddexp(0, -phi_NF @ weight_F))
        gradient_F = phi_NF.T @ (p_N - votes_N) + PENALTY * weight_F
        half_NF = (phi_NF * np.sqrt(p_N * (1 - p_N))[:, None]).astype(np.float32)
        curvature_FF = (half_NF.T @ half_NF).astype(np.float64) + PENALTY * identity_FF
        factor_FF = np.linalg.cholesky(curvature_FF)
        step_F = np.linalg.solve(factor_FF.T, np.linalg.solve(factor_FF, gradient_F))
        before, scale = loss(weight_F), 1.0
        while loss(weight_F - scale * step_F) > before and scale > 1e-6:
            scale /= 2
        weight_F = weight_F - scale * step_F
        if np.abs(step_F).max() < 2e-2:
            break
    return weight_F, factor_FF


def curve(world: World, method: str, seed: int, budget: int) -> list[float]:
    """Accuracy after each batch."""
    rng = np.random.default_rng([seed, 7])
    left = np.ones(len(world.votes_N), dtype=bool)
    asked: list[int] = []
    weight_F = np.zeros(world.phi_NF.shape[1])
    factor_FF: Floats | None = None
    found = []
    while len(asked) < budget:
        open_N = np.flatnonzero(left)
        phi_NF = world.phi_NF[open_N]
        if method == "random" or factor_FF is None:
            batch = best(at_random(len(open_N), rng), BATCH)
        else:
            draws_FM = np.linalg.solve(factor_FF.T, rng.standard_normal((len(weight_F), MEMBERS)))
            name, _, diverse = method.partition(", ")
            scores_N = CHOOSERS[name](phi_NF @ (weight_F[:, None] + draws_FM))
            batch = diverse_batch(scores_N, phi_NF, BATCH) if diverse else best(scores_N, BATCH)
        chosen = open_N[batch]
        left[chosen] = False
        asked += chosen.tolist()
        weight_F, factor_FF = fit(world.phi_NF[asked], world.votes_N[asked], weight_F)
        found.append(world.accuracy(weight_F))
    return found


def needed(accuracies: list[float], goal: float) -> float:
    """Comparisons until the mean of three batches reaches the goal; the budget and more where they never do."""
    smooth = [float(np.mean(accuracies[max(0, i - 1) : i + 2])) for i in range(len(accuracies))]
    return next(((i + 1) * BATCH for i, value in enumerate(smooth) if value >= goal), float(len(smooth) + 1) * BATCH)


def _kept(path: Path | None) -> dict[tuple[int, str], list[float]]:
    """Curves of an earlier start, by seed and chooser."""
    if path is None or not path.exists():
        return {}
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return {(row["seed"], row["chooser"]): row["accuracies"] for row in rows}


def _keep(path: Path | None, seed: int, method: str, accuracies: list[float]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"seed": seed, "chooser": method, "accuracies": accuracies}) + "\n")


def measure(arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    """One row per chooser."""
    budget, candidates, tested = (400, 1000, 300) if arguments.small else (BUDGET, CANDIDATES, TESTED)
    seeds = range(2 if arguments.small else arguments.runs)
    counts: dict[str, list[float]] = {method: [] for method in METHODS}
    ends: dict[str, list[float]] = {method: [] for method in METHODS}
    halves: dict[str, list[float]] = {method: [] for method in METHODS}
    kept = _kept(arguments.curves)
    for seed in seeds:
        todo = [method for method in METHODS if (seed, method) not in kept]
        world = World(seed, candidates, tested) if todo else None
        goal = 0.0
        for method in METHODS:
            if world is not None and method in todo:
                kept[seed, method] = curve(world, method, seed, budget)
                _keep(arguments.curves, seed, method, kept[seed, method])
            accuracies = kept[seed, method]
            goal = goal or float(np.mean(accuracies[-3:]))
            counts[method].append(needed(accuracies, goal))
            ends[method].append(float(np.mean(accuracies[-3:])))
            halves[method].append(accuracies[max(1, len(accuracies) // 4) - 1])
            print(seed, method, [round(x, 4) for x in accuracies[::4]], counts[method][-1], flush=True)
    rows = []
    for method in METHODS:
        ratio = mean_with_interval([count / budget for count in counts[method]])
        gain = mean_with_interval([a - b for a, b in zip(halves[method], halves["random"], strict=True)])
        rows.append(
            {
                "chooser": method,
                "of random's comparisons": f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
                "accuracy at a quarter": round(float(np.mean(halves[method])), 4),
                "gain there": f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
                "accuracy at the end": round(float(np.mean(ends[method])), 4),
            }
        )
    return rows


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--curves", type=Path, help="JSONL of each seed's curves: what is there is not measured again")
    chosen_options = options.parse_args()
    report(
        "active_choice",
        measure(chosen_options),
        chosen_options,
        notes=f"{chosen_options.runs} seeds, batches of {BATCH}",
    )
