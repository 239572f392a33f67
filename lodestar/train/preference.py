"""What reward training minimises: the loss of feedback of every kind, each prompt's completions in one batch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lodestar.config import ModelConfig, RewardTrainingConfig
from lodestar.data.rows import encode_rows
from lodestar.errors import ConfigError
from lodestar.model.packed import PackedBatch, label_scores
from lodestar.model.prompt_once import shares_prompts
from lodestar.packing import batches_of
from lodestar.preference.agreement import reliabilities
from lodestar.preference.losses import approval, bradley_terry, centring, davidson, mean_per_prompt, plackett_luce
from lodestar.preference.pairs import choices
from lodestar.preference.ratings import cumulative_link, free_cutpoints, masked_mean, regression, rising_cutpoints
from lodestar.preference.statistics import accuracy
from lodestar.records import Choice, Feedback, Ranking, Ratings, Scored
from lodestar.train.start import precision


class Trainee(nn.Module):
    """A reward model with what is learned beside it and not saved: Davidson's ν, and the aspects' cutpoints."""

    def __init__(
        self, model: nn.Module, config: RewardTrainingConfig, scales: Mapping[str, tuple[float, float]]
    ) -> None:
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        self.log_ties = nn.Parameter(torch.zeros((), device=device)) if config.loss == "davidson" else None
        ordinal = config.aspects if config.rating_loss == "ordinal" else ()
        self.cutpoints = nn.ParameterDict(
            {name: nn.Parameter(free_cutpoints(_levels(scales[name])).to(device)) for name in ordinal}
        )


@dataclass(frozen=True, slots=True)
class Group:
    """One row of feedback, encoded."""

    rows: tuple[Scored, ...]
    choices: tuple[Choice, ...]
    places: tuple[int, ...]
    """Of a ranking; empty otherwise."""
    ratings: tuple[tuple[float | None, ...], ...]
    """By aspect of the configuration, of each completion."""
    approval: float | None
    """How much a completion without a rival was liked, 0 … 1; None where there are several, or nobody said."""
    weight: float
    bootstrap: tuple[float, ...]
    """How often each member of an ensemble of heads sees this row."""


class PreferenceObjective:
    """The mean loss per prompt over its comparisons (or ranking), ratings and a penalty that keeps scores near zero."""

    def __init__(
        self,
        train: Sequence[Feedback],
        held_out: Sequence[Feedback],
        tokenizer: PreTrainedTokenizerBase,
        training: RewardTrainingConfig,
        model: ModelConfig,
        seed: int,
    ) -> None:
        self._training = training
        self._model = model
        self.scales = rating_scales(train, self._training.aspects)
        weights = annotator_weights(train, self._training)
        members = sum(name.startswith("reward") for name in self._training.heads)
        self._members = members
        self._groups = [
            self._group(record, rows, weights.get(record.annotator, 1.0), bootstrap(seed, i, members))
            for i, (record, rows) in enumerate(zip(train, encode_groups(tokenizer, train), strict=True))
        ]
        self._held_out = [
            self._group(record, rows, 1.0, (1.0,) * members)
            for record, rows in zip(held_out, encode_groups(tokenizer, held_out), strict=True)
        ]
        self.lengths = [sum(len(row.token_ids) for row in group.rows) for group in self._groups]
        self.row_lengths = [len(row.token_ids) for group in (*self._groups, *self._held_out) for row in group.rows]

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Scalar loss of some training rows."""
        groups = [self._groups[row] for row in rows]
        return self._losses(
            model, groups, score_groups(_inner(model), [g.rows for g in groups], self._training, self._model)
        )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out loss, and accuracy of the mean reward on pairs that are no ties, and of its sign on likes."""
        scores_BA = score_all(_inner(model), [group.rows for group in self._held_out], self._training, self._model)
        loss = self._losses(model, self._held_out, scores_BA.to(next(model.parameters()).device))
        rewards = scores_BA[:, : self._members].mean(1).tolist()
        starts = [0, *accumulate(len(group.rows) for group in self._held_out)]
        differences, labels = [], []
        for start, group in zip(starts, self._held_out, strict=False):
            if group.approval is not None:  # against 0, the log-odds of one half
                differences.append(rewards[start])
                labels.append(group.approval)
            for choice in group.choices:
                differences.append(rewards[start + choice.first] - rewards[start + choice.second])
                labels.append(choice.label)
        return {"held_out_loss": float(loss), "held_out_accuracy": accuracy(differences, labels).value}

    def _group(self, record: Feedback, rows: tuple[Scored, ...], weight: float, counts: tuple[float, ...]) -> Group:
        verdict = record.verdict
        whole = self._training.loss == "plackett_luce" and isinstance(verdict, Ranking)
        aspects: Mapping[str, tuple[float | None, ...]] = verdict.aspects if isinstance(verdict, Ratings) else {}
        nothing = (None,) * len(rows)
        return Group(
            rows=rows,
            choices=choices(record),
            places=verdict.places if whole and isinstance(verdict, Ranking) else (),
            ratings=tuple(aspects.get(name, nothing) for name in self._training.aspects),
            approval=verdict.overall(0) if isinstance(verdict, Ratings) and len(rows) == 1 else None,
            weight=weight,
            bootstrap=counts,
        )

    def _losses(self, model: nn.Module, groups: Sequence[Group], scores_BA: Tensor) -> Tensor:
        device = scores_BA.device
        starts = [0, *accumulate(len(group.rows) for group in groups)]
        pairs = [(g, starts[g], choice) for g, group in enumerate(groups) for choice in group.choices]
        first_P = torch.tensor([start + c.first for _, start, c in pairs], dtype=torch.int64, device=device)
        second_P = torch.tensor([start + c.second for _, start, c in pairs], dtype=torch.int64, device=device)
        prompt_P = torch.tensor([g for g, _, _ in pairs], dtype=torch.int64, device=device)
        ranked = [bool(group.places) for group in groups]
        paired = torch.tensor([not ranked[g] for g, _, _ in pairs], dtype=torch.bool, device=device)
        label_P = torch.tensor([c.label for _, _, c in pairs], device=device)
        margin_P = self._training.margin * torch.tensor([c.strength for _, _, c in pairs], device=device)
        weight_G = torch.tensor([group.weight for group in groups], device=device)
        counts_GM = torch.tensor([group.bootstrap for group in groups], device=device)
        total = scores_BA.new_zeros(())
        for member in range(self._members):
            scores_B = scores_BA[:, member]
            weights_G = weight_G * counts_GM[:, member]
            gap_P, sum_P = scores_B[first_P] - scores_B[second_P], scores_B[first_P] + scores_B[second_P]
            fitted_P = self._pair_losses(model, gap_P, label_P, margin_P)
            losses, prompts = fitted_P[paired], prompt_P[paired]
            if any(ranked):
                ranking_G = _rankings(groups, starts, scores_B)
                which = torch.tensor([g for g, whole in enumerate(ranked) if whole], device=device)
                losses, prompts = torch.cat((losses, ranking_G)), torch.cat((prompts, which))
            liked, of_prompts = _approvals(groups, starts, scores_B)
            losses, prompts = torch.cat((losses, liked)), torch.cat((prompts, of_prompts))
            total = total + mean_per_prompt(losses, prompts, weights_G)
            total = total + self._training.centering * mean_per_prompt(centring(sum_P), prompt_P, weight_G)
        total = total / self._members
        if self._training.aspects:
            total = total + self._training.rating_weight * self._rating_loss(model, groups, scores_BA)
        return total

    def _pair_losses(self, model: nn.Module, gap_P: Tensor, label_P: Tensor, margin_P: Tensor) -> Tensor:
        if self._training.loss == "davidson":
            assert isinstance(model, Trainee)
            assert model.log_ties is not None
            return davidson(gap_P, label_P, model.log_ties)
        return bradley_terry(gap_P, label_P, margin_P)

    def _rating_loss(self, model: nn.Module, groups: Sequence[Group], scores_BA: Tensor) -> Tensor:
        columns, masks = [], []
        for a, name in enumerate(self._training.aspects):
            values = [value for group in groups for value in group.ratings[a]]
            low, high = self.scales[name]
            mask_B = torch.tensor([value is not None for value in values], device=scores_BA.device)
            rating_B = torch.tensor([low if value is None else value for value in values], device=scores_BA.device)
            latent_B = scores_BA[:, self._members + a]
            if self._training.rating_loss == "ordinal":
                assert isinstance(model, Trainee)
                level_B = (rating_B - low) * ((_levels((low, high)) - 1) / (high - low))
                columns.append(cumulative_link(latent_B, level_B, rising_cutpoints(model.cutpoints[name])))
            else:
                columns.append(regression(latent_B, rating_B, low, high))
            masks.append(mask_B)
        return masked_mean(torch.stack(columns, 1), torch.stack(masks, 1))


def encode_groups(tokenizer: PreTrainedTokenizerBase, feedback: Sequence[Feedback]) -> list[tuple[Scored, ...]]:
    """All completions of each row after its prompt."""
    prompts = [record.prompt for record in feedback for _ in record.completions]
    encoded = iter(encode_rows(tokenizer, prompts, [text for record in feedback for text in record.completions]))
    return [tuple(next(encoded) for _ in record.completions) for record in feedback]


def score_groups(
    model: nn.Module, groups: Sequence[Sequence[Scored]], training: RewardTrainingConfig, config: ModelConfig
) -> Tensor:
    """scores_BA of some groups' completions in one packed batch, one label per column."""
    device = next(model.parameters()).device
    share = training.share_prefix and shares_prompts(model)
    batch = PackedBatch.of([row for group in groups for row in group], device=device, share=share)
    with precision(config):
        return label_scores(model, batch)


