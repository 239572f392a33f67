"""Losses on pairs of completions: Bradley–Terry with soft labels, Davidson's ties, and DPO.

Inputs are vectors over pairs; ``gaps`` is score of the first completion minus score of the second, and a label is the
probability that the first is better: 1, 0, or 0.5 for a tie. Each loss comes back per pair, so that the caller decides
how to average (InstructGPT averages over all pairs of a prompt).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(gaps: Tensor, labels: Tensor, margins: Tensor | float = 0.0) -> Tensor:
    """−[y·log σ(d − m) + (1 − y)·log σ(−d − m)]  (Bradley & Terry 1952; margin m ≥ 0 as in Llama 2, equation 2).

    A tie pulls the gap to 0 with half a vote each way. That is consistent where a tie means two votes that disagree; on
    ties drawn from Davidson's model it shrinks true gaps.
    """
    return labels * F.softplus(margins - gaps) + (1.0 - labels) * F.softplus(margins + gaps)


def davidson(gaps: Tensor, labels: Tensor, log_ties: Tensor) -> Tensor:
    """Negative log-likelihood of win, loss and tie with propensity ν = exp(log_ties) (Davidson 1970):

        P(first) ∝ e^{d/2},   P(second) ∝ e^{−d/2},   P(tie) ∝ ν

    ``log_ties`` is a scalar, usually learned beside the scores. Labels must be 1, 0 or 0.5: a softer one is weighed
    between the nearest two outcomes.
    """
    logits = torch.stack((gaps / 2, log_ties.expand_as(gaps), -gaps / 2), dim=-1)
    first, second = (2 * labels - 1).clamp(min=0), (1 - 2 * labels).clamp(min=0)
    outcomes = torch.stack((first, 1 - first - second, second), dim=-1)
    return -(outcomes * logits.log_softmax(-1)).sum(-1)


def dpo(
    first_logprobs: Tensor,
    second_logprobs: Tensor,
    first_reference: Tensor,
    second_reference: Tensor,
    labels: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Bradley–Terry on the implied rewards β·log(π/π_ref) of whole sequences (Rafailov et al. 2023, equation 7).

    With label 1 it is the paper's loss; soft labels make it the cross-entropy with the annotators' distribution, whose
    minimum over all pairs is the optimum of RLHF with the same β.
    """
    gaps = beta * ((first_logprobs - first_reference) - (second_logprobs - second_reference))
    return bradley_terry(gaps, labels)
