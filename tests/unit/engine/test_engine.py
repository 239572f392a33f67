"""The engine against the plain model, and what a request can ask of it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from lodestar.engine.slab_attention import SharedPrefix
from lodestar.errors import InvalidArgument, ModelError, ResourceExhausted
from lodestar.records import FinishReason, SamplingParams, Scored, WeightVersion

FAMILIES = ["llama", "llama tied", "qwen2", "qwen3", "mistral window", "gemma3 windows", "gpt2"]


def prompts(count: int, longest: int = 70, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, 131) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("paged", [False, True], ids=["slabs", "pages"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_a_full_forward_pass_of_the_plain_model(
    make_engine: Any, run: Any, full_logprobs: Any, models: Any, family: str, paged: bool
) -> None:
    engine = make_engine(family, paged=paged, prefill_tokens=48, max_sequences=6)
    work = [(p, SamplingParams(24, n=1 + i % 3, temperature=0.8, seed=i)) for i, p in enumerate(prompts(8))]
    for request in run(engine, work):
        for sequence, expected in zip(request.sequences, full_logprobs(models(family), request, 0.8), strict=True):
            assert sequence.logprobs == pytest.approx(expected, abs=1e-4)
    assert engine.status().blocks_used == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_hugging_face_model_agrees(make_engine: Any, models: Any, family: str) -> None:
    engine = make_engine(family)
    (sequence,) = engine.generate(prompts(1, seed=3)[0], SamplingParams(40, temperature=0, ignore_eos=True))
    model = models(family)
    plain = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    ids_S = torch.tensor(sequence.tokens)
    with torch.no_grad():
        logprobs_SV = plain(ids_S[None]).logits[0].log_softmax(-1)
    expected = logprobs_SV[:-1].gather(1, ids_S[1:, None])[sequence.prompt_tokens - 1 :, 0]
    assert sequence.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert sequence.response == logprobs_SV[sequence.prompt_tokens - 1 : -1].argmax(-1).tolist()


def test_attention_of_another_kind_is_refused(models: Any, make_engine: Any) -> None:
    other = LlamaForCausalLM._from_config(copy.deepcopy(models("llama").config), attn_implementation="eager")
    with pytest.raises(ModelError, match=r"eager attention, not on Lodestar's"):
        make_engine(model=other)


def test_bfloat16_gives_float32_logprobs_close_to_its_own_full_pass(
    models: Any, make_engine: Any, run: Any, full_logprobs: Any
) -> None:
    state = models("llama").state_dict()
    model = type(models("llama"))(copy.deepcopy(models("llama").config)).eval()
    model.load_state_dict(state)
    model.to(torch.bfloat16)
    engine = make_engine(model=model)
    for request in run(engine, [(p, SamplingParams(16, seed=i)) for i, p in enumerate(prompts(4))]):
        mine = torch.tensor(request.sequences[0].logprobs)
        assert mine == pytest.approx(full_logprobs(model, request)[0], abs=0.3)


# --- preemption, prefixes, fairness --------------------------------------------------------------------------------
@pytest.mark.parametrize("paged", [False, True], ids=["slabs", "pages"])
def test_preempted_sequences_are_recomputed_and_say_the_same(
    make_engine: Any, run: Any, full_logprobs: Any, models: Any, paged: bool
) -> None:
    work = [(p, SamplingParams(60, seed=i, ignore_eos=True)) for i, p in enumerate(prompts(8, 40))]
    small = make_engine(paged=paged, kv_cache_tokens=320, prefix_cache=False)
    squeezed = run(small, work)
    assert small.scheduler.preemptions > 0
    for request in squeezed:
        expected = full_logprobs(models("llama"), request)[0]
        assert request.sequences[0].logprobs == pytest.approx(expected, abs=1e-4)
    assert small.status().blocks_used == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [8192, 320], ids=["roomy", "preempting"])
def test_samples_that_read_their_prompt_together_say_what_the_plain_model_says(
    make_engine: Any,
    run: Any,
    full_logprobs: Any,
    models: Any,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    tokens: int,
) -> None:
    read: list[SharedPrefix] = []
    monkeypatch.setattr(SharedPrefix, "worth", lambda prefix, _: len(prefix.rows) > 1 and not read.append(prefix))
    engine = make_engine(family, kv_cache_tokens=tokens, max_sequences=16)
    work = [(p, SamplingParams(8 + 9 * i, n=1 + i, seed=i, ignore_eos=i % 2 == 0)) for i, p in enumerate(prompts(6))]
    for request in run(engine, work):
        for sequence, expected in zip(request.sequences, full_logprobs(models(family), request), strict=True):
            assert sequence.logprobs == pytest.approx(expected, abs=1e-4)
    assert {len(prefix.rows) for prefix in read} >= {2, 3}
    assert (engine.scheduler.preemptions > 0) == (tokens == 320)


@pytest.mark.parametrize("paged", [False, True], ids=["slabs", "pages"])
def test_a_prompt_is_computed_once_for_its_samples_and_for_the_next_request(
    make_engine: Any, run: Any, paged: bool
) -> None:
    engine = make_engine(paged=paged)
    prompt = prompts(1, seed=9)[0] * 3
    (first,) = run(engine, [(prompt, SamplingParams(4, n=4, seed=1))])
    assert engine.scheduler.prefix_hit_tokens == 3 * (len(prompt) - 1)
    (second,) = run(engine, [([*prompt, 7, 8], SamplingParams(4, seed=1))])
    shared = (len(prompt) - 1) // 16 * 16
    assert engine.scheduler.prefix_hit_tokens == 3 * (len(prompt) - 1) + shared
    assert len({tuple(s.response) for s in first.sequences}) > 1
    assert second.sequences[0].finish_reason is not None


def test_new_weights_forget_prefixes(make_engine: Any, models: Any, run: Any, full_logprobs: Any) -> None:
    model = type(models("llama"))(copy.deepcopy(models("llama").config)).eval()
    model.load_state_dict(models("llama").state_dict())
    engine = make_engine(model=model)
    prompt = prompts(1, seed=9)[0] * 3
    run(engine, [(prompt, SamplingParams(4))])
    changed = {name: tensor.detach() * 1.1 for name, tensor in model.named_parameters()}
    engine.swap(changed, WeightVersion("a", 1, "d"))
    before = engine.scheduler.prefix_hit_tokens
    (request,) = run(engine, [(prompt, SamplingParams(8, seed=2))])
    assert engine.scheduler.prefix_hit_tokens == before
    assert request.sequences[0].logprobs == pytest.approx(full_logprobs(model, request)[0], abs=1e-4)
    assert {version.step for version in request.sequences[0].versions} == {1}


def test_a_swap_that_is_refused_leaves_the_weights(make_engine: Any, models: Any) -> None:
    engine = make_engine()
    weights = {name: tensor.detach().clone() for name, tensor in models("llama").named_parameters()}
    with pytest.raises(ModelError, match="tensors are missing"):
        engine.swap(dict(list(weights.items())[1:]), WeightVersion("a", 1, "d"))

    def refuse(_: Any) -> None:
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        engine.swap({name: tensor + 1 for name, tensor in weights.items()}, WeightVersion("a", 1, "d"), refuse)
    assert engine.version.step == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in models("llama").named_parameters())


@pytest.mark.parametrize("paged", [False, True], ids=["slabs", "pages"])
def test_a_replay_through_the_serving_path_equals_the_packed_logprobs(make_engine: Any, paged: bool) -> None:
    engine = make_engine(paged=paged)
    scored = Scored(tuple(prompts(1, seed=4)[0] + [5, 6, 7, 8]), len(prompts(1, seed=4)[0]))
    assert engine.replay(scored) == pytest.approx(engine.logprobs([scored])[0].logprobs, abs=1e-4)
    assert engine.status().blocks_used == 0


def test_no_request_starves_behind_smaller_ones(make_engine: Any) -> None:
    engine = make_engine(kv_cache_tokens=256, max_sequences=4)
    big = engine.request(prompts(1)[0] * 1 + [5] * 120, SamplingParams(60, ignore_eos=True))
    ended: list[int] = []
    for i in range(200):
        small = engine.request([3, 4], SamplingParams(8, ignore_eos=True))
        engine.add(small)
        if i == 5:
            engine.add(big)
        for _ in range(4):
            ended += [s.request.id for s in engine.step() if s.finish_reason]
        if big.id in ended:
            break
    assert big.id in ended, "small requests that came later kept a large one waiting"


def test_outside_callers_go_before_rollouts_but_not_for_ever(make_engine: Any) -> None:
    engine = make_engine(max_sequences=1)
    low = engine.request([3], SamplingParams(2, ignore_eos=True), priority=1.0)
    high = engine.request([4], SamplingParams(2, ignore_eos=True))
    late = engine.request([5], SamplingParams(2, ignore_eos=True))
    late.arrived = low.arrived + 1.5
    for request in (low, late, high):
        engine.add(request)
    order: list[int] = []
    while engine.scheduler:
        order += [s.request.id for s in engine.step() if s.finish_reason]
    assert order == [high.id, low.id, late.id]


def test_a_full_line_is_resource_exhausted_and_an_abort_frees_at_once(make_engine: Any) -> None:
    engine = make_engine(max_sequences=2, max_waiting=4)
    running = engine.request([3, 4, 5], SamplingParams(50, n=2, ignore_eos=True))
    engine.add(running)
    for _ in range(3):
        engine.step()
    waiting = engine.request([3], SamplingParams(2, n=2))
    engine.add(waiting)
    engine.add(engine.request([3], SamplingParams(2, n=2, ignore_eos=True)))
    with pytest.raises(ResourceExhausted, match="4 sequences wait and at most 4 may"):
        engine.add(engine.request([3], SamplingParams(2)))
    assert engine.status().blocks_used == 2
    engine.abort(waiting.id)
    engine.abort(running.id)
    status = engine.status()
    assert (status.blocks_used, status.running, status.waiting) == (0, 0, 2)
    while engine.scheduler:
        engine.step()


# --- broken models -------------------------------------------------------------------------------------------------
def test_non_finite_logits_end_the_sequence_and_not_the_engine(models: Any, make_engine: Any, run: Any) -> None:
    model = type(models("llama"))(copy.deepcopy(models("llama").config)).eval()
    model.load_state_dict(models("llama").state_dict())
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = torch.nan
    engine = make_engine(model=model, prefix_cache=False)
    good = [(p, SamplingParams(20, seed=i, ignore_eos=True)) for i, p in enumerate(prompts(6)) if 77 not in p]
    bad, *others = run(engine, [([5, 77, 6], SamplingParams(20, n=3)), *good])
    for sequence in bad.sequences:
        assert sequence.finish_reason is FinishReason.ERROR
        assert "not finite" in sequence.error
    for request in [*others, *run(engine, good)]:
        (sequence,) = request.sequences
        assert sequence.finish_reason is FinishReason.LENGTH or 77 in sequence.response
    assert engine.status().blocks_used == 0


# --- sampling parameters -------------------------------------------------------------------------------------------
def test_stops_end_a_sequence_and_min_tokens_hold_them_back(make_engine: Any) -> None:
    engine = make_engine()
    prompt = prompts(1, seed=2)[0]
    (free,) = engine.generate(prompt, SamplingParams(30, temperature=0, ignore_eos=True))
    words = [f"t{token}" for token in free.response]
    stop_at = next(i for i in range(4, 30) if words[i] not in words[:i] and words[i - 1] != "t1")
    (by_id,) = engine.generate(prompt, SamplingParams(30, temperature=0, stop_token_ids=(free.response[stop_at],)))
    assert by_id.finish_reason is FinishReason.STOP
    assert by_id.response == free.response[: stop_at + 1]
    across = f"{words[stop_at - 1][1:]} {words[stop_at]}"
    (by_text,) = engine.generate(prompt, SamplingParams(30, temperature=0, stop=(across,), ignore_eos=True))
    assert by_text.finish_reason is FinishReason.STOP
    assert by_text.response == free.response[: stop_at + 1]
    held = SamplingParams(30, temperature=0, stop_token_ids=(free.response[stop_at],), min_tokens=stop_at + 3)
    (later,) = engine.generate(prompt, held)
    assert len(later.response) >= stop_at + 3
    assert free.response[stop_at] not in later.response[: stop_at + 3]


def test_eos_ends_a_sequence_unless_it_is_ignored(make_engine: Any) -> None:
    engine = make_engine()
    biased = {"logit_bias": {1: 50.0}}
    (ended,) = engine.generate([5, 6], SamplingParams(10, **biased))
    assert (ended.response, ended.finish_reason) == ([1], FinishReason.EOS)
    (ignored,) = engine.generate([5, 6], SamplingParams(10, ignore_eos=True, **biased))
    assert (ignored.response, ignored.finish_reason) == ([1] * 10, FinishReason.LENGTH)
    (held,) = engine.generate([5, 6], SamplingParams(10, min_tokens=4, **biased))
    assert held.response[4] == 1
    assert 1 not in held.response[:4]


def test_seeds_repeat_and_samples_and_seeds_differ(make_engine: Any) -> None:
    engine = make_engine()
    one, two = (engine.generate([5, 6, 7], SamplingParams(12, n=3, seed=11)) for _ in range(2))
    assert [s.response for s in one] == [s.response for s in two]
    assert len({tuple(s.response) for s in one}) == 3
    other = engine.generate([5, 6, 7], SamplingParams(12, n=3, seed=12))
    assert {tuple(s.response) for s in one}.isdisjoint(tuple(s.response) for s in other)


def test_many_samples_follow_the_models_distribution(make_engine: Any) -> None:
    engine = make_engine(max_sequences=500)
    counts = torch.zeros(131)
    for seed in range(4):
        for sequence in engine.generate([9, 8, 7], SamplingParams(1, n=500, seed=seed, temperature=0.15)):
            counts[sequence.response[0]] += 1
    answers = engine.logprobs([Scored((9, 8, 7, token), 3) for token in range(131)])
    logprobs = [answer.logprobs[0] for answer in answers]
    p = (torch.tensor(logprobs) / 0.15).softmax(0)
    large = p * 2000 >= 5
    assert 10 < int(large.sum()) < 131
    observed = torch.cat([counts[large], counts[~large].sum()[None]])
    expected = 2000 * torch.cat([p[large], p[~large].sum()[None]])
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    degrees = len(observed) - 1
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize(
    ("field", "prompt", "options"),
    [
        ("prompt", [], {}),
        ("prompt.tokens[1]", [3, 131], {}),
        ("prompt.tokens[0]", [-1], {}),
        ("sampling.max_tokens", [3], {"max_tokens": 256}),
        ("sampling.n", [3], {"n": 4097}),
        ("sampling.n", [3], {"n": 0}),
        ("sampling.n", [3], {"n": 200, "max_tokens": 200}),
        ("sampling.stop[0]", [3], {"stop": (7,)}),
        ("sampling.top_k", [3], {"top_k": -1}),
        ("sampling.temperature", [3], {"temperature": 1e-9}),
        ("sampling.temperature", [3], {"temperature": float("inf")}),
        ("sampling.seed", [3], {"seed": -1}),
    ],
)
def test_bad_requests_name_the_field(make_engine: Any, field: str, prompt: list[int], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        make_engine().request(prompt, SamplingParams(**{"max_tokens": 4, **options}))
    assert refusal.value.field == field
