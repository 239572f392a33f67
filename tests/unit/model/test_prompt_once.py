"""Equal prompts of a packed batch are computed once: the same log-probs, values, scores and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lodestar.model.attention import NAME
from lodestar.model.fused import fuse
from lodestar.model.loading import scalar_from_causal_lm
from lodestar.model.packed import PackedBatch, label_scores, response_logprobs, token_values
from lodestar.model.prompt_once import shares_prompts
from tests.unit.model.worlds import CONFIGS, plain_model, word_tokenizer
from tests.unit.oracles.world import tables

TOKENS = st.integers(2, 36)
PROMPTS = st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=1, max_size=3)
RESPONSES = st.lists(st.tuples(st.integers(0, 2), st.lists(TOKENS, min_size=1, max_size=5)), min_size=1, max_size=7)
Rows = tuple[list[list[int]], list[int]]
GROUPS: Rows = (
    [
        [3, 5, 7, 9, 4, 1],
        [8, 6, 2, 1],
        [3, 5, 7, 9, 11, 12, 1],
        [3, 5, 7, 9, 6],
        [8, 6, 2, 1],
        [4, 1],
        [8, 6, 9, 3, 3, 1],
    ],
    [4, 2, 4, 4, 2, 1, 2],
)


def rows_of(prompts: list[list[int]], responses: list[tuple[int, list[int]]]) -> Rows:
    """Sequences and prompt lengths; prompts come again in any order."""
    chosen = [(prompts[i % len(prompts)], response) for i, response in responses]
    return [prompt + response for prompt, response in chosen], [len(prompt) for prompt, _ in chosen]


def models(name: str, *, score_tokens: str = "last", fused: bool = False) -> tuple[nn.Module, nn.Module]:
    """A policy and a critic on our attention."""
    policy = plain_model(name)
    policy.set_attn_implementation(NAME)
    critic = scalar_from_causal_lm(policy, word_tokenizer(), seed=1)
    critic.config.score_tokens = score_tokens
    if fused:
        assert fuse(policy)
        assert fuse(critic)
    return policy, critic


def figures(policy: Any, critic: Any, rows: Rows, *, share: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs, entropies, values and scores, and the gradients of a weighted sum of them all."""
    batch = PackedBatch.pack(*rows, device="cpu", share=share)
    logprobs_R, entropy_R = response_logprobs(policy, batch, temperature=0.7, entropy=True)
    assert entropy_R is not None
    found = [logprobs_R, entropy_R, token_values(critic, batch), label_scores(critic, batch).flatten()]
    loss = sum((x.double() * torch.linspace(-1, 1, len(x), dtype=torch.float64).cos()).sum() for x in found)
    parameters = [*policy.parameters(), *critic.parameters()]
    assert isinstance(loss, torch.Tensor)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [x.detach() for x in found], [g for g in gradients if g is not None]


def assert_equal(policy: Any, critic: Any, rows: Rows) -> None:
    """Shared in float32 against apart in float64."""
    exact = [copy.deepcopy(model).double() for model in (policy, critic)]
    expected, expected_gradients = figures(*exact, rows, share=False)
    found, gradients = figures(policy, critic, rows, share=True)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=2e-4, atol=2e-5)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        scale = float(theirs.abs().max()) + 1e-2
        torch.testing.assert_close(mine.double() / scale, theirs / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_architecture_gives_what_whole_sequences_give_in_float64(name: str) -> None:
    assert_equal(*models(name), GROUPS)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("score_tokens", ["last", "all"])
def test_fused_layers_too(name: str, score_tokens: str) -> None:
    plain, fused = models(name, score_tokens=score_tokens), models(name, score_tokens=score_tokens, fused=True)
    expected, expected_gradients = figures(*plain, GROUPS, share=False)
    found, gradients = figures(*fused, GROUPS, share=True)
    for mine, theirs in zip([*found, *gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PROMPTS, RESPONSES, st.sampled_from(["llama", "mistral"]))
def test_any_shape_gives_what_whole_sequences_give(prompts: Any, responses: Any, name: str) -> None:
    assert_equal(*models(name), rows_of(prompts, responses))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_architectures_whose_tokens_meet_in_attention_share(name: str) -> None:
    assert all(map(shares_prompts, models(name)))


def test_a_model_that_looks_at_its_neighbours_does_not_share_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    policy, _ = tables(4, 4, 0)
    assert not shares_prompts(policy)
    assert "the prompt of several responses is computed once for each of them" in caplog.text


def test_rows_say_where_everything_lies() -> None:
    batch = PackedBatch.pack([(5, 8, 4, 1), (7, 7, 2), (5, 8, 6, 9, 1)], [2, 1, 2], device="cpu", share=True)
    assert batch.tokens_T.tolist() == [5, 8, 4, 1, 6, 9, 1, 7, 7, 2]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1, 2]
    assert batch.states_R.tolist() == [1, 2, 7, 8, 1, 4, 5]
    assert batch.responses_R.tolist() == [2, 3, 8, 9, 4, 5, 6]
    assert batch.targets_R.tolist() == [4, 1, 7, 2, 6, 9, 1]
    assert batch.last_B.tolist() == [3, 9, 6]
    assert batch.response_lengths == (2, 2, 3)


def test_a_prompt_is_laid_out_once_only_where_that_saves_enough() -> None:
    long, short = [(5,) * 20 + (i,) for i in (1, 2, 3)], [(5, *range(6, 30), i) for i in (1, 2)]
    assert len(PackedBatch.pack(long, [20] * 3, device="cpu", share=True).tokens_T) == 23
    assert PackedBatch.pack(short, [1] * 2, device="cpu", share=True).prefixes is None
    assert PackedBatch.pack(long, [20] * 3, device="cpu").prefixes is None
    assert PackedBatch.pack(long, [20] * 3, device="cpu", per_sequence=True, share=True).prefixes is None
    assert PackedBatch.pack([*long, (5,) * 20], [20] * 4, device="cpu", share=True).prefixes is None
