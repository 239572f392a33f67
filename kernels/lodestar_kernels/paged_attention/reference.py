"""Paged attention in plain torch: gather each context through its block table, then attend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lodestar_kernels.attention.reference import visible
from lodestar_kernels.paged_attention.layout import PagedLayout


def gather_context(cache_PSMD: Tensor, table_P: Tensor, length: int) -> Tensor:
    """The first `length` entries of one sequence, [length, M, D]."""
    pages = -(-length // cache_PSMD.shape[1])
    return cache_PSMD[table_P[:pages].long()].flatten(0, 1)[:length]


def paged_attention_reference(
    q_TND: Tensor, k_cache_PSMD: Tensor, v_cache_PSMD: Tensor, layout: PagedLayout, scale: float, window: int | None
) -> Tensor:
    """softmax(scale · Q Kᵀ + mask) V of every sequence, one after the other."""
    out_TND = torch.empty_like(q_TND)
    contexts = layout.context_lengths_B.tolist()
    start = 0
    for queries, context, table_P in zip(layout.query_lengths, contexts, layout.block_tables_BP, strict=True):
        rows = slice(start, start + queries)
        start += queries
        if queries == 0 or context == 0:
            out_TND[rows] = 0
            continue
        k_1MSD, v_1MSD = (
            gather_context(cache, table_P, context).transpose(0, 1)[None] for cache in (k_cache_PSMD, v_cache_PSMD)
        )
        q_1NSD = q_TND[rows].transpose(0, 1)[None]
        seen = None if queries == 1 and window is None else visible(queries, context, True, window, q_TND.device)
        gqa = q_TND.shape[1] != k_1MSD.shape[1]
        out_1NSD = F.scaled_dot_product_attention(q_1NSD, k_1MSD, v_1MSD, seen, scale=scale, enable_gqa=gqa)
        out_TND[rows] = out_1NSD[0].transpose(0, 1)
    return out_TND


def write_kv_reference(
    k_TMD: Tensor, v_TMD: Tensor, k_cache_PSMD: Tensor, v_cache_PSMD: Tensor, slots_T: Tensor
) -> None:
    """Copy every token with a slot ≥ 0 to block slot // S, offset slot % S."""
    page = k_cache_PSMD.shape[1]
    kept_T = slots_T >= 0
    slots = slots_T[kept_T]
    k_cache_PSMD[slots // page, slots % page] = k_TMD[kept_T].to(k_cache_PSMD.dtype)
    v_cache_PSMD[slots // page, slots % page] = v_TMD[kept_T].to(v_cache_PSMD.dtype)
