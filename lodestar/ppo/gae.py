"""Generalised advantage estimation over packed responses."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_gae(
    rewards_R: Tensor, values_R: Tensor, lengths_B: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, [R] each (Schulman et al. 2016, equation 16, backwards):

        δ_t = r_t + γ·V_{t+1} − V_t,   A_t = δ_t + γλ·A_{t+1},   R_t = A_t + V_t

    V_t is the value of the state before token t. Every response is terminal after its last token, truncated ones too:
    V and A are 0 there. lengths_B (int64, each ≥ 1) are the responses' tokens, R their sum. Time is walked backwards
    once, for all responses together.
    """
    place_BS = _places(lengths_B)
    padded = values_R.new_zeros(2, *place_BS.shape)
    padded[:, place_BS] = torch.stack((rewards_R, values_R))
    rewards_BS, values_BS = padded
    next_BS = torch.cat((values_BS[:, 1:], values_BS.new_zeros(len(values_BS), 1)), dim=1)
    delta_BS = rewards_BS + gamma * next_BS - values_BS
    delta_SB = delta_BS.t().contiguous()
    for t in range(len(delta_SB) - 2, -1, -1):
        delta_SB[t] += gamma * lam * delta_SB[t + 1]  # padding holds 0: it neither gives nor takes
    advantages_R = delta_SB.t()[place_BS]
    return advantages_R, advantages_R + values_R


def _places(lengths_B: Tensor) -> Tensor:
    """Bool [B, S]: where a right-padded batch holds real tokens."""
    return torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None]
