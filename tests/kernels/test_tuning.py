"""The choice of blocks: defaults, measured choices, and how they are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import triton
from lodestar_kernels import tuning
from lodestar_kernels.tuning import Blocks, Tuner
from triton.runtime.errors import OutOfResources

SLOW, FAST, TOO_LARGE = Blocks(16, 16), Blocks(64, 64), Blocks(512, 512)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a GPU, with an empty cache folder."""
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


class Stopwatch:
    """Runs a launch and reports a fixed time for the blocks that it used."""

    def __init__(self) -> None:
        self.launched: list[Blocks] = []

    def launch(self, blocks: Blocks) -> None:
        if blocks == TOO_LARGE:
            raise OutOfResources(required=1 << 20, limit=1 << 16, name="shared memory")
        self.launched.append(blocks)

    def time(self, run: Callable[[], object]) -> float:
        run()
        return {SLOW: 3.0, FAST: 1.0}[self.launched[-1]]


def tuner(stopwatch: Stopwatch) -> Tuner[Blocks]:
    return Tuner("test", lambda key: [SLOW, FAST, TOO_LARGE], time=stopwatch.time)


def test_without_measurements_the_first_candidate_is_taken_and_nothing_runs() -> None:
    stopwatch = Stopwatch()
    assert tuner(stopwatch).choose((64, True)) == SLOW
    assert stopwatch.launched == []


def test_the_fastest_candidate_that_can_be_launched_is_remembered_per_key() -> None:
    stopwatch = Stopwatch()
    tuned = tuner(stopwatch)
    assert tuned.tune((64, True), stopwatch.launch) == FAST
    assert tuned.choose((64, True)) == FAST
    assert tuned.choose((128, True)) == SLOW


def test_choices_outlive_the_process_and_add_up() -> None:
    stopwatch = Stopwatch()
    tuner(stopwatch).tune((64, True), stopwatch.launch)
    tuner(stopwatch).tune((128, False), stopwatch.launch)
    fresh = tuner(Stopwatch())
    assert fresh.choose((64, True)) == fresh.choose((128, False)) == FAST


def test_a_known_choice_is_not_measured_again() -> None:
    first, again = Stopwatch(), Stopwatch()
    tuner(first).tune((64, True), first.launch)
    assert tuner(again).tune((64, True), again.launch) == FAST
    assert again.launched == []


def test_processes_that_tune_at_once_keep_each_others_choices() -> None:
    one, other = Stopwatch(), Stopwatch()
    first, second = tuner(one), tuner(other)
    second.choose((1,))  # reads the empty folder
    first.tune((64, True), one.launch)
    second.tune((128, False), other.launch)
    fresh = tuner(Stopwatch())
    assert fresh.choose((64, True)) == fresh.choose((128, False)) == FAST


def test_a_choice_that_is_no_candidate_any_more_is_ignored() -> None:
    stopwatch = Stopwatch()
    tuner(stopwatch).tune((64, True), stopwatch.launch)
    later = Tuner("test", lambda key: [SLOW, Blocks(32, 32)], time=stopwatch.time)
    assert later.choose((64, True)) == SLOW


def test_a_launch_falls_back_to_what_the_device_can_hold_and_stays_there() -> None:
    stopwatch = Stopwatch()
    cramped = Tuner("test", lambda key: [TOO_LARGE, FAST, SLOW], time=stopwatch.time)
    cramped.launch((64, True), stopwatch.launch)
    assert stopwatch.launched == [FAST]
    assert cramped.choose((64, True)) == FAST


def test_a_launch_that_fits_nowhere_says_so() -> None:
    hopeless = Tuner("test", lambda key: [TOO_LARGE])
    with pytest.raises(OutOfResources):
        hopeless.launch((64, True), Stopwatch().launch)
