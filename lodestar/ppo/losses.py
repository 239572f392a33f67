"""PPO's losses: sums over the tokens given, divided by the minibatch's global count of response tokens.

Because the divisor is the global count, the gradient is the same however a minibatch is cut into micro-batches or
shared between ranks: their losses and gradients simply add up. Metrics are sums over tokens for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lodestar.ppo.kl import k3


@dataclass(frozen=True, slots=True)
class LossSums:
    """What a loss saw, as sums that add up over micro-batches and ranks."""

    loss: Tensor
    """Scalar, already divided by the global count."""
    clipped: Tensor
    """Tokens at which the clip held the gradient back."""


def total(parts: Sequence[LossSums]) -> LossSums:
    """The sums of parts of the tokens together; at least one part."""
    return LossSums(
        torch.stack([part.loss for part in parts]).sum(), torch.stack([part.clipped for part in parts]).sum()
    )


def importance_weights(proximal_R: Tensor, behaviour_R: Tensor, *, cap: float) -> Tensor:
    """w_t = min(π_prox/π_behaviour, cap), without gradient (decoupled PPO, Hilton et al. 2022; capped as TIS does).

    Corrects for the sampler's numerics and for staleness; ≈ 1 on-policy.
    """
    return (proximal_R - behaviour_R).detach().exp().clamp(max=cap)


def policy_loss(
    logprobs_R: Tensor,
    proximal_R: Tensor,
    advantages_R: Tensor,
    weights_R: Tensor,
    *,
    clip: float,
    tokens: int,
    clip_high: float | None = None,
) -> LossSums:
    """Σ w_t·max(−A·ρ, −A·clip(ρ, 1 − ε, 1 + ε)) / tokens with ρ = π/π_prox (Schulman et al. 2017, equation 7).

    ``clip_high`` is another ε above 1 than below it (DAPO's Clip-Higher; Yu et al. 2025, equation 8). With an infinite
    ε nothing is clipped: the importance-sampled policy gradient.
    """
    ratio_R = (logprobs_R - proximal_R).exp()
    plain_R = -advantages_R * ratio_R
    clipped_R = -advantages_R * ratio_R.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    loss = (weights_R * torch.maximum(plain_R, clipped_R)).sum() / tokens
    return LossSums(loss, (clipped_R > plain_R).sum())


def value_loss(values_R: Tensor, old_R: Tensor, returns_R: Tensor, *, clip: float, tokens: int) -> LossSums:
    """Σ ½·max((V − R)², (V_clip − R)²) / tokens, V_clip = V_old + clip(V − V_old, ±ε), as in OpenAI's baselines.

    Where nothing is clipped V_clip is V itself: V_old + (V − V_old) would differ from it by rounding.
    """
    step_R = values_R - old_R
    clipped_R = torch.where(step_R.abs() > clip, old_R + step_R.clamp(-clip, clip), values_R)
    plain_R = (values_R - returns_R).square()
    held_R = (clipped_R - returns_R).square()
    return LossSums(0.5 * torch.maximum(plain_R, held_R).sum() / tokens, (held_R > plain_R).sum())


def entropy_loss(entropy_R: Tensor, *, tokens: int) -> Tensor:
    """−Σ H_t / tokens: multiplied by the entropy coefficient, a bonus for staying uncertain (Williams & Peng 1991)."""
    return -entropy_R.sum() / tokens


def kl_loss(kl_R: Tensor, *, tokens: int) -> Tensor:
    """Σ KL_t / tokens of k2 or exact terms."""
    return kl_R.sum() / tokens


def language_model_loss(logprobs_T: Tensor, *, tokens: int) -> Tensor:
    """−Σ log π(x_t) / tokens on pretraining text: PPO-ptx's second term (InstructGPT, equation 2)."""
    return -logprobs_T.sum() / tokens


def ratio_metrics(logprobs_R: Tensor, proximal_R: Tensor) -> dict[str, Tensor]:
    """``kl_update``: Σ k3 of the proximal policy against the new one; ``ratio_max`` and ``ratio_min`` of π/π_prox."""
    ratio_R = (logprobs_R - proximal_R).exp()
    return {
        "kl_update": k3(proximal_R, logprobs_R).sum(),
        "ratio_max": ratio_R.max(),
        "ratio_min": ratio_R.min(),
    }


def explained_variance(values_R: Tensor, returns_R: Tensor) -> float:
    """1 − Var(R − V)/Var(R): 1 is a perfect critic, 0 no better than a constant.

    0 when returns do not vary but by rounding, one part in a million.
    """
    variance = returns_R.double().var(unbiased=False)
    if not varies(returns_R):
        return 0.0
    return float(1.0 - (returns_R.double() - values_R.double()).var(unbiased=False) / variance)


def varies(values_R: Tensor) -> bool:
    """Whether numbers differ by more than rounding: their standard deviation is above 10⁻⁶ of the largest."""
    wide_R = values_R.double()
    return float(wide_R.std(unbiased=False)) > 1e-6 * float(wide_R.abs().max())
