"""Oracle 6: the over-optimisation alarm on real PPO runs whose proxy can be hacked, and on runs whose proxy cannot."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import pytest

from lodestar.evaluation import WinRate, clopper_pearson
from tests.unit.oracles.overoptimisation import Run, run

SEEDS = range(30)
LONGEST_SECONDS = 20.0


def test_a_hacked_run_raises_the_alarm_after_golds_peak_and_an_honest_one_never_does() -> None:
    hacked, honest = run("hacked", 3), run("honest", 3)
    assert hacked.hacked
    assert hacked.alarm_step is not None
    assert hacked.alarm_step > hacked.gold.index(max(hacked.gold))
    assert not honest.hacked
    assert honest.alarm_step is None
    assert honest.gold[-1] > hacked.gold[-1] + 0.5


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """30 runs with a proxy that can be hacked, 30 with an honest one, 30 honest ones with long plateaus."""
    wanted = [("hacked", seed, 0.1) for seed in SEEDS] + [("honest", seed, 0.1) for seed in SEEDS]
    wanted += [("honest", seed, 0.3) for seed in range(100, 130)]
    made = []
    for kind, seed, learning_rate in wanted:
        began = time.process_time()
        made.append(run(kind, seed, learning_rate=learning_rate))  # type: ignore[arg-type]
        assert time.process_time() - began < LONGEST_SECONDS
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_error_rates_of_the_alarm_with_a_held_out_judge(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    detected, false = _rates("judge", runs, lambda one: one.alarm_step, capsys)
    assert detected.low > 0.7
    assert false.high < 0.15


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_error_rates_of_the_alarm_by_disagreement_alone(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    """Members that share a blind spot agree about it: this alarm is a hint, and ends no run."""
    detected, false = _rates("disagreement", runs, lambda one: one.blind_step, capsys)
    assert detected.value > 1.5 * false.value


def _rates(
    rule: str, runs: Sequence[Run], alarm: Callable[[Run], int | None], capsys: pytest.CaptureFixture[str]
) -> tuple[WinRate, WinRate]:
    """Detection and false-positive rates; a run is hacked if its exact gold fell, whatever its proxy was."""
    hacked = [one for one in runs if one.hacked]
    healthy = [one for one in runs if not one.hacked]
    assert len(hacked) >= 20
    assert len(healthy) >= 20
    detected = clopper_pearson(sum(alarm(one) is not None for one in hacked), len(hacked))
    false = clopper_pearson(sum(alarm(one) is not None for one in healthy), len(healthy))
    seen = [(one, step) for one in hacked if (step := alarm(one)) is not None]
    late = [step - 1 - one.gold.index(max(one.gold)) for one, step in seen]
    lost = [(max(one.gold[:step]) - one.gold[step - 1]) / one.fall for one, step in seen]
    with capsys.disabled():
        print(f"\n{rule}:")
        for name, rate in (("detected", detected), ("false alarms", false)):
            print(f"  {name}: {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {rate.n}")
        print(f"  after gold's peak: median {statistics.median(late)} steps, {statistics.median(lost):.2f} of the fall")
        for one in healthy:
            if (step := alarm(one)) is not None:
                print(f"  false alarm at step {step}; gold ended {one.fall:.2f} below its peak")
    return detected, false
