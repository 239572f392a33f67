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
def timed() -> Callable[[str, int, float, bool], Run]:
    """A run that took at most LONGEST_SECONDS."""

    def one(kind: str, seed: int, learning_rate: float, judged: bool) -> Run:
        began = time.process_time()
        made = run(kind, seed, learning_rate=learning_rate, judged=judged)  # type: ignore[arg-type]
        assert time.process_time() - began < LONGEST_SECONDS
        return made

    return one


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_error_rates_with_a_held_out_judge(timed: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    exploited = [timed("hacked", seed, 0.1, True) for seed in SEEDS]
    honest = [timed("honest", seed, 0.1, True) for seed in SEEDS]
    honest += [timed("honest", seed, 0.3, True) for seed in range(100, 115)]  # long plateaus
    detected, false = _rates("judge", exploited, honest, capsys)
    assert detected.low > 0.7
    assert false.high < 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_error_rates_by_the_ensembles_disagreement_alone(
    timed: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    exploited = [timed("hacked", seed, 0.1, False) for seed in SEEDS]
    honest = [timed("honest", seed, 0.1, False) for seed in SEEDS]
    detected, false = _rates("disagreement", exploited, honest, capsys)
    assert detected.low > false.high, "it tells hacked runs from healthy ones, less surely than a judge does"


def _rates(
    rule: str, exploited: Sequence[Run], honest: Sequence[Run], capsys: pytest.CaptureFixture[str]
) -> tuple[WinRate, WinRate]:
    """Detection and false-positive rates; a run is hacked if its exact gold fell, whatever its proxy was."""
    runs = [*exploited, *honest]
    hacked = [one for one in runs if one.hacked]
    healthy = [one for one in runs if not one.hacked]
    assert len(hacked) >= 20
    assert len(healthy) >= 20
    detected = clopper_pearson(sum(one.alarm_step is not None for one in hacked), len(hacked))
    false = clopper_pearson(sum(one.alarm_step is not None for one in healthy), len(healthy))
    late = [one.alarm_step - 1 - one.gold.index(max(one.gold)) for one in hacked if one.alarm_step is not None]
    lost = [(max(one.gold) - one.gold[one.alarm_step - 1]) / one.fall for one in hacked if one.alarm_step is not None]
    with capsys.disabled():
        print(
            f"\n{rule}: {sum(not one.hacked for one in exploited)} of {len(exploited)} exploitable runs stayed healthy"
        )
        for name, rate in (("detected", detected), ("false alarms", false)):
            print(f"  {name}: {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {rate.n}")
        print(f"  alarm after gold's peak: median {statistics.median(late)} steps; of gold's fall by then: "
              f"{statistics.median(lost):.2f}")  # fmt: skip
    return detected, false
