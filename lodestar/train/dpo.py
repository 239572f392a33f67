"""Direct preference optimisation (Rafailov et al. 2023): a policy from feedback, without a reward model or sampling.

A policy is a reward model itself: with π_ref the model that it starts from, r = β·log(π/π_ref) up to a constant of the
prompt is the reward whose RLHF optimum it is. So comparisons are fitted by that reward, as a reward model fits them,
and the optimum of RLHF comes out at once. lodestar.train.kto does it for completions without a rival.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lodestar.config import ModelConfig
from lodestar.config.dpo import DpoConfig
from lodestar.data.files import read_feedback
from lodestar.errors import DataError
from lodestar.model.context import check_lengths
from lodestar.model.loading import load_tokenizer, save_model, tokenizer_hash
from lodestar.model.shared_prefix import SharedBatch, completion_logprobs
from lodestar.packing import batches_of
from lodestar.preference.losses import davidson, dpo, ipo, mean_per_prompt
from lodestar.preference.pairs import choices
from lodestar.preference.statistics import outcomes
from lodestar.records import Choice, Feedback, Scored
from lodestar.train.fit import Fit, Objective, fit
from lodestar.train.preference import encode_groups
from lodestar.train.progress import Progress, Silent
from lodestar.train.start import identity, precision, start_model, trainable

SPLITS = ("train", "held_out")


class Reference(Protocol):
    """Gives log π_ref of completions: lodestar.train.reference.ReferenceLogProbs."""

    def of(self, rows: Sequence[Scored], tokenizer_hash: str, progress: Progress) -> list[float]:
        """Nats of each row's completion."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One row of feedback, encoded: completions of one prompt, and which of them beat which."""

    rows: tuple[Scored, ...]
    reference: tuple[float, ...]
    """log π_ref of each completion, in nats."""
    choices: tuple[Choice, ...]


class Trainee(nn.Module):
    """The policy with what is learned beside it and not saved: the propensity to ties of Davidson's model."""

    def __init__(self, policy: nn.Module, training: DpoConfig) -> None:
        super().__init__()
        self.policy = policy
        like = next(policy.parameters())
        davidson_ties = training.ties == "davidson"
        self.log_ties = nn.Parameter(torch.zeros((), device=like.device, dtype=like.dtype)) if davidson_ties else None


class DpoObjective:
    """The mean loss per prompt over all its pairs (Ouyang et al. 2022, equation 1, with the implied reward)."""

    def __init__(
        self, train: Sequence[Compared], held_out: Sequence[Compared], training: DpoConfig, model: ModelConfig
    ) -> None:
        self.lengths = [sum(len(row.token_ids) for row in group.rows) for group in train]
        self._train = train
        self._held_out = held_out
        self._training = training
        self._model = model
        self._seen = Implied()

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Scalar loss of some training rows."""
        assert isinstance(model, Trainee)
        groups = [self._train[row] for row in rows]
        logprobs_B = logprobs_of(model.policy, [group.rows for group in groups], self._training, self._model)
        ratios_B = logprobs_B - _references(groups, logprobs_B)
        self._seen.add(groups, (self._training.beta * ratios_B.detach()).tolist())
        return self._losses(model, groups, ratios_B)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out loss and implied rewards, and those of the training rows since the last evaluation."""
        assert isinstance(model, Trainee)
        groups = [group.rows for group in self._held_out]
        ratios_B = all_logprobs(model.policy, groups, self._training, self._model)
        ratios_B = ratios_B - _references(self._held_out, ratios_B)
        held_out, seen = Implied(), self._seen
        held_out.add(self._held_out, (self._training.beta * ratios_B).tolist())
        self._seen = Implied()
        loss = float(self._losses(model, self._held_out, ratios_B))
        return {"held_out_loss": loss, **held_out.figures("held_out_"), **seen.figures("")}

    def _losses(self, model: Trainee, groups: Sequence[Compared], ratios_B: Tensor) -> Tensor:
        """``ratios_B`` is log(π/π_ref) of every completion of the groups, one after another."""
        training, device, dtype = self._training, ratios_B.device, ratios_B.dtype
        starts = accumulate((len(group.rows) for group in groups), initial=0)
        pairs = [(g, start, choice) for g, (start, group) in _numbered(starts, groups) for choice in group.choices]
        first_P = torch.tensor([start + choice.first for _, start, choice in pairs], device=device)
        second_P = torch.tensor([start + choice.second for _, start, choice in pairs], device=device)
        label_P = torch.tensor([choice.label for _, _, choice in pairs], device=device, dtype=dtype)
        gap_P = ratios_B[first_P] - ratios_B[second_P]
        if training.loss == "ipo":
            loss_P = ipo(gap_P, label_P, beta=training.beta, label_smoothing=training.label_smoothing)
        elif model.log_ties is not None:
            loss_P = davidson(training.beta * gap_P, label_P, model.log_ties)
        else:
            strength_P = torch.tensor([choice.strength for _, _, choice in pairs], device=device, dtype=dtype)
            loss_P = dpo(
                gap_P,
                label_P,
                beta=training.beta,
                label_smoothing=training.label_smoothing,
                margins=training.margin * strength_P,
            )
        prompt_P = torch.tensor([g for g, _, _ in pairs], device=device)
        return mean_per_prompt(loss_P, prompt_P, ratios_B.new_ones(len(groups)))


