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


def tuner(stopwatch: Stopwatch) -> Tuner:
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
