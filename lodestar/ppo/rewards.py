"""From a reward model's score per response to a reward per token."""

from __future__ import annotations

import torch
from torch import Tensor


def shape_scores(
    scores_B: Tensor,
    truncated_B: Tensor,
    *,
    offset: float = 0.0,
    clip: float | None = None,
    scale: float = 1.0,
    missing_eos: float | None = None,
) -> Tensor:
    """score' = clip(score − offset, ±clip) / scale; ``missing_eos`` instead where ``truncated_B`` (bool) is set.

    The offset makes the score of human demonstrations 0 (Stiennon et al. 2020); ``scale`` is the running standard
    deviation when whitening is on. The replacement is final: neither clipped nor scaled, so that it means the same
    throughout a run. (TRL subtracts a penalty instead, which a high score can outweigh.)
    """
    shaped_B = scores_B - offset
    if clip is not None:
        shaped_B = shaped_B.clamp(-clip, clip)
    shaped_B = shaped_B / scale
    return shaped_B if missing_eos is None else torch.where(truncated_B, missing_eos, shaped_B)


def last_tokens(lengths_B: Tensor) -> Tensor:
    """Row among all response tokens of each response's last real token: EOS where there is one, never what follows."""
    return lengths_B.cumsum(0) - 1


def token_rewards(
    proximal_R: Tensor, reference_R: Tensor, scores_B: Tensor, lengths_B: Tensor, *, kl_coefficient: float
) -> Tensor:
    """r_t = −β·(log π_prox(y_t) − log π_ref(y_t)), plus the score on the last real token (Ziegler et al. 2019, eq. 2).

    k1 is the only estimator here: the reward is differentiated through the sampling distribution alone, and only with
    k1 is the expected return's optimum π₀·exp(r/β)/Z.
    """
    rewards_R = -kl_coefficient * (proximal_R - reference_R)
    return rewards_R.index_add(0, last_tokens(lengths_B), scores_B.to(rewards_R.dtype))
