"""Which models an engine takes, how long it lets them go on, and its own layers against the plain module's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Phi3Config, Phi3ForCausalLM

from lodestar.engine.linear import PackedLinear, padded_rows
from lodestar.engine.trunk import FusedTrunk, PlainTrunk
from lodestar.errors import InvalidArgument, ModelError
from lodestar.model.attention import NAME
from lodestar.model.kept import CacheShape
from lodestar.records import SamplingParams, WeightVersion

SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def test_values_of_another_size_than_keys_are_served(make_engine: Any, run: Any) -> None:
    config = DeepseekV3Config(
        **SMALL,
        first_k_dense_replace=2,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=12,
    )
    model = DeepseekV3ForCausalLM(config).eval()
    model.set_attn_implementation(NAME)
    assert CacheShape.of(model).head_dim == 16
    (sample,) = run(make_engine(model=model), [([5, 6, 7], SamplingParams(12, seed=1, ignore_eos=True))])[0].sequences
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logp_SV = model(torch.tensor([sample.tokens])).logits[0].log_softmax(-1)
    expected = [float(logp_SV[place - 1, sample.tokens[place]]) for place in range(3, 15)]
    assert sample.logprobs == pytest.approx(expected, abs=1e-4)


def test_layers_that_mix_sequences_in_another_way_are_refused(models: Any) -> None:
    model = copy.deepcopy(models("llama"))
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="layers of kind linear_attention"):
        CacheShape.of(model)
    model = copy.deepcopy(models("llama"))
    model.model.layers[1].forward = lambda hidden_states, **_: hidden_states
    with pytest.raises(ModelError, match="1 of 2 layers of LlamaForCausalLM run on Lodestar's attention"):
        CacheShape.of(model)


def test_longrope_ends_where_its_frequencies_would_depend_on_the_batch(make_engine: Any, run: Any) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 6,
        "long_factor": [4.0] * 6,
        "original_max_position_embeddings": 64,
    }
    config = Phi3Config(
        **SMALL,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters=rope,
        sliding_window=None,
    )
    config._attn_implementation = NAME
    engine = make_engine(model=Phi3ForCausalLM(config).eval())
    assert engine.limits.context_tokens == 64
    with pytest.raises(InvalidArgument, match="exceed the context of 64 tokens"):
        engine.request([3] * 60, SamplingParams(5))
    (alone,) = run(engine, [([3, 4, 5], SamplingParams(20, seed=1))])
    together, _ = run(engine, [([3, 4, 5], SamplingParams(20, seed=1)), ([6] * 44, SamplingParams(20, seed=2))])
    assert together.sequences[0].logprobs == pytest.approx(alone.sequences[0].logprobs, abs=1e-5)


# --- fused layers --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "llama tied", "qwen2", "qwen3", "mistral window"])
def test_fused_layers_compute_what_the_plain_module_computes(make_engine: Any, models: Any, family: str) -> None:
    engine = make_engine(family)
    runner = engine._runner
    assert isinstance(runner._trunk, FusedTrunk)
    for prompt in ([5, 6, 7], list(range(2, 90))):
        engine.add(engine.request(prompt, SamplingParams(9, ignore_eos=True)))
    while engine.scheduler:
        plan = engine.scheduler.plan()
        both = []
        for trunk in (PlainTrunk(models(family).base_model), runner._trunk):
            runner._trunk = trunk
            both.append(runner.logits(plan)[: len(plan.decode)])
        torch.testing.assert_close(*both, atol=2e-4, rtol=1e-4)
        sampled = runner.run(plan)
        engine._note_computed(plan)
        for sequence, token in zip(plan.decode, sampled.tokens, strict=True):
            sequence.computed = len(sequence.tokens)
            sequence.tokens.append(token)
            if len(sequence.response) == 9:
                engine.scheduler.release(sequence)


def test_packed_weights_follow_a_swap(make_engine: Any, models: Any, run: Any) -> None:
    model = copy.deepcopy(models("qwen2"))
    engine = make_engine(model=model)
    work = [([5, 6, 7], SamplingParams(12, seed=1))]
    before = run(engine, work)[0].sequences[0].logprobs
    engine.swap({name: tensor * 1.2 for name, tensor in model.named_parameters()}, WeightVersion("a", 1, "d"))
    after = run(engine, work)[0].sequences[0].logprobs
    assert after != before
    assert run(make_engine(model=model), work)[0].sequences[0].logprobs == after


@pytest.mark.parametrize("packed", [True, False])
def test_packed_products_equal_plain_ones(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: packed)
    one, two = nn.Linear(24, 40), nn.Linear(24, 8)
    both, single = PackedLinear(one, two), PackedLinear(nn.Linear(24, 40, bias=False))
    x_TK, add_TN = torch.randn(19, 24), torch.randn(19, 40)
    with torch.inference_mode():
        torch.testing.assert_close(both(x_TK), torch.cat([one(x_TK), two(x_TK)], 1))
        expected = torch.nn.functional.linear(x_TK, single._modules[0].weight) + add_TN
        torch.testing.assert_close(single(x_TK, add_TN), expected)
        assert both(x_TK[:0]).shape == (0, 48)
        many_TK, more_TN = torch.randn(700, 24), torch.randn(700, 40)
        expected = torch.nn.functional.linear(many_TK, single._modules[0].weight) + more_TN
        torch.testing.assert_close(single(many_TK, more_TN), expected)


def test_rows_are_rounded_up_to_few_counts() -> None:
    for multiple in (1, 16):
        counts = [padded_rows(rows, multiple) for rows in range(2400)]
        assert counts == sorted(counts)
        assert all(rows <= count and count % multiple == 0 for rows, count in enumerate(counts))
        assert all(count <= 1.25 * rows + multiple for rows, count in enumerate(counts[16:], 16))
        assert len({count % 256 for count in counts}) <= 20


@pytest.mark.parametrize(("inputs", "outputs"), [(256, 768), (1024, 256), (48, 131)])
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(inputs: int, outputs: int) -> None:
    linear = PackedLinear(nn.Linear(inputs, outputs, bias=False))
    x_TK = torch.randn(1040, inputs)
    with torch.inference_mode():
        alone = linear(x_TK[:16])
        for rows in (32, 48, 80, 256, 512, 1040):
            assert torch.equal(linear(x_TK[:rows])[:16], alone)
            assert torch.equal(linear(x_TK[:rows].roll(16, 0))[16:32], alone)


def test_other_activations_and_adapters_run_on_the_plain_module(make_engine: Any, models: Any) -> None:
    model = copy.deepcopy(models("llama"))
    model.config.hidden_act = "gelu"
    assert isinstance(make_engine(model=model)._runner._trunk, PlainTrunk)

    class Adapted(nn.Linear):
        pass

    model = copy.deepcopy(models("llama"))
    model.model.layers[1].mlp.up_proj.__class__ = Adapted
    assert isinstance(make_engine(model=model)._runner._trunk, PlainTrunk)