@torch.no_grad()
def score_all(
    model: nn.Module, groups: Sequence[Sequence[Scored]], training: RewardTrainingConfig, config: ModelConfig
) -> Tensor:
    """scores_BA of any number of groups, on the CPU in their order, computed in batches of like length."""
    lengths = [sum(len(row.token_ids) for row in group) for group in groups]
    order = sorted(range(len(groups)), key=lengths.__getitem__)
    starts = [0, *accumulate(len(group) for group in groups)]
    scores_BA: Tensor | None = None
    for batch in batches_of(order, training.batch_tokens, lengths.__getitem__):
        found = score_groups(model, [groups[i] for i in batch], training, config).float().cpu()
        if scores_BA is None:
            scores_BA = torch.empty(starts[-1], found.shape[1])
        scores_BA[[row for i in batch for row in range(starts[i], starts[i + 1])]] = found
    assert scores_BA is not None, "groups are needed"
    return scores_BA


def annotator_weights(feedback: Sequence[Feedback], config: RewardTrainingConfig) -> dict[str, float]:
    """Annotator → weight, as configured."""
    if isinstance(config.annotators, dict):
        return config.annotators
    return reliabilities(feedback) if config.annotators == "agreement" else {}


def bootstrap(seed: int, row: int, members: int) -> tuple[float, ...]:
    """How often each member sees a row: Poisson(1) counts (Oza & Russell 2001); once where there is one member."""
    if members == 1:
        return (1.0,)
    rng = random.Random(f"{seed}/bootstrap/{row}")
    return tuple(float(_poisson(rng)) for _ in range(members))


