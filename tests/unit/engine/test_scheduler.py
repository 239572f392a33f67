"""Blocks, prefixes and memory across preemption, cancellation, broken weights and swaps."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch

from lodestar import metrics
from lodestar.engine.blocks import BlockManager, block_hashes
from lodestar.errors import ModelError
from lodestar.records import FinishReason, SamplingParams, Scored, WeightVersion

CACHES = pytest.mark.parametrize("paged", [False, True], ids=["slabs", "pages"])


def copied(models: Any) -> Any:
    return copy.deepcopy(models("llama"))


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, 131), k=length)


# --- prefixes ------------------------------------------------------------------------------------------------------
def test_a_prefix_is_evicted_from_its_end() -> None:
    blocks = BlockManager(6)
    hashes = block_hashes(list(range(64)), 16)
    held = blocks.take(4)
    assert held is not None
    for block, prefix in zip(held, hashes, strict=True):
        blocks.publish(block, prefix)
    blocks.release(held)
    assert blocks.take(4) is not None
    assert blocks.find(hashes) == held[:2]


@CACHES
def test_what_is_left_of_an_evicted_prefix_is_shared(make_engine: Any, run: Any, paged: bool) -> None:
    engine = make_engine(paged=paged, kv_cache_tokens=256)
    prompt = prompt_of(100)
    run(engine, [(prompt, SamplingParams(1))])
    run(engine, [(prompt_of(170 if paged else 90, seed=1), SamplingParams(20, ignore_eos=True))])
    before = engine.scheduler.prefix_hit_tokens
    run(engine, [(prompt, SamplingParams(1))])
    assert 0 < engine.scheduler.prefix_hit_tokens - before < 96


def test_samples_go_on_when_the_one_that_computed_their_prompt_was_preempted(make_engine: Any) -> None:
    engine = make_engine(kv_cache_tokens=1024, prefill_tokens=64, prefix_cache=False, max_sequences=1)
    request = engine.request(prompt_of(40), SamplingParams(120, n=2, ignore_eos=True, seed=1))
    engine.add(request)
    leader, follower = request.sequences
    while len(leader.response) < 60:
        engine.step()
    engine.scheduler._preempt(leader)
    engine.scheduler._max_sequences = 2
    while leader.finish_reason is None:
        engine.step()
    assert len(follower.response) > 50, "the follower waited for a prompt that its leader had computed again"


# --- figures -------------------------------------------------------------------------------------------------------
def test_gauges_fall_when_requests_end_or_are_aborted(make_engine: Any, run: Any) -> None:
    gauges = (metrics.SEQUENCES_RUNNING, metrics.SEQUENCES_WAITING, metrics.KV_TOKENS_USED)
    engine = make_engine(max_sequences=2)
    run(engine, [([3, 4, 5], SamplingParams(4, n=3, ignore_eos=True))])
    assert [gauge._value.get() for gauge in gauges] == [0, 0, 0]
    request = engine.request([3, 4, 5], SamplingParams(50, n=3, ignore_eos=True))
    engine.add(request)
    assert metrics.SEQUENCES_WAITING._value.get() == 3
    engine.step()
    assert [gauge._value.get() for gauge in gauges] == [2, 1, 32]
    engine.abort(request.id)
    assert [gauge._value.get() for gauge in gauges] == [0, 0, 0]


# --- broken weights ------------------------------------------------------------------------------------------------
def test_weights_that_failed_their_probe_leave_nothing_in_the_cache(make_engine: Any, models: Any, run: Any) -> None:
    engine = make_engine(model=copied(models))
    probe = Scored(tuple(prompt_of(60)), 50)

    def verify(engine: Any) -> None:
        if any(math.isnan(value) for value in engine.replay(probe)):
            raise ModelError("not finite")

    broken = {name: tensor * math.nan for name, tensor in engine.model.named_parameters()}
    with pytest.raises(ModelError, match="not finite"):
        engine.swap(broken, WeightVersion("a", 1, "d"), verify)
    work = [([3 + i] * (1 + 5 * (i % 2)), SamplingParams(20, ignore_eos=True)) for i in range(8)]
    for request in run(engine, work):
        assert request.sequences[0].finish_reason is FinishReason.LENGTH


def with_a_broken_token(models: Any) -> Any:
    model = copied(models)
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = torch.nan
        model.lm_head.weight[77] = 0  # never drawn
        model.lm_head.weight[77, 0] = -100
    return model


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_broken_prompt_that_was_aborted_leaves_nothing_in_the_cache(
    make_engine: Any, models: Any, run: Any, deterministic: bool
) -> None:
    model = with_a_broken_token(models)
    engine = make_engine(model=model, deterministic=deterministic, prefill_tokens=64, prefix_cache=False)
    bad = engine.request([77] * 200, SamplingParams(20))
    engine.add(bad)
    engine.step()
    engine.abort(bad.id)
    work = [([3 + i] * (1 + 5 * (i % 2)), SamplingParams(20, ignore_eos=True)) for i in range(8)]
    for request in run(engine, work):
        assert request.sequences[0].finish_reason is FinishReason.LENGTH or 77 in request.sequences[0].tokens


@CACHES
def test_a_broken_prefix_is_broken_for_whoever_shares_it(make_engine: Any, models: Any, run: Any, paged: bool) -> None:
    engine = make_engine(model=with_a_broken_token(models), paged=paged)
    for _ in range(3):
        (request,) = run(engine, [([5, 77, *prompt_of(40)], SamplingParams(5, ignore_eos=True))])
        assert request.sequences[0].finish_reason is FinishReason.ERROR
    assert engine.status().blocks_used == 0


@CACHES
def test_a_probe_finds_room_in_a_full_cache(make_engine: Any, models: Any, full_logprobs: Any, paged: bool) -> None:
    engine = make_engine(model=copied(models), paged=paged, kv_cache_tokens=320, prefix_cache=False, swap="continue")
    requests = [engine.request(prompt_of(30, i), SamplingParams(60, seed=i, ignore_eos=True)) for i in range(8)]
    for request in requests:
        engine.add(request)
    while engine.status().blocks_used < 19:
        engine.step()
    probe = Scored(tuple(prompt_of(80)), 60)
    expected = engine.logprobs([probe])[0].logprobs
    assert engine.replay(probe) == pytest.approx(expected, abs=1e-4)
    while engine.scheduler:
        engine.step()
    for request in requests:
        expected = full_logprobs(engine.model, request)[0]
        assert request.sequences[0].logprobs == pytest.approx(expected, abs=1e-4)
    assert engine.status().blocks_used == 0
