"""Ctrl-C while the learner optimises: the step in progress is kept, and a second one ends it at once."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from lodestar.config import RunConfig, dump
from lodestar.crew.local import Local
from lodestar.files import write_atomically
from lodestar.local.board import Board, StageRow
from lodestar.local.signals import Interrupted
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.recipe.conduct import conduct
from lodestar.recipe.folder import CONFIG
from lodestar.recipe.plan import plan
from lodestar.recipe.store import Store
from lodestar.records import RunState

LONG_SECONDS = 8.0
"""What a process gets to end by itself, where its stage is no learner's."""


def config(root: Path, epochs: int) -> RunConfig:
    ppo = {"steps": 5, "batch": 16, "max_tokens": 24, "epochs": epochs, "score": {"offset": "none"}}
    return tiny_config(root, "mine", ppo=ppo, learner={"checkpoint_every": 100, "threads": 1})


def interrupted(run: RunConfig, *, twice: bool) -> tuple[Board, float, list[str]]:
    """The board, how long the end took, and the checkpoints there are, of a run that Ctrl-C ended in an update."""
    root, planned = Path(run.runs_dir) / run.name, plan(run)
    store, board = Store(root, run), Board(run.name, [StageRow(step.name) for step in planned.steps])
    write_atomically(root / CONFIG, dump(run))
    hurry, at = threading.Event(), [0.0]

    def look() -> None:
        if board.status is not None and board.status.state is RunState.OPTIMISING:
            at[0] = time.monotonic()
            if twice:
                threading.Timer(0.5, hurry.set).start()
            raise Interrupted(2)

    with contextlib.suppress(Interrupted), Local(run, planned, store, board, hurry=hurry) as crew:
        crew.look = look
        conduct(planned, store, crew, board)
    assert at[0], "the run ended before it was interrupted"
    checkpoints = sorted(path.name for path in (root / "ppo" / "unfinished" / "checkpoints").iterdir())
    return board, time.monotonic() - at[0], checkpoints


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_long_step_is_finished_and_kept(tmp_path: Path) -> None:
    write_tiny_models(tmp_path / "tiny")
    board, seconds, checkpoints = interrupted(config(tmp_path, 1500), twice=False)
    assert seconds > LONG_SECONDS, "the step must be longer than what other processes get"
    assert checkpoints == ["step-000000", "step-000001"]
    assert any("ending: the learner finishes step 1" in message.text for message in board.messages)


@pytest.mark.timeout(300)
def test_a_second_ctrl_c_ends_at_once_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    write_tiny_models(tmp_path / "tiny")
    board, seconds, checkpoints = interrupted(config(tmp_path, 100_000), twice=True)
    assert checkpoints == ["step-000000"]
    assert seconds < 60, "not the ten minutes that a step may take"
    assert any("Ctrl-C again ends it at once" in message.text for message in board.messages)
