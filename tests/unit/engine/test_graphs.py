"""Decode steps from fixed buffers, as a CUDA graph replays them; captured for real where there is a GPU."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch

from lodestar.config import PolicyConfig
from lodestar.engine.engine import Engine
from lodestar.engine.graphs import DecodeGraphs, rounded_context, rounded_rows
from lodestar.local.tiny import tokenizer as word_tokenizer
from lodestar.records import SamplingParams, Scored, WeightVersion


def work_of(count: int, seed: int = 0) -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(seed)
    return [
        (rng.choices(range(2, 131), k=rng.randrange(1, 60)), SamplingParams(24, n=1 + i % 3, temperature=0.8, seed=i))
        for i in range(count)
    ]


def test_rows_and_contexts_are_rounded_up() -> None:
    assert [rounded_rows(rows) for rows in (1, 2, 3, 5, 8, 9, 16, 100)] == [1, 2, 4, 8, 8, 16, 16, 104]
    assert [rounded_context(tokens, 3000) for tokens in (1, 512, 513, 1025, 2049)] == [512, 512, 1024, 2048, 3000]


@pytest.mark.parametrize("family", ["llama", "gemma3 windows", "gpt2"])
def test_steps_from_fixed_buffers_say_what_plain_steps_say(
    make_engine: Any, run: Any, full_logprobs: Any, models: Any, family: str
) -> None:
    engine = make_engine(family, paged=True, max_sequences=6, kv_cache_tokens=1024)
    runner = engine._runner
    graphs = runner.graphs = DecodeGraphs(runner.forward, engine._cache, torch.device("cpu"), capture=False)
    for request in run(engine, work_of(8)):
        for sequence, expected in zip(request.sequences, full_logprobs(models(family), request, 0.8), strict=True):
            assert sequence.logprobs == pytest.approx(expected, abs=1e-4)
    assert {rows for rows, _ in graphs.steps} >= {1, 2, 8}
    assert engine.status().blocks_used == 0


# --- on a GPU ------------------------------------------------------------------------------------------------------
def gpu_engine(models: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Engine:
    model = copy.deepcopy(models("llama")).to("cuda", dtype)
    config = PolicyConfig(**{"max_sequences": 32, "kv_cache_tokens": 8192, **options})
    return Engine(model, word_tokenizer(131), config, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.3)], ids=str)
def test_captured_steps_say_what_a_full_pass_says(models: Any, run: Any, dtype: torch.dtype, close: float) -> None:
    engine = gpu_engine(models, dtype)
    for request in run(engine, work_of(12)):
        for sequence in request.sequences:
            (full,) = engine.logprobs([Scored(tuple(sequence.tokens), sequence.prompt_tokens)], temperature=0.8)
            assert sequence.logprobs == pytest.approx(full.logprobs, abs=close)
    assert engine._runner.graphs is not None
    assert engine._runner.graphs.steps, "nothing was captured"
    assert engine.status().blocks_used == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured_steps_follow_weights_that_are_swapped_in_place(models: Any, run: Any, dtype: torch.dtype) -> None:
    engine = gpu_engine(models, dtype)
    run(engine, work_of(4))
    captured = dict(engine._runner.graphs.steps)  # type: ignore[union-attr]
    changed = {name: tensor.detach() * 1.1 for name, tensor in engine.model.named_parameters()}
    engine.swap(changed, WeightVersion("a", 1, "d"))
    for request in run(engine, work_of(4, seed=1)):
        for sequence in request.sequences:
            (full,) = engine.logprobs([Scored(tuple(sequence.tokens), sequence.prompt_tokens)], temperature=0.8)
            assert sequence.logprobs == pytest.approx(full.logprobs, abs=1e-4 if dtype is torch.float32 else 0.3)
    assert captured.items() <= engine._runner.graphs.steps.items()  # type: ignore[union-attr]


@pytest.mark.gpu
def test_a_decode_step_waits_for_the_device_once(models: Any) -> None:
    engine = gpu_engine(models)
    options: dict[str, Any] = {"top_p": 0.9, "top_k": 20, "min_p": 0.01, "min_tokens": 5, "top_logprobs": 3}
    for i, more in enumerate(({}, options, {"temperature": 0.0})):
        sampling = SamplingParams(60, seed=i, ignore_eos=True, logit_bias={7: 1.0} if more else {}, **more)
        engine.add(engine.request([5, 6, 7], sampling))
    for _ in range(20):
        engine.step()
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchroniz" in str(wait.message)]) <= 1
