"""Losses on Likert ratings: a rating is a level of a scale, whole or, as the mean of several people, between two.

Suffix P counts ratings, C the scale's cutpoints (levels less one), A aspects.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cumulative_link(latent_P: Tensor, levels_P: Tensor, cutpoints_C: Tensor) -> Tensor:
    """−log P(level) by proportional odds: P(level ≤ k) = σ(c_k − s) (McCullagh 1980), levels 0 … C.

    A level between two whole ones is weighed between them. The probability σ(c_k − s) − σ(c_{k−1} − s) is taken in
    logarithms, −softplus(s − c_k) − softplus(c_{k−1} − s) + log(1 − e^{−(c_k − c_{k−1})}), so that far-off scores
    keep their gradient. Cutpoints must rise.
    """
    below = levels_P.floor().clamp(0, len(cutpoints_C))
    share = levels_P - below
    losses = -_log_level(latent_P, below.long(), cutpoints_C) * (1 - share)
    above = (below + 1).clamp(max=len(cutpoints_C)).long()
    return losses - torch.where(share > 0, _log_level(latent_P, above, cutpoints_C), 0.0) * share


def _log_level(latent_P: Tensor, level_P: Tensor, cutpoints_C: Tensor) -> Tensor:
    last = len(cutpoints_C)
    upper_P = cutpoints_C[level_P.clamp(max=last - 1)]
    lower_P = cutpoints_C[(level_P - 1).clamp(min=0)]
    middle_P = (level_P > 0) & (level_P < last)
    width_P = torch.where(middle_P, upper_P - lower_P, 1.0)
    return (
        torch.where(level_P < last, -F.softplus(latent_P - upper_P), 0.0)
        + torch.where(level_P > 0, -F.softplus(lower_P - latent_P), 0.0)
        + torch.where(middle_P, torch.log(-torch.expm1(-width_P)), 0.0)
    )


def rising_cutpoints(free_C: Tensor) -> Tensor:
    """Cutpoints that rise whatever the free parameters are: the first as it is, then softplus steps."""
    return torch.cat((free_C[:1], free_C[:1] + F.softplus(free_C[1:]).cumsum(0)))


def free_cutpoints(levels: int) -> Tensor:
    """The free parameters of levels − 1 cutpoints one apart around 0; shape [levels − 1]."""
    first = -(levels - 2) / 2
    step = torch.expm1(torch.tensor(1.0)).log().item()
    return torch.tensor([first] + [step] * (levels - 2))


def regression(latent_P: Tensor, ratings_P: Tensor, lowest: float, highest: float) -> Tensor:
    """½·(s − z)² with the rating z moved to −1 … 1 by its scale: a Gaussian likelihood of unit width."""
    return 0.5 * (latent_P - (2 * (ratings_P - lowest) / (highest - lowest) - 1)).square()


def masked_mean(losses_PA: Tensor, mask_PA: Tensor) -> Tensor:
    """Mean over the aspects that were rated of each aspect's mean loss; 0 where none was.

    An aspect with few ratings thus counts as much as one with many; entries that the mask leaves out may hold anything.
    """
    kept_PA = torch.where(mask_PA, losses_PA, 0.0)
    counts_A = mask_PA.sum(0)
    rated_A = counts_A > 0
    means_A = kept_PA.sum(0) / counts_A.clamp(min=1)
    return (means_A * rated_A).sum() / rated_A.sum().clamp(min=1)
