"""How soon a bad annotator is found, and how often an honest one is doubted: lodestar.preference.annotators.

    python benchmarks/annotators.py --runs 200

Ten honest annotators (the synthetic world's panel twice, from noise 0.3 to 1.2), one who clicks at random, one who
always takes the reply shown first. Three people judge each of 600 pairs of the world's own replies; a share of
the pairs is gold, where the true rewards differ by 1 or more. Everybody's doubts are followed to their last judgement,
about 150.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from harness import parser, report

from lodestar.data.world import PANEL, every_request, gold_reward, write
from lodestar.data.world.replies import DEMONSTRATION_MIX, WRITERS
from lodestar.evaluation import clopper_pearson
from lodestar.preference import annotators
from lodestar.preference.annotators import Mark, assess

WITHIN = 60


def crowd(seed: int, items: int, gold_share: float) -> list[Mark]:
    """Everybody's judgements, in the order given."""
    rng, requests = random.Random(seed), every_request()
    honest = {f"{one.name} {i}": one for one in PANEL for i in range(2)}
    people, marks = [*honest, "random", "first"], []
    for item in map(str, range(items)):
        request = rng.choice(requests)
        both = [write(request, rng.choices(WRITERS, DEMONSTRATION_MIX)[0], rng).text for _ in range(2)]
        gap = gold_reward(request.text, both[0]) - gold_reward(request.text, both[1])
        expected = {item: float(gap > 0)} if rng.random() < gold_share and abs(gap) >= 1 else {}
        for name in rng.sample(people, 3):
            turned = rng.random() < 0.5
            if name == "first":
                label = 0.0 if turned else 1.0
            elif name == "random":
                label = float(rng.random() < 0.5)
            else:
                label = float(honest[name].prefers_first(request.text, *both, rng))
            side = 1 if (label == 1) != turned else -1
            marks.append(Mark(name, item, {item: label}, side, str(side), 1.0, expected))
    return marks


def measure(arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    """One row per share of gold and level of alarm."""
    runs, items = (3, 200) if arguments.small else (arguments.runs, 600)
    rows = []
    for gold_share in (0.0, 0.1, 0.2):
        crowds = [crowd(seed, items, gold_share) for seed in range(runs)]
        for alarm in (0.01, 0.02, 0.05):
            annotators.ALARM = alarm
            first: dict[str, list[int]] = defaultdict(list)
            doubted = people = 0
            for marks in crowds:
                for one in assess(marks):
                    soonest = min((doubt.after for doubt in one.doubts), default=10**9)
                    if one.name in ("random", "first"):
                        first[one.name].append(soonest)
                    else:
                        people += 1
                        doubted += soonest < 10**9
            honest = clopper_pearson(doubted, people)
            row: dict[str, Any] = {"gold": gold_share, "alarm": alarm}
            for name in ("random", "first"):
                found = sorted(first[name])
                row[f"{name}: median"] = found[len(found) // 2]
                row[f"{name}: within {WITHIN}"] = f"{sum(at <= WITHIN for at in found)}/{len(found)}"
            row["honest ever doubted"] = f"{honest.value:.3f} [{honest.low:.3f}, {honest.high:.3f}]"
            rows.append(row)
            print(row, flush=True)
    return rows


if __name__ == "__main__":
    options = parser(__doc__)
    options.set_defaults(runs=200)
    chosen = options.parse_args()
    report("annotators", measure(chosen), chosen, notes=f"{chosen.runs} crowds of 10 honest and 2 bad annotators")
