"""The numbers of one PPO iteration, gathered without waiting for the device and named as in metrics.jsonl."""

from __future__ import annotations

import torch
from torch import Tensor

from lodestar.errors import NonFinite
from lodestar.ppo import kl
from lodestar.ppo.losses import LossSums, explained_variance, ratio_metrics, varies
from lodestar_services.learner.batch import Responses
from lodestar_services.learner.ranks import Ranks


def batch_figures(
    responses: Responses,
    *,
    shaped_B: Tensor,
    rewards_R: Tensor,
    proximal_R: Tensor,
    entropy_R: Tensor,
    values_R: Tensor,
    returns_R: Tensor,
    advantages_R: Tensor,
    step: int,
) -> dict[str, float]:
    """Metrics known before the first epoch: of the policy that the responses came from, before its update.

    ``shaped_B`` are the scores as rewards, ``advantages_R`` not yet whitened, ``step`` the iterations done.
    """
    sequences = len(responses.sequences)
    k1_R = kl.k1(proximal_R, responses.reference_R)
    tensors = {
        "reward": rewards_R.sum() / sequences,
        "score": shaped_B.mean(),
        "score_std": shaped_B.std(unbiased=False),
        "score_disagreement": responses.deviations_B.mean(),
        "kl_k1": k1_R.mean(),
        "kl_k3": kl.k3(proximal_R, responses.reference_R).mean(),
        "kl_sequence": k1_R.sum() / sequences,
        "kl_behaviour": kl.k3(responses.behaviour_R, proximal_R).mean(),
        "entropy": entropy_R.mean(),
        "response_length": responses.lengths_B.float().mean(),
        "eos_rate": 1.0 - responses.truncated_B.float().mean(),
        "staleness": (step - responses.versions_B).float().mean(),
    }
    figures = {name: float(value) for name, value in tensors.items()}
    figures["explained_variance"] = explained_variance(values_R, returns_R)
    figures["nothing_to_learn"] = float(not varies(advantages_R))
    return figures


class UpdateFigures:
    """Sums over one epoch's micro-batches; the last epoch's become the iteration's metrics."""

    SUMS = ("policy_loss", "value_loss", "clipped", "value_clipped", "kl_update", "tokens")

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(self.SUMS), dtype=torch.float64, device=device)
        self._extremes = torch.full((2,), -torch.inf, dtype=torch.float64, device=device)
        self._norms: list[tuple[float, float]] = []

    @torch.no_grad()
    def add(self, policy: LossSums, value: LossSums, logprobs_R: Tensor, proximal_R: Tensor) -> None:
        """One micro-batch."""
        ratio = ratio_metrics(logprobs_R, proximal_R)
        tokens = torch.tensor(len(logprobs_R), device=logprobs_R.device)
        terms = (policy.loss, value.loss, policy.clipped, value.clipped, ratio["kl_update"], tokens)
        self._sums += torch.stack([term.double() for term in terms])
        extremes = torch.stack((ratio["ratio_max"], -ratio["ratio_min"])).double()
        self._extremes = torch.maximum(self._extremes, extremes)

    def check(self, ranks: Ranks) -> None:
        """See that every sum so far is a number.

        Raises:
            NonFinite: on all ranks, where one of any rank is none.
        """
        broken = (~torch.isfinite(self._sums)).double()
        if bool(ranks.largest(broken).any()):
            names = [name for name, bad in zip(self.SUMS, broken.tolist(), strict=True) if bad]
            raise NonFinite(f"a loss is not finite: {', '.join(names)}")

    def add_norms(self, policy: float, critic: float) -> None:
        """One optimizer step."""
        self._norms.append((policy, critic))

    def collect(self, ranks: Ranks) -> dict[str, float]:
        """Means over the epoch, over all ranks."""
        sums = dict(zip(self.SUMS, ranks.total(self._sums).tolist(), strict=True))
        largest, negative_smallest = ranks.largest(self._extremes).tolist()
        minibatches = len(self._norms)
        policy_norms, critic_norms = zip(*self._norms, strict=True)
        return {
            "policy_loss": sums["policy_loss"] / minibatches,
            "value_loss": sums["value_loss"] / minibatches,
            "clip_fraction": sums["clipped"] / sums["tokens"],
            "value_clip_fraction": sums["value_clipped"] / sums["tokens"],
            "kl_update": sums["kl_update"] / sums["tokens"],
            "ratio_max": largest,
            "ratio_min": -negative_smallest,
            "policy_grad_norm": sum(policy_norms) / minibatches,
            "critic_grad_norm": sum(critic_norms) / minibatches,
        }
