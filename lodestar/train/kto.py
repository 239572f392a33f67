"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024): a policy from likes and dislikes, which need no rival.

z, the reference point from which people judge, is KL(π‖π_ref) of the batch as the paper estimates it: from completions
of other prompts. Every row is given another row's completion once and for all, so that the reference is asked for those
too before training begins; a row and its other are a group, whose prompt is computed once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lodestar.errors import DataError
from lodestar.preference.losses import kto, kto_reference_point
from lodestar.preference.pairs import choices
from lodestar.records import Feedback, Ratings, Scored
from lodestar.train.implied import ImpliedObjective, Rewards, Trainee
from lodestar.train.preference import encode_groups
from lodestar.train.progress import Progress


@dataclass(frozen=True, slots=True)
class Liked:
    """One completion that was liked or not."""

    rows: tuple[Scored, Scored]
    """The completion, and one of another prompt's after this prompt."""
    liked: bool
    reference: tuple[float, ...] = ()
    """log π_ref of both, in nats."""


class KtoObjective(ImpliedObjective[Liked]):
    """The mean loss per completion; z of each batch is that batch's."""

    def losses(self, model: Trainee, groups: Sequence[Liked], ratios_B: Tensor) -> Tensor:
        """See lodestar.preference.losses.kto; every second completion serves the reference point alone."""
        own_L, other_L = ratios_B[0::2], ratios_B[1::2].detach()
        nothing_L = torch.zeros_like(own_L)
        liked_L = torch.tensor([group.liked for group in groups], device=ratios_B.device)
        point = kto_reference_point(other_L, nothing_L)
        training = self.training
        return kto(own_L, nothing_L, liked_L, point, beta=training.beta, desirable=training.desirable).mean()

    def figures(self, rewards: Sequence[tuple[Liked, Rewards]]) -> Mapping[str, float]:
        """Accuracy: share of completions on their side of the reference point; rewards of liked and of disliked."""
        liked = [own for group, (own, _) in rewards if group.liked]
        disliked = [own for group, (own, _) in rewards if not group.liked]
        if not liked or not disliked:
            return {}
        point = max(0.0, fmean(other for _, (_, other) in rewards))
        gaps = [own - point for own in liked] + [point - own for own in disliked]
        right = fmean(0.5 if gap == 0 else float(gap > 0) for gap in gaps)
        return {
            "accuracy": right,
            "margin": fmean(liked) - fmean(disliked),
            "chosen_reward": fmean(liked),
            "rejected_reward": fmean(disliked),
        }


def likes(
    tokenizer: PreTrainedTokenizerBase, feedback: Sequence[Feedback], where: str, seed: int, progress: Progress
) -> list[Liked]:
    """Every completion that was liked or disliked; how many were neither is said.

    Of comparisons a completion is liked that wins more often than it loses.

    Raises:
        DataError: nothing was liked, or nothing disliked; or all rows are of one prompt.
    """
    judged = [
        (row, verdict)
        for record, rows in zip(feedback, encode_groups(tokenizer, feedback), strict=True)
        for row, verdict in zip(rows, _verdicts(record), strict=True)
    ]
    said = [(row, verdict > 0) for row, verdict in judged if verdict]
    for liked in (True, False):
        if not any(verdict is liked for _, verdict in said):
            word = "liked" if liked else "disliked"
            raise DataError(where, f"none of {len(judged)} completions was {word}: kto needs both kinds")
    if blank := len(judged) - len(said):
        progress.say(f"{where}: {blank} of {len(judged)} completions were neither liked nor disliked and teach nothing")
    others = _others([row for row, _ in said], where, seed)
    return [Liked((row, other), liked) for (row, liked), other in zip(said, others, strict=True)]


def _verdicts(record: Feedback) -> list[float]:
    """Above 0 for a completion that was liked, below for one that was not, 0 where nobody said."""
    if len(record.completions) == 1:
        rated = record.verdict.overall(0) if isinstance(record.verdict, Ratings) else None
        return [0.0 if rated is None else rated - 0.5]
    sums = [0.0] * len(record.completions)
    for choice in choices(record):
        sums[choice.first] += choice.label - 0.5
        sums[choice.second] -= choice.label - 0.5
    return sums


def _others(rows: Sequence[Scored], where: str, seed: int) -> list[Scored]:
    """After each row's prompt a completion of another prompt's, the next one in a shuffled order."""
    order = list(range(len(rows)))
    random.Random(f"{seed}/kto").shuffle(order)
    heads = [row.token_ids[: row.prompt_tokens] for row in rows]
    found: dict[int, Scored] = {}
    for place, i in enumerate(order):
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        j = next((j for j in others if heads[j] != heads[i]), None)
        if j is None:
            raise DataError(where, "has one prompt alone: kto takes its reference point from completions of others")
        found[i] = Scored(heads[i] + rows[j].token_ids[rows[j].prompt_tokens :], len(heads[i]))
    return [found[i] for i in range(len(rows))]