class Implied:
    """Implied rewards β·log(π/π_ref) of the better and the worse completion of every pair that is no tie."""

    def __init__(self) -> None:
        self._better: list[float] = []
        self._worse: list[float] = []

    def add(self, groups: Sequence[Compared], rewards: Sequence[float]) -> None:
        """``rewards`` are those of every completion of the groups, one after another."""
        starts = accumulate((len(group.rows) for group in groups), initial=0)
        for _, (start, group) in _numbered(starts, groups):
            for choice in group.choices:
                if choice.label == 0.5:
                    continue
                sides = (choice.first, choice.second) if choice.label > 0.5 else (choice.second, choice.first)
                self._better.append(rewards[start + sides[0]])
                self._worse.append(rewards[start + sides[1]])

    def figures(self, prefix: str) -> dict[str, float]:
        """Share of pairs whose better completion has the higher reward, mean margin, and mean rewards of the two."""
        if not self._better:
            return {}
        margins = [better - worse for better, worse in zip(self._better, self._worse, strict=True)]
        right = [value for value in outcomes(margins, [1.0] * len(margins)) if value is not None]
        return {
            f"{prefix}accuracy": fmean(right),
            f"{prefix}margin": fmean(margins),
            f"{prefix}chosen_reward": fmean(self._better),
            f"{prefix}rejected_reward": fmean(self._worse),
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
        DataError: the feedback is missing or damaged, has rows without a rival, or says nowhere which is better.
        InvalidArgument: rows beyond the model's context.
        FailedPrecondition: see ReferenceLogProbs.of.
        ResumeRefused, NonFinite: see fit.
    """
    progress = progress or Silent()
    words = load_tokenizer(tokenizer)
    said = {split: [row for folder in feedback for row in read_feedback(folder / f"{split}.jsonl")] for split in SPLITS}
    for split, rows in said.items():
        check_comparisons(rows, ", ".join(str(folder / f"{split}.jsonl") for folder in feedback), progress)
    groups = {split: encode_groups(words, rows) for split, rows in said.items()}
    scored = [row for split in SPLITS for group in groups[split] for row in group]
    policy = start_model(model, start, words, seed)
    check_lengths(policy.config, (len(row.token_ids) for row in scored), "dpo's rows")
    progress.start("reference", len(set(scored)))
    likely = iter(reference.of(scored, tokenizer_hash(words), progress))
    train, held_out = (
        [
            Compared(rows, tuple(next(likely) for _ in rows), choices(record))
            for record, rows in zip(said[split], groups[split], strict=True)
        ]
        for split in SPLITS
    )
    digests = identity(training, seed, policy, train, held_out)
    trained: Any = trainable(model, policy)
    objective: Objective = DpoObjective(train, held_out, training, model)
    trainee = Trainee(trained, training)
    result = fit("dpo", trainee, objective, training, seed=seed, state_file=state, identity=digests, progress=progress)
    save_model(trained, words, output)
    state.unlink(missing_ok=True)
    return result


def check_comparisons(rows: Sequence[Feedback], where: str, progress: Progress) -> None:
    """Says how many rows compare nothing.

    Raises:
        DataError: a row has one completion alone, or no row says which of two is better.
    """
    alone = [row for row in rows if len(row.completions) == 1]
    if alone:
        raise DataError(
            where,
            f"{len(alone)} of {len(rows)} rows have one completion and no rival (the first is {alone[0].id!r}): "
            "dpo and ipo compare two; set loss: kto, which learns from likes and dislikes alone",
        )
    compared = [choices(row) for row in rows]
    if not any(choice.label != 0.5 for pairs in compared for choice in pairs):
        raise DataError(
            where,
            f"none of {len(rows)} rows has a loser: all their pairs are ties, equal texts or without a common rating, "
            "and nothing says what is better",
        )
    if blank := sum(not pairs for pairs in compared):
        progress.say(f"{where}: {blank} of {len(rows)} rows compare nothing (equal texts, no common rating)")


def logprobs_of(
    policy: nn.Module, groups: Sequence[Sequence[Scored]], training: DpoConfig, model: ModelConfig
) -> Tensor:
    """log π of every completion of some groups, logprobs_B, in one packed batch."""
    batch = SharedBatch.pack(groups, device=next(policy.parameters()).device, share=training.share_prefix)
    with precision(model):
        return completion_logprobs(policy, batch)


@torch.no_grad()
def all_logprobs(
    policy: nn.Module, groups: Sequence[Sequence[Scored]], training: DpoConfig, model: ModelConfig
) -> Tensor:
    """log π of every completion of any number of groups, in their order, computed in batches of like length."""
    lengths = [sum(len(row.token_ids) for row in group) for group in groups]
    order = sorted(range(len(groups)), key=lengths.__getitem__)
    starts = list(accumulate((len(group) for group in groups), initial=0))
    numbers: list[int] = []
    found: list[Tensor] = []
    for batch in batches_of(order, training.batch_tokens, lengths.__getitem__):
        found.append(logprobs_of(policy, [groups[i] for i in batch], training, model))
        numbers += [row for i in batch for row in range(starts[i], starts[i + 1])]
    logprobs_B = torch.cat(found)
    return torch.empty_like(logprobs_B).index_copy_(0, torch.tensor(numbers, device=logprobs_B.device), logprobs_B)


def _references(groups: Sequence[Compared], like: Tensor) -> Tensor:
    return like.new_tensor([value for group in groups for value in group.reference])


def _numbered(starts: Iterable[int], groups: Sequence[Compared]) -> Iterable[tuple[int, tuple[int, Compared]]]:
    """Number and first row of each group."""
    return enumerate(zip(starts, groups, strict=False))
