"""The status board and the controls, across threads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from lodestar_services.learner.status import Controls, StatusBoard

from lodestar.errors import LodestarError
from lodestar.records import ModelInfo, RunState, RunStatus, WeightVersion


def board() -> StatusBoard:
    model = ModelInfo("run", WeightVersion("", 0, ""), "")
    return StatusBoard(RunStatus("run", model, RunState.STARTING, 0, 3, 0, 4), asyncio.get_running_loop())


async def test_a_watcher_hears_at_once_then_of_changes_until_the_end():
    status = board()
    heard = []

    async def watch() -> None:
        async for one in status.watch():
            heard.append((one.state, one.step))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    for state, step in ((RunState.COLLECTING, 1), (RunState.FINISHED, 3)):
        await asyncio.to_thread(status.update, state=state, step=step)
        await asyncio.sleep(0.01)
    await asyncio.wait_for(watching, 5)
    assert heard == [(RunState.STARTING, 0), (RunState.COLLECTING, 1), (RunState.FINISHED, 3)]


def test_a_paused_loop_goes_on_when_resumed_or_stopped():
    for release in ("resume", "stop"):
        controls = Controls()
        controls.pause()
        waiting = threading.Thread(target=controls.wait_while_paused)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        getattr(controls, release)()
        waiting.join(5)
        assert not waiting.is_alive()


def test_leaving_stops_the_loop_and_not_a_run_whose_end_was_wanted_before():
    controls = Controls()
    controls.leave()
    assert (controls.stopping, controls.leaving) == (True, True)
    stopped = Controls()
    stopped.stop()
    stopped.leave()
    assert (stopped.stopping, stopped.leaving) == (True, False)


def test_whoever_asks_for_a_checkpoint_gets_its_path_or_its_failure():
    controls = Controls()
    for answer in (Path("step-000003"), LodestarError("disk full")):
        loop = threading.Thread(target=lambda: (controls.wait_while_paused(), controls.checkpointed(answer)))  # noqa: B023
        controls.pause()
        loop.start()
        if isinstance(answer, Path):
            assert controls.request_checkpoint(5) == answer
        else:
            with pytest.raises(LodestarError, match="disk full"):
                controls.request_checkpoint(5)
        loop.join(5)


def test_a_checkpoint_that_does_not_come_in_time_is_said():
    with pytest.raises(TimeoutError):
        Controls().request_checkpoint(0.01)
