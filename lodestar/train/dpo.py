"""Direct preference optimisation (Rafailov et al. 2023): a policy from feedback, without a reward model or sampling.

The policy is a reward model itself (lodestar.train.implied), so comparisons are fitted by it as a reward model fits
them, and the optimum of RLHF comes out at once. lodestar.train.kto does it for completions without a rival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lodestar.config import ModelConfig
from lodestar.config.dpo import DpoConfig
from lodestar.data.files import read_feedback
from lodestar.errors import DataError
from lodestar.model.context import check_lengths
from lodestar.model.loading import load_tokenizer, save_model, tokenizer_hash
from lodestar.preference.losses import davidson, dpo, ipo, mean_per_prompt
from lodestar.preference.pairs import choices
from lodestar.preference.statistics import outcomes
from lodestar.records import Choice, Feedback, Scored
from lodestar.train.fit import Fit, fit
from lodestar.train.implied import ImpliedObjective, Rewards, Trainee
from lodestar.train.kto import KtoObjective, Liked, likes
from lodestar.train.preference import encode_groups
from lodestar.train.progress import Progress, Silent
from lodestar.train.start import identity, start_model, trainable

SPLITS = ("train", "held_out")


class Reference(Protocol):
    """Gives log π_ref of completions: lodestar.train.reference.ReferenceLogProbs."""

    def of(self, rows: Sequence[Scored], tokenizer_hash: str, progress: Progress) -> list[float]:
        """Nats of each row's completion."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One row of feedback, encoded: completions of one prompt, and which of them beat which."""

    rows: tuple[Scored, ...]
    choices: tuple[Choice, ...]
    reference: tuple[float, ...] = ()
    """log π_ref of each completion, in nats."""


class DpoObjective(ImpliedObjective[Compared]):
    """The mean loss per prompt over all its pairs (Ouyang et al. 2022, equation 1, with the implied reward)."""

    def losses(self, model: Trainee, groups: Sequence[Compared], ratios_B: Tensor) -> Tensor:
        """DPO, IPO, or Davidson's likelihood of the implied rewards."""
        training, device, dtype = self.training, ratios_B.device, ratios_B.dtype
        starts = accumulate((len(group.rows) for group in groups), initial=0)
        numbered = enumerate(zip(starts, groups, strict=False))
        pairs = [(g, start, choice) for g, (start, group) in numbered for choice in group.choices]
        first_P = torch.tensor([start + choice.first for _, start, choice in pairs], dtype=torch.int64, device=device)
        second_P = torch.tensor([start + choice.second for _, start, choice in pairs], dtype=torch.int64, device=device)
        prompt_P = torch.tensor([g for g, _, _ in pairs], dtype=torch.int64, device=device)
        label_P = torch.tensor([choice.label for _, _, choice in pairs], dtype=dtype, device=device)
        gap_P = ratios_B[first_P] - ratios_B[second_P]
        if training.loss == "ipo":
            loss_P = ipo(gap_P, label_P, beta=training.beta, label_smoothing=training.label_smoothing)
        elif model.log_ties is not None:
            loss_P = davidson(training.beta * gap_P, label_P, model.log_ties)
        else:
            strength_P = torch.tensor([choice.strength for _, _, choice in pairs], dtype=dtype, device=device)
            margin_P, smoothing = training.margin * strength_P, training.label_smoothing
            loss_P = dpo(gap_P, label_P, beta=training.beta, label_smoothing=smoothing, margins=margin_P)
        return mean_per_prompt(loss_P, prompt_P, ratios_B.new_ones(len(groups)))

    def figures(self, rewards: Sequence[tuple[Compared, Rewards]]) -> Mapping[str, float]:
        """Of pairs that are no ties: the share whose better completion has the higher reward, the mean margin, and the
        mean reward of the better and of the worse."""
        better, worse = [], []
        for group, values in rewards:
            for choice in (choice for choice in group.choices if choice.label != 0.5):
                sides = values[choice.first], values[choice.second]
                better.append(sides[choice.label < 0.5])
                worse.append(sides[choice.label > 0.5])
        if not better:
            return {}
        margins = [high - low for high, low in zip(better, worse, strict=True)]
        right = [value for value in outcomes(margins, [1.0] * len(margins)) if value is not None]
        return {
            "accuracy": fmean(right),
            "margin": fmean(margins),
            "chosen_reward": fmean(better),
            "rejected_reward": fmean(worse),
        }


