"""The alarm rule on made-up histories, its trend test against slow ones, and what the learner's watch feeds it."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from lodestar_services.learner.watch import OverOptimisationWatch, source_means

from lodestar.config import WatchConfig
from lodestar.ppo.watch import Alarm, Observation, over_optimised, rise, slope
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion


def history(score: float, gold: float | None, n: int = 40, noise: float = 0.1, **more: float) -> list[Observation]:
    """Trends per step with independent noise in units of the spread between responses."""
    rng = random.Random(f"{score}{gold}{n}")
    drift = lambda trend, k: trend * k + rng.gauss(0, noise)  # noqa: E731
    return [
        Observation(drift(score, k), None if gold is None else drift(gold, k), gold_spread=1.0, **more)
        for k in range(n)
    ]


def test_the_trend_test_agrees_with_all_permutations() -> None:
    for values in ([1, 2, 3, 4, 5, 7, 6], [3, 1, 4, 2, 6, 5, 7], [7, 5, 6, 4, 3, 2, 1], [1, 2, 2, 3, 3, 3, 4]):

        def s(x: tuple[int, ...]) -> int:
            return sum((b > a) - (b < a) for a, b in itertools.combinations(x, 2))

        exact = [s(order) >= s(tuple(values)) for order in itertools.permutations(values)]
        assert rise(values) == pytest.approx(sum(exact) / len(exact), abs=0.02), values


def test_the_trend_test_errs_as_often_as_it_says_and_sees_what_is_there() -> None:
    rng = random.Random(0)
    nothing = [rise([rng.gauss(0, 1) for _ in range(10)]) for _ in range(4000)]
    for level in (0.05, 0.01):
        assert sum(p <= level for p in nothing) / len(nothing) < 1.3 * level
    drifting = [rise([0.4 * k + rng.gauss(0, 1) for k in range(10)]) for _ in range(400)]
    assert sum(p <= 0.05 for p in drifting) / len(drifting) > 0.75
    assert rise([2.0] * 10) == 1.0


def test_the_slope_is_not_moved_by_an_outlier() -> None:
    assert slope([0, 2, 4, 6, 900, 10, 12]) == 2


def test_a_rising_score_and_a_falling_judge_raise_the_alarm() -> None:
    alarm = over_optimised(history(0.05, -0.05))
    assert alarm is not None
    assert alarm.kind == "gold"
    assert alarm.p_score <= 0.01 / 3 >= alarm.p_against
    assert "over" in str(alarm)
    assert "held-out judge fell" in str(alarm)


@pytest.mark.parametrize(
    ("score", "gold"), [(0.05, 0.05), (0.05, 0.0), (0.0, -0.05), (-0.05, -0.05), (0.0, 0.0), (-0.05, 0.05)]
)
def test_trends_that_do_not_contradict_each_other_raise_none(score: float, gold: float) -> None:
    observed = history(score, gold)
    assert all(over_optimised(observed[:k]) is None for k in range(1, 41))


def test_a_slow_fall_is_seen_over_a_longer_stretch_than_the_window() -> None:
    slow = history(0.012, -0.012)
    assert over_optimised(slow[:10]) is None
    alarm = over_optimised(slow)
    assert alarm is not None
    assert alarm.steps > 10


def test_a_fall_that_is_small_beside_the_spread_raises_none() -> None:
    assert over_optimised(history(0.05, -0.002, noise=1e-4)) is None
    assert over_optimised(history(0.05, -0.02, noise=1e-4)) is not None


def test_without_a_judge_growing_disagreement_raises_the_alarm_and_with_one_the_judge_decides() -> None:
    def run(gold: float | None, factor: float) -> list[Observation]:
        return [
            Observation(0.1 * k, gold, 1.0, disagreement=0.2 * (1 + (factor - 1) * max(0, k - 10) / 29))
            for k in range(40)
        ]

    alarm = over_optimised(run(None, 3.0))
    assert alarm is not None
    assert alarm.kind == "disagreement"
    assert "came to disagree" in str(alarm)
    assert over_optimised(run(None, 1.3)) is None
    assert over_optimised(run(0.0, 3.0)) is None
    assert over_optimised([Observation(0.1 * k) for k in range(40)]) is None, "a single model disagrees with nobody"


# --- the learner's side ---------------------------------------------------------------------------------------------


def rollout(*heads: dict[str, float]) -> Rollout:
    samples = tuple(Sample((1,), (0.0,), (0.0,), 0.5, FinishReason.EOS, heads=one) for one in heads)
    ticket = Ticket("r", "", 0, 0, Prompt("p", "", (2,)), len(samples), 0, 0, 8, 1.0)
    return Rollout(ticket, WeightVersion("", 0, ""), samples, "w")


FIGURES = {"score": 0.5, "kl_sequence": 4.0, "score_disagreement": 0.25}


def test_the_watch_reads_its_judge_and_leaves_out_responses_without_an_opinion() -> None:
    watch = OverOptimisationWatch(WatchConfig(), "gold")
    found = watch.observe([rollout({"gold": 1.0, "reward": 3.0}, {"gold": 3.0}), rollout({"reward": 9.0})], FIGURES)
    assert found == {"kl_root": 2.0, "gold": 2.0, "gold_std": 1.0, "over_optimised": 0.0}
    assert watch.state_dict()["history"] == [[0.5, 2.0, 1.0, 0.25]]


def test_without_a_judge_only_distance_and_alarm_are_told() -> None:
    for judge, heads in ((None, {"gold": 1.0}), ("gold", {"reward": 1.0})):
        watch = OverOptimisationWatch(WatchConfig(), judge)
        assert watch.observe([rollout(heads)], {**FIGURES, "kl_sequence": -0.1}) == {
            "kl_root": 0.0,
            "over_optimised": 0.0,
        }


def test_the_alarm_stays_and_a_restored_watch_knows_it() -> None:
    watch = OverOptimisationWatch(WatchConfig(window=6, stop=True), "gold")
    for k in range(30):
        gold = -float(k) if k < 15 else float(k)
        watch.observe([rollout({"gold": gold}, {"gold": gold + 1})], {**FIGURES, "score": float(k)})
        if k == 14:
            assert watch.ends_run
            raised = watch.alarm_step
    assert watch.alarm_step == raised < 15
    other = OverOptimisationWatch(WatchConfig(window=6, stop=True), "gold")
    other.load_state_dict(watch.state_dict())
    assert isinstance(other.alarm, Alarm)
    assert (other.alarm, other.alarm_step, other.ends_run) == (watch.alarm, raised, True)
    assert not OverOptimisationWatch(WatchConfig(), "gold").ends_run


def test_the_sources_means_are_over_the_samples_that_have_them() -> None:
    means = source_means([rollout({"b": 1.0, "a": 2.0}), rollout({"b": 3.0}, {})])
    assert means == {"a": 2.0, "b": 2.0}
    assert list(means) == ["a", "b"]
    assert not math.isnan(sum(means.values()))
