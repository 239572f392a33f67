"""The engine behind asyncio: streams, cancellation, swaps, failures."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from lodestar.engine.front import AsyncEngine, satisfies
from lodestar.errors import (
    InvalidArgument,
    LodestarError,
    ModelError,
    ResourceExhausted,
    Unavailable,
    VersionUnavailable,
)
from lodestar.fair import Flow
from lodestar.records import GenerationChunk, Purpose, SamplingParams, Scored, WeightVersion

LONG = SamplingParams(200, seed=1, ignore_eos=True)


@contextlib.asynccontextmanager
async def serving(make_engine: Any, model: Any = None, **options: Any) -> AsyncIterator[AsyncEngine]:
    front = AsyncEngine(lambda: make_engine(model=model, **options), name="tiny")
    await front.start()
    try:
        yield front
    finally:
        await front.close()


async def collect(front: AsyncEngine, sampling: SamplingParams, **options: Any) -> list[GenerationChunk]:
    return [chunk async for chunk in front.generate([5, 6, 7], sampling, **options)]


def copied(models: Any) -> Any:
    import copy

    return copy.deepcopy(models("llama"))


async def empty(front: AsyncEngine) -> None:
    async with asyncio.timeout(5):
        while (status := await front.status()).running or status.waiting or status.blocks_used:
            await asyncio.sleep(0.005)


async def test_streamed_and_whole_answers_agree(make_engine: Any) -> None:
    async with serving(make_engine) as front:
        sampling = SamplingParams(30, n=2, seed=4, logprobs=True, top_logprobs=2, ignore_eos=True)
        pieces, whole = await asyncio.gather(collect(front, sampling), collect(front, sampling, stream=False))
        assert len(whole) == 2
        for answer in whole:
            mine = [piece for piece in pieces if piece.sample_index == answer.sample_index]
            assert sum((piece.token_ids for piece in mine), ()) == answer.token_ids
            assert "".join(piece.text for piece in mine) == answer.text
            assert sum((piece.logprobs for piece in mine), ()) == pytest.approx(answer.logprobs, abs=1e-5)
            assert len(answer.top_logprobs) == 30
            assert [piece.finish_reason is None for piece in mine] == [True] * (len(mine) - 1) + [False]


async def test_leaving_or_cancelling_frees_the_blocks(make_engine: Any) -> None:
    async with serving(make_engine) as front:
        async with contextlib.aclosing(front.generate([5, 6], LONG)) as chunks:
            await anext(chunks)
        task = asyncio.create_task(collect(front, LONG))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await empty(front)


async def test_draining_finishes_started_requests_on_the_old_weights(make_engine: Any, models: Any) -> None:
    async with serving(make_engine, copied(models), max_sequences=2) as front:
        started = asyncio.create_task(collect(front, SamplingParams(60, n=4, seed=1, ignore_eos=True)))
        while (await front.status()).running == 0:
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        weights = {name: tensor.detach() * 1.05 for name, tensor in models("llama").named_parameters()}
        swapping = asyncio.create_task(front.swap(weights, WeightVersion("a", 1, "d")))
        await asyncio.sleep(0)
        later = asyncio.create_task(collect(front, SamplingParams(5, seed=1)))
        assert {chunk.model.version.step for chunk in await started} == {0}
        await swapping
        assert {chunk.model.version.step for chunk in await later} == {1}


async def test_continuing_stamps_every_token_with_its_version(make_engine: Any, models: Any) -> None:
    async with serving(make_engine, copied(models), swap="continue") as front:
        chunks = front.generate([5, 6], LONG, stream=True)
        first = await anext(chunks)
        weights = {name: tensor.detach() * 1.05 for name, tensor in models("llama").named_parameters()}
        await front.swap(weights, WeightVersion("a", 1, "d"))
        steps = [0] * len(first.token_ids)
        async for chunk in chunks:
            steps += chunk.token_steps or [chunk.model.version.step] * len(chunk.token_ids)
        assert len(steps) == 200
        assert steps == sorted(steps)
        assert set(steps) == {0, 1}


async def test_a_refused_swap_leaves_the_engine_serving(make_engine: Any) -> None:
    async with serving(make_engine) as front:
        with pytest.raises(ModelError, match="unknown"):
            await front.swap({"nonsense": torch.zeros(1)}, WeightVersion("a", 1, "d"))
        assert front.version.step == 0
        assert await collect(front, SamplingParams(3))


async def test_a_waiting_call_is_served_when_its_version_comes(make_engine: Any) -> None:
    async with serving(make_engine) as front:
        wanted = WeightVersion("a", 0, "")
        waiting = asyncio.create_task(front.wait_for(wanted, 5))
        await asyncio.sleep(0.01)
        await front.swap({}, WeightVersion("a", 0, "d"))
        await waiting
        with pytest.raises(VersionUnavailable, match="holds step 0 of a"):
            await front.wait_for(WeightVersion("a", 1, ""), 0.01)


def test_versions_compare_within_an_incarnation_or_by_digest() -> None:
    held = WeightVersion("a", 4, "d4")
    assert satisfies(held, WeightVersion("a", 3, ""))
    assert satisfies(held, WeightVersion("b", 9, "d4"))
    assert satisfies(held, WeightVersion("", 0, ""))
    assert not satisfies(held, WeightVersion("a", 5, ""))
    assert not satisfies(held, WeightVersion("b", 1, ""))
    assert not satisfies(WeightVersion("", 0, "d"), WeightVersion("a", 0, ""))


async def test_logprobs_run_between_steps(make_engine: Any) -> None:
    async with serving(make_engine, prefill_tokens=16) as front:
        scored = [Scored((3, 4, 5, 6, 7), 2), Scored(tuple(range(2, 40)), 30)] * 3
        busy = asyncio.create_task(collect(front, LONG))
        answers = await front.logprobs(scored, temperature=0.5, entropy=True)
        assert [len(answer.logprobs) for answer in answers] == [3, 8] * 3
        assert answers[0].logprobs == pytest.approx(answers[2].logprobs, abs=1e-5)
        assert await busy


async def test_training_refuses_other_distributions(make_engine: Any) -> None:
    async with serving(make_engine) as front:
        with pytest.raises(InvalidArgument, match="softmax"):
            await collect(front, SamplingParams(4, top_p=0.9), purpose=Purpose.TRAINING)


async def test_a_failed_step_ends_its_requests_and_not_the_server(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_engine) as front:
        with monkeypatch.context() as patch:
            patch.setattr(front.engine._runner, "run", lambda plan: 1 / 0)
            with pytest.raises(LodestarError, match="failed in a step"):
                await collect(front, LONG)
        assert "ZeroDivisionError" in caplog.text
        assert await collect(front, SamplingParams(3))
        await empty(front)


async def test_a_failed_step_ends_the_requests_that_were_in_it_alone(make_engine: Any) -> None:
    async with serving(make_engine) as front:
        chunks = front.generate([5, 6], LONG)
        tokens = len((await anext(chunks)).token_ids)
        front._on_failure([-1], ZeroDivisionError())
        assert tokens + sum([len(chunk.token_ids) async for chunk in chunks]) == 200


async def test_a_request_that_cannot_be_added_fails_alone(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(make_engine) as front:
        with monkeypatch.context() as patch:
            patch.setattr("lodestar.engine.engine.StopChecker", lambda *_: 1 / 0)
            with pytest.raises(LodestarError, match=r"failed to take the request \(ZeroDivisionError\)"):
                await collect(front, SamplingParams(3, stop=("x",)))
        assert "ZeroDivisionError" in caplog.text
        assert await collect(front, SamplingParams(3))
        await empty(front)


async def test_closing_ends_streams_and_waiting_calls(make_engine: Any) -> None:
    async with serving(make_engine) as front:
        stream = asyncio.create_task(collect(front, LONG))
        await front.pause()
        swap = asyncio.create_task(front.swap({"x": torch.zeros(1)}, WeightVersion("a", 1, "d")))
        await asyncio.sleep(0.02)
    for task in (stream, swap):
        with pytest.raises((Unavailable, ModelError)):
            await task
    with pytest.raises(Unavailable):
        await collect(front, LONG)


async def test_a_model_that_cannot_be_loaded_is_the_starters_error() -> None:
    def fail() -> Any:
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        await AsyncEngine(fail, name="tiny").start()


async def test_log_probs_of_many_callers_leave_generation_as_much_time_and_take_turns(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(make_engine, prefill_tokens=16) as front:
        seen: list[str] = []
        engine, scored = front.engine, [Scored((5, 6, 7, 8), 1)]
        step, score = engine.step, engine.logprobs

        def recorded_step() -> Any:
            seen.append("step")
            time.sleep(0.002)
            return step()

        def recorded_score(batch: Any, **options: Any) -> Any:
            seen.append(str(batch[0].token_ids[0]))
            time.sleep(0.01)
            return score(batch, **options)

        monkeypatch.setattr(engine, "step", recorded_step)
        monkeypatch.setattr(engine, "logprobs", recorded_score)
        generating = asyncio.create_task(collect(front, LONG))
        while len(seen) < 3:
            await asyncio.sleep(0.002)
        greedy = [asyncio.create_task(front.logprobs(scored, flow=Flow(caller="greedy"))) for _ in range(12)]
        await asyncio.sleep(0)
        lone = asyncio.create_task(front.logprobs([Scored((9, 6, 7, 8), 1)], flow=Flow(caller="lone")))
        await asyncio.gather(*greedy, lone)
        generating.cancel()
        asides = [place for place, what in enumerate(seen) if what != "step"]
        assert len(asides) == 13
        between = [later - earlier - 1 for earlier, later in itertools.pairwise(asides)]
        assert min(between) >= 1, "a step before the next"
        assert sum(between) * 0.004 >= 0.01 * 12 * 0.5, "as much time"
        assert [seen[place] for place in asides].index("9") <= 2


async def test_log_probs_that_wait_are_bounded_and_refused_when_the_engine_stops(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(make_engine, max_waiting=3) as front:
        entered, release = threading.Event(), threading.Event()

        def hold(*_: Any, **__: Any) -> Any:
            entered.set()
            release.wait(10)
            return []

        monkeypatch.setattr(front.engine, "logprobs", hold)
        calls = [asyncio.create_task(front.logprobs([Scored((5, 6), 1)])) for _ in range(3)]
        assert await asyncio.to_thread(entered.wait, 10)
        with pytest.raises(ResourceExhausted):
            await front.logprobs([Scored((5, 6), 1)])
        closing = asyncio.create_task(front.close())
        await asyncio.sleep(0.05)
        release.set()
        await closing
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(Unavailable) == 2
