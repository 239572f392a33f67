"""What DPO and its kin share: a policy as a reward model, r = β·log(π/π_ref) of whole completions.

With π_ref the model that training starts from, that is up to a constant of the prompt the reward whose RLHF optimum π
is (Rafailov et al. 2023, equation 5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lodestar.config import ModelConfig
from lodestar.config.dpo import DpoConfig
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.model.prompt_once import shares_prompts
from lodestar.packing import batches_of
from lodestar.preference.losses import segment_sums
from lodestar.records import Scored
from lodestar.train.start import precision


class Group(Protocol):
    """Completions of one prompt."""

    @property
    def rows(self) -> tuple[Scored, ...]:
        """Each with its prompt."""

    @property
    def reference(self) -> tuple[float, ...]:
        """log π_ref of each completion, in nats."""


G = TypeVar("G", bound=Group)
Rewards = tuple[float, ...]
"""Implied rewards of a group's completions."""


class Trainee(nn.Module):
    """The policy with what is learned beside it and not saved: the propensity to ties of Davidson's model."""

    def __init__(self, policy: nn.Module, training: DpoConfig) -> None:
        super().__init__()
        self.policy = policy
        zero = torch.zeros_like(next(policy.parameters()).flatten()[0], requires_grad=False)
        self.log_ties = nn.Parameter(zero) if training.ties == "davidson" else None


class ImpliedObjective(ABC, Generic[G]):
    """A loss of log(π/π_ref) of completions: see lodestar.train.dpo and lodestar.train.kto."""

    def __init__(self, train: Sequence[G], held_out: Sequence[G], training: DpoConfig, model: ModelConfig) -> None:
        self.lengths = [_tokens(group) for group in train]
        self.training = training
        self._train = train
        self._held_out = held_out
        self._model = model
        self._seen: list[tuple[G, Rewards]] = []
        """Training rows since the last evaluation."""

    @abstractmethod
    def losses(self, model: Trainee, groups: Sequence[G], ratios_B: Tensor) -> Tensor:
        """The scalar loss; ``ratios_B`` is log(π/π_ref) of every completion of the groups, one after another."""

    @abstractmethod
    def figures(self, rewards: Sequence[tuple[G, Rewards]]) -> Mapping[str, float]:
        """What implied rewards say of the feedback: ``accuracy``, ``margin``, ``chosen_reward``, ``rejected_reward``;
        empty where nothing can be said."""

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Scalar loss of some training rows."""
        assert isinstance(model, Trainee)
        groups = [self._train[row] for row in rows]
        ratios_B = self._logprobs(model, groups)
        ratios_B = ratios_B - _references(groups, ratios_B)
        self._seen += self._rewards(groups, ratios_B.detach())
        return self.losses(model, groups, ratios_B)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out loss and implied rewards, and the rewards of the training rows since the last evaluation."""
        assert isinstance(model, Trainee)
        ratios_B = self._held_out_logprobs(model)
        ratios_B = ratios_B - _references(self._held_out, ratios_B)
        held_out = self.figures(self._rewards(self._held_out, ratios_B))
        seen, self._seen = self._seen, []
        return {
            "held_out_loss": float(self.losses(model, self._held_out, ratios_B)),
            **{f"held_out_{name}": value for name, value in held_out.items()},
            **self.figures(seen),
        }

    def _logprobs(self, model: Trainee, groups: Sequence[G]) -> Tensor:
        """log π of every completion of some groups, logprobs_B, in one packed batch."""
        device, rows = next(model.policy.parameters()).device, [row for group in groups for row in group.rows]
        share = self.training.share_prefix and shares_prompts(model.policy)
        batch = PackedBatch.of(rows, device=device, share=share)
        with precision(self._model):
            logprobs_R, _ = response_logprobs(model.policy, batch, temperature=1.0)
        return segment_sums(logprobs_R, batch.response_lengths)

    @torch.no_grad()
    def _held_out_logprobs(self, model: Trainee) -> Tensor:
        """log π of every held-out completion, in their order, computed in batches of like length."""
        groups = self._held_out
        lengths = [_tokens(group) for group in groups]
        order = sorted(range(len(groups)), key=lengths.__getitem__)
        starts = [*accumulate((len(group.rows) for group in groups), initial=0)]
        numbers: list[int] = []
        found: list[Tensor] = []
        for batch in batches_of(order, self.training.batch_tokens, lengths.__getitem__):
            found.append(self._logprobs(model, [groups[i] for i in batch]))
            numbers += [row for i in batch for row in range(starts[i], starts[i + 1])]
        logprobs_B = torch.cat(found)
        return torch.empty_like(logprobs_B).index_copy_(0, torch.tensor(numbers, device=logprobs_B.device), logprobs_B)

    def _rewards(self, groups: Sequence[G], ratios_B: Tensor) -> list[tuple[G, Rewards]]:
        rewards = (self.training.beta * ratios_B).tolist()
        ends = accumulate((len(group.rows) for group in groups), initial=0)
        parts = (tuple(rewards[start:end]) for start, end in pairwise(ends))
        return list(zip(groups, parts, strict=True))


def _references(groups: Sequence[Group], like: Tensor) -> Tensor:
    return like.new_tensor([value for group in groups for value in group.reference])


def _tokens(group: Group) -> int:
    return sum(len(row.token_ids) for row in group.rows)
