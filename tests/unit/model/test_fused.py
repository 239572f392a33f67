"""Fused layers against the plain modules: outputs and gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from lodestar.model.attention import NAME
from lodestar.model.fused import fuse, selects_rows
from lodestar.model.loading import scalar_from_causal_lm
from lodestar.model.packed import PackedBatch, hidden_states, response_logprobs, sequence_scores, token_values
from tests.unit.model.worlds import PROMPTS, SEQUENCES, plain_model, word_tokenizer


def pair(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    model = plain_model(name)
    model.set_attn_implementation(NAME)
    fused = copy.deepcopy(model)
    assert fuse(fused)
    return model, fused


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral", "qwen2"])
def test_logprobs_and_gradients_are_those_of_the_plain_modules(name: str) -> None:
    batch = PackedBatch.pack(SEQUENCES, PROMPTS, device="cpu")
    found = []
    for model in pair(name):
        logprobs, entropy = response_logprobs(model, batch, temperature=0.7, entropy=True)
        weights = torch.linspace(-1, 1, len(logprobs))
        found.append((logprobs.detach(), gradients(model, (weights * logprobs).sum() + entropy.sum())))
    (plain, plain_gradients), (fused, fused_gradients) = found
    assert torch.allclose(plain, fused, atol=1e-5)
    assert plain_gradients.keys() == fused_gradients.keys()
    for key, gradient in plain_gradients.items():
        assert torch.allclose(gradient, fused_gradients[key], atol=1e-5, rtol=1e-4), key


def test_values_scores_and_all_hidden_states_are_those_of_the_plain_modules() -> None:
    model = plain_model("llama")
    plain = scalar_from_causal_lm(model, word_tokenizer(), seed=1)
    fused = copy.deepcopy(plain)
    assert fuse(fused)
    batch = PackedBatch.pack(SEQUENCES, PROMPTS, device="cpu")
    for compute in (token_values, sequence_scores, hidden_states):
        assert torch.allclose(compute(plain, batch), compute(fused, batch), atol=1e-5)


def test_a_fused_model_computes_only_the_rows_needed() -> None:
    _, fused = pair("llama")
    assert selects_rows(fused)
    rows = []
    fused.model.norm.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[1]))
    batch = PackedBatch.pack(SEQUENCES, PROMPTS, device="cpu")
    response_logprobs(fused, batch, temperature=1.0)
    hidden_states(fused, batch)
    assert rows == [sum(batch.response_lengths), len(batch.tokens_T)]


def test_a_copy_of_a_fused_model_runs_on_its_own_weights() -> None:
    _, fused = pair("llama")
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    batch = PackedBatch.pack(SEQUENCES, PROMPTS, device="cpu")
    ours, theirs = (response_logprobs(model, batch, temperature=1.0)[0] for model in (fused, other))
    assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "gpt2"])
def test_other_architectures_are_left_alone(name: str) -> None:
    model = plain_model(name)
    assert not fuse(model)
    assert not selects_rows(model)


def test_other_dtypes_are_left_alone() -> None:
    assert not fuse(plain_model("llama").bfloat16())
