"""Completions that share their prompt score as they would alone."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from lodestar.errors import InvalidArgument
from lodestar.local.tiny import tokenizer
from lodestar.model.attention import NAME
from lodestar.model.fused import fuse
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.model.packed import PackedBatch, sequence_scores
from lodestar.model.shared_prefix import SharedBatch, completion_scores
from lodestar.records import Scored
from tests.unit.model.worlds import SIZES

GROUPS = [
    [Scored((5, 9, 7, 3, 1), 3), Scored((5, 9, 7, 4, 8, 6, 1), 3), Scored((5, 9, 7, 1), 3)],
    [Scored((6, 2), 1)],
    [Scored((8, 8, 3, 9, 1), 4), Scored((8, 8, 3, 9, 7, 7, 1), 4)],
]


def _model(labels: tuple[str, ...] = ("reward",), *, window: bool = False) -> PreTrainedModel:
    sizes = SIZES | {"vocab_size": 16}
    torch.manual_seed(0)
    causal: PreTrainedModel
    if window:
        config = Qwen2Config(**sizes, use_sliding_window=True, sliding_window=3, max_window_layers=0)
        causal = Qwen2ForCausalLM(config)
    else:
        causal = LlamaForCausalLM(LlamaConfig(**sizes))
    causal.config._attn_implementation = NAME
    return scalar_from_causal_lm(causal, tokenizer(16), 1, labels)


def _alone(model: PreTrainedModel) -> torch.Tensor:
    rows = [row for group in GROUPS for row in group]
    return sequence_scores(
        model, PackedBatch.pack([r.token_ids for r in rows], [r.prompt_tokens for r in rows], device="cpu")
    )


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("read", ["last", "all"])
def test_shared_prompts_change_neither_scores_nor_gradients(window: bool, fused: bool, read: str) -> None:
    gradients = []
    for share in (False, True):
        model = _model(window=window)
        model.config.score_tokens = read
        if fused:
            fuse(model)
        batch = SharedBatch.pack(GROUPS, device="cpu", share=share)
        scores = completion_scores(model, batch)[:, 0]
        torch.testing.assert_close(scores.detach(), _alone(model).detach(), rtol=1e-5, atol=1e-6)
        (scores * torch.arange(1.0, 7.0)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_shared_prompt_is_computed_once() -> None:
    shared, apart = (SharedBatch.pack(GROUPS, device="cpu", share=share) for share in (True, False))
    assert len(shared.tokens_T) == (3 + 2 + 4 + 1) + 2 + (4 + 1 + 3)
    assert len(apart.tokens_T) == len(shared.source_U) == sum(len(row.token_ids) for group in GROUPS for row in group)
    assert shared.positions_T[:10].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 3]


def test_completions_of_a_group_do_not_see_each_other() -> None:
    model = _model()
    one = completion_scores(model, SharedBatch.pack([GROUPS[0]], device="cpu"))
    other = completion_scores(
        model, SharedBatch.pack([[GROUPS[0][0], Scored((5, 9, 7, 2, 2, 1), 3), GROUPS[0][2]]], device="cpu")
    )
    torch.testing.assert_close(one[[0, 2]], other[[0, 2]])
    assert not torch.allclose(one[1], other[1])


def test_a_group_of_different_prompts_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"groups\[0\]\[1\]: its prompt differs from that of the group's first"):
        SharedBatch.pack([[Scored((5, 1), 1), Scored((6, 1), 1)]], device="cpu")
    with pytest.raises(InvalidArgument, match="none, or one without a sequence"):
        SharedBatch.pack([[]], device="cpu")


def test_every_label_scores_every_completion() -> None:
    scores = completion_scores(_model(("reward-1", "reward-2", "helpful")), SharedBatch.pack(GROUPS, device="cpu"))
    assert scores.shape == (6, 3)
    assert scores.dtype == torch.float32
