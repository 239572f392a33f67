"""Attention with capped scores or attention sinks, in plain torch on every device: right before fast.

With z = scale · q kᵀ:  s = c·tanh(z / c) under a soft cap c (Gemma 2, Gemma Team 2024, section 2), and with a sink a of
a head (OpenAI 2025, gpt-oss model card; Xiao et al. 2023)  out = Σ_j exp(s_j) v_j / (exp(a) + Σ_j exp(s_j)).

A sequence is computed alone, in blocks of queries, its scores in float32. torch differentiates it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lodestar_kernels.attention.layout import PackedLayout

QUERY_BLOCK = 256


def scored_attention(
    q_QND: Tensor,
    k_KMD: Tensor,
    v_KMD: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None = None,
    sinks_N: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """out_QND of one sequence whose last query stands at its last key.

    q_QND: [Q, N, D]; k_KMD and v_KMD: [K, M, D] with Q ≤ K and N a multiple of M; sinks_N: one logit per head.
    """
    queries, heads, dim = q_QND.shape
    keys, key_heads, _ = k_KMD.shape
    k_M1DK, v_M1KD = k_KMD.permute(1, 2, 0)[:, None], v_KMD.transpose(0, 1)[:, None]
    q_MGQD = q_QND.view(queries, key_heads, heads // key_heads, dim).permute(1, 2, 0, 3)
    if not queries:
        return torch.zeros_like(q_QND)
    key_K = torch.arange(keys, device=q_QND.device)
    blocks = []
    for start in range(0, queries, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, queries))
        query_Q1 = torch.arange(keys - queries, keys, device=q_QND.device)[rows, None]
        hidden_QK = key_K > query_Q1 if causal else torch.zeros_like(key_K > query_Q1)
        if window is not None:
            hidden_QK |= (query_Q1 - key_K).abs() >= window
        scores_MGQK = torch.matmul(q_MGQD[:, :, rows], k_M1DK).float() * scale
        if softcap is not None:
            scores_MGQK = softcap * torch.tanh(scores_MGQK / softcap)
        scores_MGQK = scores_MGQK.masked_fill(hidden_QK, -torch.inf)
        if sinks_N is not None:
            sinks_MGQ1 = sinks_N.float().view(key_heads, -1, 1, 1).expand(*scores_MGQK.shape[:3], 1)
            weights_MGQK = torch.cat([scores_MGQK, sinks_MGQ1], -1).softmax(-1)[..., :-1]
        else:
            weights_MGQK = scores_MGQK.softmax(-1)
        blocks.append(torch.matmul(weights_MGQK.to(v_KMD.dtype), v_M1KD))
    out_MGQD = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
    return out_MGQD.permute(2, 0, 1, 3).reshape(q_QND.shape)


def packed_scored_attention(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    layout: PackedLayout,
    *,
    causal: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_N: Tensor | None,
) -> Tensor:
    """The same for every sequence of a packed batch."""
    lengths = list(layout.lengths)
    parts = zip(*(torch.split(x, lengths) for x in (q_TND, k_TMD, v_TMD)), strict=True)
    return torch.cat(
        [
            scored_attention(q, k, v, scale=scale, window=window, softcap=softcap, sinks_N=sinks_N, causal=causal)
            for q, k, v in parts
        ]
    )
