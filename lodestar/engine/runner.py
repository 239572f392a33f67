"""Runs the model over one step's rows: the decode rows first, then the prompt chunks', in one packed call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lodestar.engine.cache import KVCache
from lodestar.engine.sampler import Sampled, Sampler
from lodestar.engine.sequence import Plan

ROW_MULTIPLE = 16
"""Deterministic steps pad their rows to a multiple: matrix products then give a row the same bits in any batch."""


class ModelRunner:
    """Owns the forward call. Logits exist for decode rows only, in float32 whatever the model's dtype."""

    def __init__(
        self, model: Any, cache: KVCache, sampler: Sampler, *, deterministic: bool, device: torch.device
    ) -> None:
        self._trunk = model.base_model
        self._head = model.get_output_embeddings()
        self._cache = cache
        self._sampler = sampler
        self._device = device
        self._multiple = ROW_MULTIPLE if deterministic else 1
        self._head_weight: Tensor
        self._head_bias: Tensor | None
        self.refresh()

    def refresh(self) -> None:
        """Derive anew what is derived from the weights: the head in float32."""
        self._head_weight = self._head.weight.detach().float()
        bias = getattr(self._head, "bias", None)
        self._head_bias = None if bias is None else bias.detach().float()

    @torch.inference_mode()
    def run(self, plan: Plan) -> Sampled:
        """Compute the plan's rows, write their keys and values, and sample a token for every decode row."""
        logits_BV = self.logits(plan)
        return self._sampler.sample(logits_BV, plan.decode) if plan.decode else Sampled([], [], [], {})

    @torch.inference_mode()
    def logits(self, plan: Plan) -> Tensor:
        """Compute the plan's rows; logits of the decode rows in float32 [B, V], padding rows after them."""
        hidden_TH = self._forward(plan)
        padded = -(-len(plan.decode) // self._multiple) * self._multiple
        return torch.nn.functional.linear(hidden_TH[:padded].float(), self._head_weight, self._head_bias)

    def _forward(self, plan: Plan) -> Tensor:
        tokens = [sequence.tokens[-1] for sequence in plan.decode]
        positions = [len(sequence.tokens) - 1 for sequence in plan.decode]
        for chunk in plan.chunks:
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
        padding = -len(tokens) % self._multiple
        rows_2T = torch.tensor([tokens + [0] * padding, positions + [0] * padding], device=self._device)
        output = self._trunk(
            input_ids=rows_2T[:1],
            position_ids=rows_2T[1:],
            use_cache=False,
            attention_context=self._cache.context(plan),
        )
        return output.last_hidden_state[0]  # type: ignore[no-any-return]
