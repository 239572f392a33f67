"""Losses on what people said about completions: pairs, ties, rankings, and centring; liked or not alone; DPO, IPO, KTO.

Inputs are vectors over pairs, suffix P; ``gaps`` is score of the first completion minus score of the second, and a
label is the probability that the first is better: 1, 0, 0.5 for a tie, or a share of votes. Each loss comes back per
pair or per ranking, so that the caller decides how to average: ``mean_per_prompt`` does what InstructGPT does.
Likert ratings are in lodestar.preference.ratings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(gaps: Tensor, labels: Tensor, margins: Tensor | float = 0.0) -> Tensor:
    """−[y·log σ(d − m) + (1 − y)·log σ(−d − m)]  (Bradley & Terry 1952; margin m ≥ 0 as in Llama 2, equation 2).

    A tie pulls the gap to 0 with half a vote each way. That is right where a tie means two votes that disagree: then
    E[y] = σ(d), whose minimum is the true gap. It is wrong where people say "equal" by Davidson's model with propensity
    ν: E[y] = (e^{d/2} + ν/2) / (e^{d/2} + ν + e^{−d/2}), and the fit tends to log(E[y] / (1 − E[y])), that is

        true gap          0.5     1      2      4
        fitted, ν = ½     0.40    0.80   1.57   2.99
        fitted, ν = 1     0.33    0.66   1.31   2.52
        fitted, ν = 2     0.25    0.50   1.00   2.00
    """
    return labels * F.softplus(margins - gaps) + (1.0 - labels) * F.softplus(margins + gaps)


def davidson(gaps: Tensor, labels: Tensor, log_ties: Tensor) -> Tensor:
    """Negative log-likelihood of win, loss and tie with propensity ν = exp(log_ties) (Davidson 1970):

        P(first) ∝ e^{d/2},   P(second) ∝ e^{−d/2},   P(tie) ∝ ν

    Right where people say "equal". Wrong where a tie is two Bradley–Terry votes that disagree: σ(d)², 2σ(d)σ(−d) and
    σ(−d)² are this model's probabilities at ν = 2 and gap 2d, so the fit tends to twice every true gap.

    ``log_ties`` is a scalar, usually learned beside the scores. A label other than 1, 0 and 0.5 is weighed between the
    nearest two outcomes.
    """
    logits = torch.stack((gaps / 2, log_ties.expand_as(gaps), -gaps / 2), dim=-1)
    first, second = (2 * labels - 1).clamp(min=0), (1 - 2 * labels).clamp(min=0)
    outcomes = torch.stack((first, 1 - first - second, second), dim=-1)
    return -(outcomes * logits.log_softmax(-1)).sum(-1)


def plackett_luce(scores_GK: Tensor, places_GK: Tensor) -> Tensor:
    """−log P(ranking) of G rankings of K (Plackett 1975, Luce 1959): the best is drawn first, by softmax of the scores.

        Σ_i [log Σ_{j not placed before i} e^{s_j} − s_i]

    ``places_GK`` holds each completion's place, 0 best; a negative place is padding. Tied completions are each drawn
    from the set with all of them (Breslow 1974). For K = 2 this is Bradley–Terry, and a tie counts as one vote each
    way.
    """
    real_GK = places_GK >= 0
    rivals_GKK = (places_GK[:, None, :] >= places_GK[:, :, None]) & real_GK[:, None, :]
    log_sums_GK = scores_GK[:, None, :].expand_as(rivals_GKK).masked_fill(~rivals_GKK, float("-inf"))
    log_sums_GK = log_sums_GK.masked_fill(~real_GK[:, :, None], 0.0).logsumexp(-1)
    return torch.where(real_GK, log_sums_GK - scores_GK, 0.0).sum(-1)


def mean_per_prompt(losses_P: Tensor, prompt_P: Tensor, weights_G: Tensor) -> Tensor:
    """Σ_g w_g · (mean of the losses of prompt g) / Σ_g w_g: a prompt counts once, however many pairs it has.

    InstructGPT trains on all C(K, 2) pairs of a prompt at once, averaged (Ouyang et al. 2022, equation 1): as
    independent rows the same completion is seen K − 1 times an epoch, and overfits. ``prompt_P`` numbers each loss's
    prompt, 0 … G − 1; ``weights_G`` are the annotators'. Prompts without a loss count nowhere.
    """
    sums_G = losses_P.new_zeros(len(weights_G)).index_add(0, prompt_P, losses_P)
    counts_G = torch.bincount(prompt_P, minlength=len(weights_G))
    weights_G = weights_G * (counts_G > 0)
    total = weights_G.sum()
    return (weights_G * sums_G / counts_G.clamp(min=1)).sum() / torch.where(total > 0, total, 1.0)


def centring(sums_P: Tensor) -> Tensor:
    """(s₁ + s₂)² of each pair (Eisenstein et al. 2023, equation 4): fixes the constant that comparisons leave open."""
    return sums_P.square()


def segment_sums(rewards_R: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """scores_B = Σ_t r_t over each segment's tokens (Christiano et al. 2017, equation 1), R = Σ lengths; or [R, A].

    As the score of a completion this makes every token's reward a reading of the head, which longer completions sum
    more of.
    """
    segment_R = torch.repeat_interleave(torch.tensor(lengths, device=rewards_R.device))
    return rewards_R.new_zeros(len(lengths), *rewards_R.shape[1:]).index_add(0, segment_R, rewards_R)


def dpo(
    gaps: Tensor, labels: Tensor, *, beta: float, label_smoothing: float = 0.0, margins: Tensor | float = 0.0
) -> Tensor:
    """Bradley–Terry on the implied rewards r = β·log(π/π_ref) of whole sequences (Rafailov et al. 2023, equation 7).

    ``gaps`` is log(π/π_ref) of the first completion less that of the second, in nats. With label 1 it is the paper's
    loss; soft labels make it the cross-entropy with the annotators' distribution, whose minimum over all pairs is the
    optimum of RLHF with the same β. ``label_smoothing`` is the probability ε that a label is the wrong way round:
    y becomes (1 − ε)·y + ε·(1 − y), cDPO (Mitchell 2023, "A note on DPO with noisy preferences"). ``margins`` are in
    implied reward (Amini et al. 2024, equation 4).
    """
    return bradley_terry(beta * gaps, smoothed(labels, label_smoothing), margins)


def ipo(gaps: Tensor, labels: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """y·(h − 1/(2β))² + (1 − y)·(h + 1/(2β))² of ``gaps`` h as in ``dpo`` (Azar et al. 2024, equation 17, τ = β).

    The least is at h = (2y − 1)/(2β), finite for the surest label. Sums of log-probs, as in the paper; a mean per token
    would be another loss.
    """
    labels = smoothed(labels, label_smoothing)
    wanted = 0.5 / beta
    return labels * (gaps - wanted).square() + (1.0 - labels) * (gaps + wanted).square()


def smoothed(labels: Tensor, label_smoothing: float) -> Tensor:
    """(1 − ε)·y + ε·(1 − y): labels of which a share ε is the wrong way round."""
    return labels + label_smoothing * (1.0 - 2.0 * labels)


def approval(scores_B: Tensor, shares_B: Tensor) -> Tensor:
    """−[y·log σ(s) + (1 − y)·log σ(−s)] of completions without a rival: a binary head on the score itself.

    ``shares_B`` is how much each was liked, 0 … 1. The score is then the log-odds of being liked, and its zero means
    something, where comparisons leave it open.
    """
    return shares_B * F.softplus(-scores_B) + (1.0 - shares_B) * F.softplus(scores_B)


def kto(
    logprobs_B: Tensor,
    reference_B: Tensor,
    liked_B: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """Kahneman–Tversky optimisation on completions that were liked or not (Ethayarajh et al. 2024, equation 8):

        r = log π(y|x) − log π_ref(y|x);   λ_D·(1 − σ(β(r − z)))  if liked,   λ_U·(1 − σ(β(z − r)))  if not

    ``logprobs_B`` and ``reference_B`` are of whole completions; ``liked_B`` is boolean; ``kl`` estimates
    z = KL(π‖π_ref) of the batch (``kto_reference_point``) and passes no gradient. λ should bring λ_D·n_D / (λ_U·n_U) to
    1 … 4/3 (the paper's section 4.3).
    """
    gap_B = beta * (logprobs_B - reference_B - kl.detach())
    signed_B = torch.where(liked_B, gap_B, -gap_B)
    weight_B = torch.where(liked_B, gap_B.new_tensor(desirable), gap_B.new_tensor(undesirable))
    return weight_B * torch.sigmoid(-signed_B)


def kto_reference_point(mismatched_B: Tensor, mismatched_reference_B: Tensor) -> Tensor:
    """max(0, mean of log π(y′|x) − log π_ref(y′|x)) over completions y′ of *other* prompts: KTO's KL estimate."""
    return (mismatched_B - mismatched_reference_B).mean().clamp(min=0).detach()
