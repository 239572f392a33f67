"""What one aspect costs another: the front, its closed form for weighted sums, and the picture."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lodestar.compare.aspects import front, trade_offs
from lodestar.compare.figures import compared
from lodestar.compare.runs import Outcome
from lodestar.config.rewards import SourceConfig, aspects_of
from lodestar.report.compare import render_comparison

PROMPTS = [f"p{i}" for i in range(20)]


def beaten(point: tuple[float, float], by: tuple[float, float]) -> bool:
    return by != point and by[0] >= point[0] and by[1] >= point[1]


def test_the_front_is_whoever_nobody_beats() -> None:
    rng = random.Random(1)
    for _ in range(200):
        points = {f"m{i}": (rng.randrange(6), rng.randrange(6)) for i in range(rng.randrange(1, 12))}
        unbeaten = {a for a, p in points.items() if not any(beaten(p, q) for q in points.values())}
        found = front(points)
        assert set(found) == unbeaten
        assert [points[name][0] for name in found] == sorted(points[name][0] for name in found)


def test_best_of_n_by_weighted_aspects_walks_along_the_front_as_weights_are_swept() -> None:
    """argmax w·x + (1 − w)·y over a finite set: its x cannot fall and its y cannot rise as w grows."""
    rng = random.Random(2)
    sets = [[(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(16)] for _ in range(50)]
    means = {}
    for step in range(1, 10):
        w = step / 10
        best = [max(one, key=lambda point: w * point[0] + (1 - w) * point[1]) for one in sets]
        means[f"w{step}"] = (sum(x for x, _ in best) / 50, sum(y for _, y in best) / 50)
    xs, ys = zip(*means.values(), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)
    assert front(means) == list(means), "each is the best for its weights, so nobody beats it"


def outcome(method: str, seed: int, helpful: float, harmless: float, better: float = 0.5) -> Outcome:
    def replies(x: float, y: float, gold: float) -> dict[str, Any]:
        aspects = {"helpful": x, "harmless": y}
        return {p: {"gold": gold, "score": x + y, "tokens": 9, "aspects": aspects} for p in PROMPTS}

    return Outcome(
        f"{method}-s{seed}", method, seed, "gold", replies(helpful, harmless, better), replies(0.1, 0.2, 0.0), method,
        "sft", "rm", 1.0, 9.0, 10, 10, 1.0,
    )  # fmt: skip


def test_a_comparison_of_weights_has_the_trade_off_and_draws_it() -> None:
    runs = [("a", 0.0, 3.0), ("b", 2.0, 2.0), ("c", 3.0, 0.0), ("d", 1.0, 1.0)]
    outcomes = [outcome(m, seed, x + seed / 10, y) for m, x, y in runs for seed in (1, 3)]
    found = compared(outcomes)
    (pair,) = found["trade_offs"]
    assert pair == {"x": "helpful", "y": "harmless", "front": ["a", "b", "c"], "start": pytest.approx([0.1, 0.2])}
    row = next(row for row in found["rows"] if row["method"] == "b")
    assert row["aspects"]["helpful"]["value"] == pytest.approx(2.2)
    assert row["aspects"]["helpful"]["low"] < 2.1 < 2.3 < row["aspects"]["helpful"]["high"]
    page = render_comparison("x", found, ("method",), [("a",)], [])
    assert "compare-helpful-harmless" in page
    assert "The front, from the least helpful to the most: a, b, c." in page


def test_a_reward_of_one_part_has_no_trade_off() -> None:
    assert trade_offs([{"method": "a"}, {"method": "b"}], []) == []
    assert aspects_of((SourceConfig(name="reward"), SourceConfig(name="gold", kind="gold", watched=True))) == {}
    heads = SourceConfig(name="reward", heads={"helpful": 1.0, "harmless": 0.0})
    assert aspects_of((heads,)) == {"helpful": "reward.helpful", "harmless": "reward.harmless"}
    rule = SourceConfig(name="short", kind="rule", rule="length", words=20)
    assert aspects_of((SourceConfig(name="reward"), rule)) == {"reward": "reward", "short": "short"}
    twice = SourceConfig(name="other", paths=("x",), heads={"helpful": 1.0})
    assert aspects_of((heads, twice)) == {
        "reward.helpful": "reward.helpful", "harmless": "reward.harmless", "other.helpful": "other.helpful",
    }  # fmt: skip