def rating_scales(feedback: Sequence[Feedback], aspects: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The scale of each aspect to be trained.

    Raises:
        ConfigError: nobody rated an aspect, or two scales of it are in the data.
    """
    rated = [record.verdict for record in feedback if isinstance(record.verdict, Ratings)]
    found: dict[str, tuple[float, float]] = {}
    for name in aspects:
        scales = {verdict.scales[name] for verdict in rated if name in verdict.scales}
        if len(scales) != 1:
            known = ", ".join(sorted({aspect for verdict in rated for aspect in verdict.aspects})) or "none"
            problem = f"has the scales {sorted(scales)}" if scales else f"has no rating in the data, which rate {known}"
            raise ConfigError("reward.aspects", f"{name} {problem}")
        (found[name],) = scales
    return found


def _rankings(groups: Sequence[Group], starts: Sequence[int], scores_B: Tensor) -> Tensor:
    """Plackett–Luce losses of the groups that are ranked."""
    ranked = [(starts[g], group.places) for g, group in enumerate(groups) if group.places]
    width = max(len(places) for _, places in ranked)
    places_GK = torch.tensor([list(p) + [-1] * (width - len(p)) for _, p in ranked], device=scores_B.device)
    rows_GK = torch.tensor([[start + min(k, len(p) - 1) for k in range(width)] for start, p in ranked])
    return plackett_luce(scores_B[rows_GK.to(scores_B.device)], places_GK)


def _approvals(groups: Sequence[Group], starts: Sequence[int], scores_B: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of completions without a rival, and the numbers of their groups."""
    alone = [(g, starts[g], group.approval) for g, group in enumerate(groups) if group.approval is not None]
    rows_A = torch.tensor([row for _, row, _ in alone], dtype=torch.int64, device=scores_B.device)
    shares_A = torch.tensor([share for _, _, share in alone], dtype=scores_B.dtype, device=scores_B.device)
    prompts_A = torch.tensor([g for g, _, _ in alone], dtype=torch.int64, device=scores_B.device)
    return approval(scores_B[rows_A], shares_A), prompts_A


def _levels(scale: tuple[float, float]) -> int:
    """Whole steps of a scale, ends included: 5 of 1 … 5."""
    return max(2, round(scale[1] - scale[0]) + 1)


def _poisson(rng: random.Random) -> int:
    count, product = 0, rng.random()
    while product > 0.36787944117144233:  # 1/e
        count += 1
        product *= rng.random()
    return count


def _inner(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, Trainee) else model
