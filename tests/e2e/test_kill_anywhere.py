"""Whoever is killed, and whenever: the same command goes on, and ends with the very weights of an undisturbed run.

A run of two rounds, in real processes. The conductor and every stage's own process die at a change of files that the
seed chooses from those that the undisturbed run made, which includes every one of sealing; services, workers, Redis and
the conductor at work are struck from outside.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.killing import Death, Killed, Strike, every_death, every_strike

PARTS = 3
SEED = 11


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    run = Killed(tmp_path_factory.mktemp("undisturbed"))
    run.record()
    run.run([], [], 400)
    run.assert_whole()
    return run


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_that_is_killed_anywhere_ends_as_an_undisturbed_one(
    undisturbed: Killed, tmp_path: Path, part: int
) -> None:
    dice = random.Random(SEED)
    events = undisturbed.events()
    deaths, strikes = every_death(undisturbed.steps, events, dice), every_strike(undisturbed.steps, dice)
    assert len(deaths) + len(strikes) >= 30
    dice.shuffle(deaths)
    dice.shuffle(strikes)
    run = Killed(tmp_path)
    run.run(deaths[part::PARTS], strikes[part::PARTS], 1200)
    run.assert_whole()
    assert run.made() == undisturbed.made()


@pytest.mark.timeout(300)
def test_a_run_of_rounds_survives_a_few_kills(tmp_path: Path) -> None:
    """Both runs at once, to save time."""
    whole, broken = Killed(tmp_path / "whole"), Killed(tmp_path / "broken")
    beside = whole.start()
    try:
        deaths = [Death("r1.label", "r1.label", 3), Death("r2.sample", "conductor", 6)]
        broken.run(deaths, [Strike("r1.ppo", "redis", 0.1), Strike("r2.ppo", "learner-0", 0.2)], 280)
        assert beside.wait(280) == 0, whole.said()
    finally:
        beside.kill()
    for run in (whole, broken):
        assert not run.survivors()
        run.assert_whole()
    assert broken.made() == whole.made()
