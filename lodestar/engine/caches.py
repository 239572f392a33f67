"""Which KV cache an engine gets."""

from __future__ import annotations

from typing import Any

import torch

from lodestar.config import PolicyConfig
from lodestar.engine.cache import CacheShape, KVCache
from lodestar.engine.pages import PagedCache
from lodestar.engine.slabs import SlabCache
from lodestar.errors import ModelError


def make_cache(model: Any, config: PolicyConfig, *, deterministic: bool, paged: bool, device: torch.device) -> KVCache:
    """The cache for a model's shape: pages or slabs.

    Raises:
        ModelError: deterministic, and not float32 on a CPU.
    """
    shape = CacheShape.of(model)
    if deterministic and (shape.dtype != torch.float32 or paged):
        raise ModelError(f"deterministic needs float32 weights on a CPU, and the model is {shape.dtype} on {device}")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or config.kv_cache_tokens
    if paged:
        return PagedCache(
            shape,
            capacity=context,
            total_tokens=config.kv_cache_tokens,
            block_tokens=config.block_tokens,
            device=device,
        )
    return SlabCache(
        shape,
        slots=config.max_sequences + 1,  # one more than run, for replay
        capacity=context,
        total_tokens=config.kv_cache_tokens,
        block_tokens=config.block_tokens,
        deterministic=deterministic,
    )
