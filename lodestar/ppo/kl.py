"""Estimators of KL(π‖π_ref) from samples of π, and the controllers of its coefficient.

Estimators follow Schulman, "Approximating KL divergence" (2020), with log r = log π_ref − log π at the sampled token.
The exact divergence over the vocabulary is lodestar_kernels.logprob.kl_divergence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """−log r: unbiased, may be negative. The only one that belongs in a reward."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """½·(log r)²: biased as a value, but its gradient on samples of π is the KL's, so it may serve as a loss."""
    return 0.5 * (logprobs - reference).square()


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """r − 1 − log r: unbiased, never negative, of low variance. A metric: its gradient is the reverse divergence's."""
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio


def sequence_kl(logprobs_R: Tensor, behaviour_R: Tensor, reference_R: Tensor, lengths_B: Tensor) -> Tensor:
    """KL(π‖π_ref) in nats per sequence of a policy that the sequences were not sampled from; a scalar.

        Σ_t Σ_b w_bt · k3_bt / Σ_b w_bt,    w_bt = Π_{s ≤ t} π(y_s) / π_behaviour(y_s)

    Each token is weighed by the likelihood ratio of all up to it (per-decision importance sampling, Precup et al.
    2000), normalised over the batch; a sequence that has ended keeps its weight. Exact in the limit of many sequences,
    close while the two policies are a PPO update apart.
    """
    lengths = lengths_B.tolist()
    steps_BS = pad_sequence(list(torch.split((logprobs_R - behaviour_R).double(), lengths)), batch_first=True)
    terms_R = k3(logprobs_R.double(), reference_R.double())
    terms_BS = pad_sequence(list(torch.split(terms_R, lengths)), batch_first=True)
    logs_BS = steps_BS.cumsum(1)
    weights_BS = (logs_BS - logs_BS.amax(0)).exp()
    return (weights_BS * terms_BS / weights_BS.sum(0)).sum()


@dataclass(frozen=True, slots=True)
class FixedKl:
    """β stays what it is."""

    coefficient: float

    def update(self, kl_sequence: float, sequences: int) -> FixedKl:
        """The controller after a batch."""
        return self


@dataclass(frozen=True, slots=True)
class AdaptiveKl:
    """Ziegler et al. 2019, section 2.2: e = clip(KL/target − 1, ±0.2), β ← β·(1 + e·n/horizon).

    KL is the batch's mean k1 summed over a sequence (nats), n its sequences. They update in PPO iterations with
    n/horizon = 1/10,000·batch; so do we. With n above the horizon β cannot turn negative: the step is capped at n.
    """

    coefficient: float
    target: float = 6.0
    horizon: int = 10_000

    def update(self, kl_sequence: float, sequences: int) -> AdaptiveKl:
        """The controller after a batch of ``sequences`` whose mean KL was ``kl_sequence`` nats."""
        error = min(max(kl_sequence / self.target - 1.0, -0.2), 0.2)
        factor = 1.0 + error * min(sequences / self.horizon, 1.0)
        return replace(self, coefficient=self.coefficient * factor)


KlController = FixedKl | AdaptiveKl
