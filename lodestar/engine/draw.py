"""One token per row from unnormalised probabilities, by noise that depends on the row's key alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lodestar.engine.noise import exponential

BLOCK = 64
"""Tokens of one block: a vocabulary of 4,096 then needs 128 random numbers instead of 4,096."""


def block_mass(weights_BV: Tensor) -> Tensor:
    """Sums of the weights of every BLOCK tokens, [B, ⌈V / BLOCK⌉]."""
    whole = weights_BV.shape[1] // BLOCK * BLOCK
    mass_BK = weights_BV[:, :whole].view(len(weights_BV), whole // BLOCK, BLOCK).sum(-1)
    if whole == weights_BV.shape[1]:
        return mass_BK
    return torch.cat([mass_BK, weights_BV[:, whole:].sum(-1, keepdim=True)], 1)


def draw(weights_BV: Tensor, mass_BK: Tensor, keys_B2: Tensor) -> Tensor:
    """Token ids [B, 1], drawn in proportion to the weights: a block by its mass, then a token of the block.

    Both draws are by the Gumbel-max rule (see lodestar.engine.noise), so that rounding hardly ever flips a token.
    """
    blocks = mass_BK.shape[1]
    noise_BC = exponential(keys_B2, blocks + BLOCK)
    block_B1 = (mass_BK / noise_BC[:, :blocks]).argmax(-1, keepdim=True)
    first_B1 = block_B1 * BLOCK
    ids_BJ = first_B1 + torch.arange(BLOCK, device=first_B1.device)
    last = weights_BV.shape[1] - 1
    inside_BJ = weights_BV.gather(1, ids_BJ.clamp(max=last)).masked_fill_(ids_BJ > last, 0)
    return first_B1 + (inside_BJ / noise_BC[:, blocks:]).argmax(-1, keepdim=True)
