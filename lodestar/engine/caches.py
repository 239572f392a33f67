"""Which KV cache an engine gets."""

from __future__ import annotations

from typing import Any

import torch

from lodestar.config import PolicyConfig
from lodestar.engine.cache import KVCache
from lodestar.engine.pages import PagedCache
from lodestar.engine.slabs import SlabCache
from lodestar.errors import ModelError
from lodestar.model.context import context_tokens
from lodestar.model.kept import CacheShape


def make_cache(model: Any, config: PolicyConfig, *, deterministic: bool, paged: bool, device: torch.device) -> KVCache:
    """The cache for a model's shape: pages or slabs.

    Raises:
        ModelError: deterministic, and not float32 on a CPU; or see CacheShape.of.
    """
    shape = CacheShape.of(model)
    if deterministic and (shape.dtype != torch.float32 or paged):
        raise ModelError(f"deterministic needs float32 weights on a CPU, and the model is {shape.dtype} on {device}")
    context = context_tokens(model.config) or config.kv_cache_tokens
    slots = config.max_sequences + 1  # one more than run, for replay
    if paged:
        return PagedCache(
            shape,
            sequences=slots,
            capacity=context,
            total_tokens=config.kv_cache_tokens,
            block_tokens=config.block_tokens,
            device=device,
        )
    return SlabCache(
        shape,
        slots=slots,
        capacity=context,
        total_tokens=config.kv_cache_tokens,
        block_tokens=config.block_tokens,
        deterministic=deterministic,
    )
