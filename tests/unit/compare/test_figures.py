"""The table's arithmetic: intervals over seeds, the order against AlpacaFarm's, duels, and what is refused."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from lodestar.compare.figures import ALPACA_FARM, compared, over_seeds, tau
from lodestar.compare.runs import Outcome, method_of
from lodestar.compare.write import COLUMNS, cells, markdown
from lodestar.errors import FailedPrecondition
from lodestar.report.compare import render_comparison

PROMPTS = [f"p{i}" for i in range(40)]


def replies(better: float) -> dict[str, dict[str, Any]]:
    """So large a share of the prompts gets a reply of gold 1, the others −1."""
    cut = round(better * len(PROMPTS))
    return {p: {"gold": 1.0 if i < cut else -1.0, "score": 0.0, "tokens": 9} for i, p in enumerate(PROMPTS)}


BASE = {p: {"gold": 0.0, "score": 0.0, "tokens": 9} for p in PROMPTS}


def outcome(method: str, seed: int, better: float | None, **more: Any) -> Outcome:
    """A run whose policy wins so often; None is the start model itself."""
    told: dict[str, Any] = {
        "name": f"{method}-s{seed}",
        "method": method,
        "seed": seed,
        "judge": "gold",
        "replies": BASE if better is None else replies(better),
        "baseline": None if better is None else BASE,
        "start": f"sft-{seed}" if better is None else f"{method}-{seed}",
        "against": None if better is None else f"sft-{seed}",
        "reward": f"rm-{seed}",
        "kl": None if better is None else 2.5,
        "length": 9.0,
        "tokens": 0 if better is None else 1000,
        "labels": 0 if better is None else 300,
        "seconds": 12.0,
    }
    return Outcome(**(told | more))


def test_an_interval_over_seeds_is_students() -> None:
    found = over_seeds([0.7, 0.8, 0.9])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5%, by any table
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half))
    assert over_seeds([0.7, 0.8, 0.9], most=1.0).high == 1.0
    with pytest.raises(ValueError, match="one seed gives no interval"):
        over_seeds([0.8])


def test_it_covers_the_mean_over_seeds_as_often_as_it_says() -> None:
    rng = random.Random(3)
    covered = 0
    for _ in range(1000):
        found = over_seeds([0.7 + rng.gauss(0, 0.05) for _ in range(5)])
        covered += found.low <= 0.7 <= found.high
    assert 930 <= covered <= 970


def test_a_row_has_means_and_the_interval_over_seeds() -> None:
    found = compared([outcome("ppo", 1, 0.8), outcome("ppo", 2, 0.7), outcome("sft", 1, None), outcome("sft", 2, None)])
    ppo, sft = found["rows"]
    half = 12.706204736432095 * 0.05
    assert ppo["win_rate"] == pytest.approx(0.75)
    assert (ppo["low"], ppo["high"]) == pytest.approx((max(0.0, 0.75 - half), 1.0))
    assert {key: ppo[key] for key in ("method", "seeds", "kl", "tokens", "labels", "seconds")} == {
        "method": "ppo", "seeds": 2, "kl": 2.5, "tokens": 1000, "labels": 300, "seconds": 12.0,
    }  # fmt: skip
    assert (sft["win_rate"], sft["labels"], sft["kl"]) == (0.5, 0, 0.0)
    assert found["differences"][0] | {"low": 0, "high": 0} == {
        "method": "ppo", "against": "sft", "seeds": 2, "value": pytest.approx(0.25), "low": 0, "high": 0,
    }  # fmt: skip


def test_one_seed_has_the_interval_over_its_prompts_and_says_so() -> None:
    found = compared([outcome("ppo", 1, 0.8), outcome("sft", 1, None)])
    assert found["rows"][0]["low"] == pytest.approx(0.6435, abs=1e-3)  # Clopper and Pearson's, 32 of 40
    assert "One seed alone, so the interval is over its prompts: ppo, sft." in found["notes"]
    assert found["differences"] == []


def test_a_method_without_a_model_to_hold_it_against_is_judged_by_its_seeds_baseline() -> None:
    other = outcome("sft-5x", 1, 0.6, baseline=None, against=None, kl=None)
    rows = compared([outcome("ppo", 1, 0.8), other])["rows"]
    assert {row["method"]: row["win_rate"] for row in rows} == pytest.approx({"ppo": 0.8, "sft-5x": 0.6})
    assert {row["method"]: row["kl"] for row in rows} == {"ppo": 2.5, "sft-5x": None}


def test_best_of_n_from_the_start_model_is_no_baseline() -> None:
    best = outcome("best-of-n", 1, 0.9, start="sft-1", kl=1.8)
    rows = compared([best, outcome("sft", 1, None)])["rows"]
    assert [(row["method"], row["win_rate"], row["kl"]) for row in rows] == [("best-of-n", 0.9, 1.8), ("sft", 0.5, 0.0)]


def test_duels_are_on_the_same_prompts() -> None:
    found = compared([outcome("a", 1, 0.8), outcome("b", 1, 0.6)])
    assert [row["method"] for row in found["rows"]] == ["a", "b"]
    assert found["duels"] == [[None, pytest.approx(0.6)], [pytest.approx(0.4), None]]  # 8 of 40 won, 32 equal


def test_tau_is_kendalls_with_alpaca_farms_order() -> None:
    order = sorted(ALPACA_FARM, key=lambda name: -ALPACA_FARM[name])
    order.remove("ppo")  # another name of instruct-gpt
    rows = [{"method": name, "win_rate": 0.9 - 0.05 * i} for i, name in enumerate(order)]
    assert tau(rows) == pytest.approx(1.0)
    assert tau([row | {"win_rate": -row["win_rate"]} for row in rows]) == pytest.approx(-1.0)
    rows[0]["win_rate"], rows[1]["win_rate"] = rows[1]["win_rate"], rows[0]["win_rate"]
    assert tau([*rows, {"method": "mine", "win_rate": 0.3}]) == pytest.approx(1 - 2 / 28)  # one of 28 pairs turned
    assert tau(rows[:1]) is None
    assert tau([{"method": name, "win_rate": 0.5} for name in order]) is None


def test_runs_that_share_nothing_are_refused_by_name() -> None:
    stranger = outcome("b", 1, 0.6, baseline=None, against=None, replies={"q": BASE["p0"]})
    with pytest.raises(FailedPrecondition, match=r"b-s1 was evaluated on none of the prompts of .* in a-s1"):
        compared([outcome("a", 1, 0.8), stranger])
    with pytest.raises(FailedPrecondition, match="no run of seed 2 holds its policy against another model, so b-s2"):
        compared([outcome("a", 1, 0.8), outcome("b", 2, 0.6, baseline=None, against=None)])
    with pytest.raises(FailedPrecondition, match="no finished run"):
        compared([])


def test_what_makes_the_table_less_than_equal_is_said() -> None:
    judged = {"judge": "reward"}
    notes = compared([outcome("a", 1, 0.8, **judged), outcome("b", 1, 0.6, **judged, against="else", reward="rm-x")])[
        "notes"
    ]
    assert "Judged against another start model than the rest: b." in notes
    assert any("have different ones" in note for note in notes)


def test_the_name_of_a_run_tells_its_method() -> None:
    assert method_of("dpo-s3", 3) == "dpo"
    assert method_of("dpo-s3", 4) == "dpo-s3"
    assert method_of("demo", 1) == "demo"


def test_the_table_and_the_page_say_what_was_found() -> None:
    found = compared([outcome("ppo", s, 0.8) for s in (1, 2)] + [outcome("sft", s, None) for s in (1, 2)])
    lines = markdown(found).splitlines()
    assert lines[0].startswith("| method | win rate | 95% interval | seeds")
    assert lines[2] == "| ppo | 80.0% | 80.0%–80.0% | 2 | 2.50 | 9.0 | 300 | 1,000 | 12 |"
    page = render_comparison("w<orld", found, COLUMNS, cells(found), ["A & B."])
    assert "ppo is first of 2 methods: it wins 80.0% against its SFT model, ahead of all others." in page
    assert "w&lt;orld" in page
    assert "A &amp; B." in page
    assert 'id="compare-duels"' in page
