"""Runs the model over one step's rows: the decode rows first, then the prompt chunks', in one packed call."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from lodestar.engine.cache import KVCache
from lodestar.engine.graphs import DecodeGraphs
from lodestar.engine.head import Head
from lodestar.engine.linear import padded_rows
from lodestar.engine.memory import to_device
from lodestar.engine.pages import PagedCache
from lodestar.engine.sampler import Sampled, Sampler
from lodestar.engine.sequence import Plan
from lodestar.engine.trunk import make_trunk
from lodestar.model.attention import AttentionContext

ROW_MULTIPLE = 16
"""Deterministic steps pad their rows to a multiple: matrix products then give a row the same bits in any batch."""


class ModelRunner:
    """Owns the forward call. Logits exist for decode rows only."""

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        sampler: Sampler,
        *,
        context_tokens: int,
        deterministic: bool,
        device: torch.device,
    ) -> None:
        self._context_tokens = context_tokens
        self._cache = cache
        self._trunk = make_trunk(model, paged=isinstance(cache, PagedCache), positions=context_tokens)
        self._head = Head(model)
        self._sampler = sampler
        self._device = device
        self._deterministic = deterministic
        self.graphs: DecodeGraphs | None = None
        # Capped scores and sinks gather contexts of lengths that no graph knows.
        if isinstance(cache, PagedCache) and device.type == "cuda" and cache.shape.plain_scores:
            self.graphs = DecodeGraphs(self.forward, cache, device)

    def of(self, model: Any) -> ModelRunner:
        """A runner like this one of another model, over the same cache."""
        return ModelRunner(
            model,
            self._cache,
            self._sampler,
            context_tokens=self._context_tokens,
            deterministic=self._deterministic,
            device=self._device,
        )

    def over(self, cache: KVCache) -> ModelRunner:
        """The same layers over another cache, without graphs."""
        other = copy(self)
        other._cache, other.graphs = cache, None
        return other

    def refresh(self) -> None:
        """Derive anew what is derived from the weights."""
        self._trunk.refresh()
        self._head.refresh()

    @torch.inference_mode()
    def run(self, plan: Plan) -> Sampled:
        """Compute the plan's rows, write their keys and values, and sample a token for every decode row."""
        logits_BV = self.logits(plan)
        return self._sampler.sample(logits_BV, plan.decode) if plan.decode else Sampled([], [], [], {})

    @torch.inference_mode()
    def logits(self, plan: Plan) -> Tensor:
        """Compute the plan's rows; logits of the decode rows in float32 [B, V], padding rows after them."""
        if self.graphs is not None and plan.decode and not plan.chunks:
            logits_BV = self.graphs(plan.decode)
            if logits_BV is not None:
                return logits_BV
        tokens = [sequence.tokens[-1] for sequence in plan.decode]
        positions = [len(sequence.tokens) - 1 for sequence in plan.decode]
        for chunk in plan.chunks:
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
        padding = self._padded(len(tokens)) - len(tokens)
        rows_2T = to_device(torch.tensor([tokens + [0] * padding, positions + [0] * padding]), self._device)
        return self.forward(rows_2T[0], rows_2T[1], self._cache.context(plan), self._padded(len(plan.decode)))

    def _padded(self, rows: int) -> int:
        """A count of rows that the products of a CPU take; the paged kernel takes any."""
        if isinstance(self._cache, PagedCache):
            return rows
        return padded_rows(rows, ROW_MULTIPLE if self._deterministic else 1)

    def forward(self, tokens_T: Tensor, positions_T: Tensor, context: AttentionContext, rows: int) -> Tensor:
        """Logits [rows, V] of the first ``rows`` rows."""
        return self._head(self._trunk(tokens_T, positions_T, context, rows))
