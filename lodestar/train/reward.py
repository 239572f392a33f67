"""The reward model: pairwise Bradley–Terry on comparisons, and its card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.config import RewardTrainingConfig, RunConfig
from lodestar.data.files import DataFiles, read_comparisons, read_demonstrations, write_text
from lodestar.data.rows import encode_rows
from lodestar.layout import RunFolder
from lodestar.model.loading import (
    load_scalar_model,
    load_tokenizer,
    resolve_device,
    save_model,
    scalar_from_causal_lm,
)
from lodestar.model.packed import PackedBatch, sequence_scores
from lodestar.preference.card import Judged, accuracy, make_card
from lodestar.preference.losses import bradley_terry
from lodestar.records import Comparison, Scored
from lodestar.train.batches import batches_of
from lodestar.train.fit import Fit, fit
from lodestar.train.progress import Progress, Silent
from lodestar.train.stage import identity, policy_tokenizer, precision, start_model, state_file, trainable

CALIBRATION_ROWS = 512
"""Held-out demonstrations scored for the card's offset."""


class PreferenceObjective:
    """Bradley–Terry loss of each pair, both completions in one batch, plus a penalty that keeps scores near zero."""

    def __init__(
        self,
        train: Sequence[Comparison],
        held_out: Sequence[Comparison],
        tokenizer: PreTrainedTokenizerBase,
        config: RunConfig,
    ) -> None:
        self._config = config
        self._labels = [row.label for row in train]
        self._pairs = encode_pairs(tokenizer, train)
        self._held_out = encode_pairs(tokenizer, held_out)
        self._held_out_labels = [row.label for row in held_out]
        self.lengths = [_tokens(pair) for pair in self._pairs]

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Mean over the pairs: −[y·log σ(d) + (1−y)·log σ(−d)] + c·(s₁ + s₂)² (Eisenstein et al. 2023)."""
        scored = [scored for row in rows for scored in self._pairs[row]]
        scores_P2 = score_rows(model, scored, self._config).view(-1, 2)
        label_P = torch.tensor([self._labels[row] for row in rows], device=scores_P2.device)
        centering = scores_P2.sum(dim=1).square().mean()
        fitted = bradley_terry(scores_P2[:, 0] - scores_P2[:, 1], label_P).mean()
        return fitted + self._config.reward_model.centering * centering

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out Bradley–Terry loss, and accuracy on pairs that are no ties."""
        scores_P2 = score_all(model, [row for pair in self._held_out for row in pair], self._config).view(-1, 2)
        label_P = torch.tensor(self._held_out_labels)
        loss = bradley_terry(scores_P2[:, 0] - scores_P2[:, 1], label_P).mean()
        differences = (scores_P2[:, 0] - scores_P2[:, 1]).tolist()
        return {"held_out_loss": float(loss), "held_out_accuracy": accuracy(differences, self._held_out_labels).value}


def train_reward(config: RunConfig, folder: RunFolder, progress: Progress | None = None) -> Fit | None:
    """Trains a reward model from the SFT model's weights; writes ``folder.reward_model`` with its card.json.

    With ``reward_model.path`` nothing is trained: that model is judged on the run's comparisons, and copied. Returns
    how training went, None without.

    Raises:
        DataError: the data stage has not run.
        ResumeRefused, NonFinite: see fit.
        ModelError: ``reward_model.path`` is no reward model.
    """
    files, progress = DataFiles.of(folder), progress or Silent()
    if config.reward_model.path is not None:
        tokenizer = load_tokenizer(config.reward_model.path)
        device = str(resolve_device(config.model.device))
        model, result = load_scalar_model(config.reward_model.path, device=device), None
    else:
        tokenizer = policy_tokenizer(config, folder)
        model, result = _train(config.reward_model, config, folder, tokenizer, progress)
    save_model(model, tokenizer, folder.reward_model)
    card = _card(model, tokenizer, files, config)
    if result is not None:
        card["training"] = {
            "steps": result.steps,
            "best_step": result.best_step,
            "seconds": result.seconds,
            "stopped": result.stopped,
            "history": result.history,
        }
    write_text(folder.reward_model / "card.json", json.dumps(card, indent=2) + "\n")
    state_file(folder.reward_model).unlink(missing_ok=True)
    return result


def encode_pairs(tokenizer: PreTrainedTokenizerBase, comparisons: Sequence[Comparison]) -> list[tuple[Scored, Scored]]:
    """Both completions of each comparison after its prompt."""
    prompts = [row.prompt for row in comparisons]
    first, second = (encode_rows(tokenizer, prompts, [row.completions[side] for row in comparisons]) for side in (0, 1))
    return list(zip(first, second, strict=True))


def score_rows(model: nn.Module, rows: Sequence[Scored], config: RunConfig) -> Tensor:
    """scores_B of some rows in one packed batch."""
    device = next(model.parameters()).device
    batch = PackedBatch.pack([row.token_ids for row in rows], [row.prompt_tokens for row in rows], device=device)
    with precision(config):
        return sequence_scores(model, batch)


@torch.no_grad()
def score_all(model: nn.Module, rows: Sequence[Scored], config: RunConfig) -> Tensor:
    """scores_B of any number of rows, on the CPU, computed in batches of like length."""
    lengths = [len(row.token_ids) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    scores_B = torch.empty(len(rows))
    for batch in batches_of(lengths, config.reward_model.batch_tokens, order):
        scores_B[batch] = score_rows(model, [rows[i] for i in batch], config).float().cpu()
    return scores_B


def _train(
    training: RewardTrainingConfig,
    config: RunConfig,
    folder: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
) -> tuple[Any, Fit]:
    files = DataFiles.of(folder)
    train, held_out = (read_comparisons(files.comparisons(split)) for split in ("train", "held_out"))
    language_model = start_model(config, tokenizer, folder.sft)
    model = scalar_from_causal_lm(language_model, tokenizer, config.seed)
    digests = identity(training, config.seed, model, train, held_out)
    trained = trainable(config, model)
    result = fit(
        "reward",
        trained,
        PreferenceObjective(train, held_out, tokenizer, config),
        training,
        seed=config.seed,
        state_file=state_file(folder.reward_model),
        identity=digests,
        progress=progress,
    )
    return trained, result


def _card(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, files: DataFiles, config: RunConfig
) -> dict[str, Any]:
    unseen = read_comparisons(files.comparisons("evaluation"))
    rows = [row for pair in encode_pairs(tokenizer, unseen) for row in pair]
    scores = score_all(model, rows, config).tolist()
    lengths = [len(row.token_ids) - row.prompt_tokens for row in rows]
    judged = Judged(
        comparisons=unseen,
        scores=list(zip(scores[::2], scores[1::2], strict=True)),
        lengths=list(zip(lengths[::2], lengths[1::2], strict=True)),
    )
    shown = read_demonstrations(files.demonstrations("held_out"))[:CALIBRATION_ROWS]
    demonstrations = encode_rows(tokenizer, [row.prompt for row in shown], [row.completion for row in shown])
    train = read_comparisons(files.comparisons("train"))
    return make_card(train, judged, score_all(model, demonstrations, config).tolist())


def _tokens(pair: tuple[Scored, Scored]) -> int:
    return len(pair[0].token_ids) + len(pair[1].token_ids)
