"""Calls in flight: what was taken is done, and what was turned away spoils the step of its batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lodestar_services.training.training import Training

from lodestar.config import ArchitectureConfig, TrainingTask
from lodestar.errors import FailedPrecondition, ResourceExhausted
from lodestar.local.tiny import tokenizer
from lodestar.model.loading import new_causal_lm, save_model
from lodestar.records import Datum, LossResult, OptimParams

ROWS = [Datum((4, 5), (5, 6)), Datum((4, 5), (5, 7))]


@pytest.fixture
async def training(tmp_path: Path) -> AsyncIterator[Training]:
    words = tokenizer(16)
    shape = ArchitectureConfig(hidden_size=16, intermediate_size=24, layers=1, heads=2, kv_heads=2, context_tokens=32)
    save_model(new_causal_lm(shape, words, seed=1), words, tmp_path / "model")
    section = {"weights": tmp_path / "weights", "kv_cache_tokens": 256, "max_queued": 1}
    task = {"run": "t", "folder": tmp_path, "model": str(tmp_path / "model"), "section": section}
    training = Training(TrainingTask.model_validate(task))
    await training.load()
    await training.create("m", None, "", optimizer=False)
    yield training
    await asyncio.to_thread(training.stop)


def begun(training: Training) -> asyncio.Task[LossResult]:
    return asyncio.create_task(training.forward_backward("m", ROWS, "cross_entropy", {}, forward_only=False))


async def test_a_part_that_is_turned_away_spoils_the_step_of_its_batch(training: Training) -> None:
    first, second = begun(training), begun(training)
    with pytest.raises(ResourceExhausted, match="1 calls wait, and at most 1 may"):
        await second
    await first
    with pytest.raises(FailedPrecondition, match=r"1 calls wait.*send the whole batch again"):
        await training.optim_step("m", OptimParams(0.1))
    await begun(training)
    model, _ = await training.optim_step("m", OptimParams(0.1))
    assert model.version.step == 1


async def test_what_was_taken_is_done_though_its_caller_leaves(training: Training) -> None:
    leaving = begun(training)
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    while training._queued:
        await asyncio.sleep(0.01)
    assert (await training.describe("m")).accumulated == len(ROWS)