def train_dpo(
    training: DpoConfig,
    model: ModelConfig,
    *,
    feedback: Sequence[Path],
    start: Path,
    tokenizer: Path,
    reference: Reference,
    output: Path,
    state: Path,
    seed: int,
    progress: Progress | None = None,
) -> Fit:
    """Fits a policy to feedback; ``output`` gets the weights of the least held-out loss.

    Args:
        feedback: folders of {train,held_out}.jsonl; rows of all of them are one data set.
        start: the model to go on from. reference: what is asked for log π_ref, of whatever model.
        state: file of the unfinished training, from which it goes on after a kill.

    Raises:
        DataError: the feedback is missing or damaged, has rows without a rival, or says nowhere which is better;
            for kto, says of nothing that it was liked, or that it was not.
        InvalidArgument: rows beyond the model's context.
        FailedPrecondition: see ReferenceLogProbs.of.
        ResumeRefused, NonFinite: see fit.
    """
    progress = progress or Silent()
    words = load_tokenizer(tokenizer)
    sides: list[list[Compared | Liked]] = []
    for split in SPLITS:
        said = [row for folder in feedback for row in read_feedback(folder / f"{split}.jsonl")]
        where = ", ".join(str(folder / f"{split}.jsonl") for folder in feedback)
        if training.loss == "kto":
            sides.append([*likes(words, said, where, seed, progress)])
        else:
            sides.append([*pairs(words, said, where, progress)])
    scored = [row for side in sides for group in side for row in group.rows]
    policy = start_model(model, start, words, seed)
    check_lengths(policy.config, (len(row.token_ids) for row in scored), "dpo's rows")
    progress.start("reference", len(set(scored)))
    likely = iter(reference.of(scored, tokenizer_hash(words), progress))
    train, held_out = ([replace(g, reference=tuple(next(likely) for _ in g.rows)) for g in side] for side in sides)
    digests = identity(training, seed, policy, train, held_out)
    trained: Any = trainable(model, policy)
    objective: Any = KtoObjective if training.loss == "kto" else DpoObjective
    result = fit(
        "dpo",
        Trainee(trained, training),
        objective(train, held_out, training, model),
        training,
        seed=seed,
        state_file=state,
        identity=digests,
        progress=progress,
    )
    save_model(trained, words, output)
    state.unlink(missing_ok=True)
    return result


def pairs(
    tokenizer: PreTrainedTokenizerBase, feedback: Sequence[Feedback], where: str, progress: Progress
) -> list[Compared]:
    """Every row with all its pairs; how many rows compare nothing is said.

    Raises:
        DataError: a row has one completion alone, or no row says which of two is better.
    """
    alone = [row for row in feedback if len(row.completions) == 1]
    if alone:
        raise DataError(
            where,
            f"{len(alone)} of {len(feedback)} rows have one completion and no rival (the first is {alone[0].id!r}): "
            "dpo and ipo compare two; set loss: kto, which learns from likes and dislikes alone",
        )
    found = [choices(row) for row in feedback]
    if not any(choice.label != 0.5 for pairs in found for choice in pairs):
        raise DataError(
            where,
            f"none of {len(feedback)} rows has a loser: all their pairs are ties, equal texts or without a common "
            "rating, and nothing says what is better",
        )
    if blank := sum(not pairs for pairs in found):
        progress.say(f"{where}: {blank} of {len(feedback)} rows compare nothing (equal texts, no common rating)")
    return [Compared(rows, both) for rows, both in zip(encode_groups(tokenizer, feedback), found, strict=True)]
