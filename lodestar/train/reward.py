"""The reward model's stage: training on feedback, ensembles, and its card."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.config import RewardTrainingConfig, RunConfig
from lodestar.data.files import DataFiles, read_demonstrations, read_feedback, write_text
from lodestar.errors import ConfigError, NonFinite
from lodestar.layout import RunFolder
from lodestar.model.heads import score_head
from lodestar.model.loading import (
    load_scalar_model,
    load_tokenizer,
    resolve_device,
    save_model,
    scalar_from_causal_lm,
    tokenizer_hash,
)
from lodestar.preference.card import Judged, make_card
from lodestar.preference.pairs import comparisons
from lodestar.preference.statistics import accuracy
from lodestar.records import Feedback
from lodestar.train.fit import Fit, fit
from lodestar.train.preference import PreferenceObjective, Trainee, encode_groups, rating_scales, score_all
from lodestar.train.progress import Progress, Silent
from lodestar.train.stage import identity, policy_tokenizer, start_model, state_file, trainable

SUMMED_HEAD = 1 / 2048
"""Factor on a new head's weights where the score is a sum over tokens: the first scores are then next to 0. With 1/64
training on HH began at a held-out loss of 0.756, worse than no opinion (0.693), and did not get over it."""
CALIBRATION_ROWS = 512
"""Held-out demonstrations scored for the card's offset."""


def train_reward(config: RunConfig, folder: RunFolder, progress: Progress | None = None) -> Fit | None:
    """Trains a reward model from the SFT model's weights, or where there is none the pretrained model's; writes
    ``folder.reward_model`` with its card.json.

    An ensemble of models has further members in ``models/reward-2`` …; one that is finished is not trained again when
    the stage resumes. With ``reward_model.path`` nothing is trained: that model is judged on the run's feedback, and
    copied. Returns how training of the first member went, None without.

    Raises:
        DataError: the data stage has not run.
        ResumeRefused, NonFinite: see fit.
        ModelError: ``reward_model.path`` is no reward model.
        ConfigError: reward_model.aspects that nobody rated; a reward_model.start that reads tokens otherwise.
    """
    files, progress = DataFiles.of(folder), progress or Silent()
    if config.reward_model.path is not None:
        tokenizer = load_tokenizer(config.reward_model.path)
        model = load_scalar_model(config.reward_model.path, device=str(resolve_device(config.model.device)))
        save_model(model, tokenizer, folder.reward_model)
        _write_card(folder.reward_model, _card([model], tokenizer, files, config))
        return None
    tokenizer = policy_tokenizer(config, folder)
    train, held_out = (read_feedback(files.comparisons(split)) for split in ("train", "held_out"))
    members = config.reward_model.ensemble if config.reward_model.ensemble_of == "models" else 1
    others = [_member(config, folder, tokenizer, i, train, held_out, progress) for i in range(1, members)]
    model, result = _train(config, folder, folder.reward_model, tokenizer, config.seed, train, held_out, progress)
    curve = _learning_curve(config, folder, tokenizer, train, held_out, files, progress)
    save_model(model, tokenizer, folder.reward_model)
    card = _card([model, *(other for other, _ in others)], tokenizer, files, config)
    card["training"] = result.figures()
    if others:
        card["training"]["other_members"] = [figures for _, figures in others]
    if curve:
        last = {"rows": len(train), **card["accuracy"], "cut_short": result.cut_short}
        card["learning_curve"] = [*curve, last]
    _write_card(folder.reward_model, card)
    state_file(folder.reward_model).unlink(missing_ok=True)
    return result


def _train(
    config: RunConfig,
    folder: RunFolder,
    output: Path,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    train: Sequence[Feedback],
    held_out: Sequence[Feedback],
    progress: Progress,
) -> tuple[Any, Fit]:
    training: RewardTrainingConfig = config.reward_model
    model = _start(config, folder, tokenizer, seed)
    digests = identity(training, seed, model, train, held_out)
    trained: Any = trainable(config, model)
    trainee = Trainee(trained, training, rating_scales(train, training.aspects))
    result = fit(
        "reward",
        trainee,
        PreferenceObjective(train, held_out, tokenizer, config, seed),
        training,
        seed=seed,
        state_file=state_file(output),
        identity=digests,
        progress=progress,
    )
    return trained, result


def _start(config: RunConfig, folder: RunFolder, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """What training begins with: ``reward_model.start``, or the language model's trunk under a new head."""
    training: RewardTrainingConfig = config.reward_model
    if training.start is not None:
        model = load_scalar_model(training.start, device=str(resolve_device(config.model.device)))
        if tokenizer_hash(load_tokenizer(training.start)) != tokenizer_hash(tokenizer):
            raise ConfigError("reward_model.start", f"{training.start} has another tokenizer than the run")
        if (read := getattr(model.config, "score_tokens", "last")) != training.score_tokens:
            raise ConfigError(
                "reward_model.score_tokens", f"must be {read}, as {training.start} was trained, or start unset"
            )
        return model
    language_model = start_model(config, tokenizer, folder.sft, folder.pretrained)
    model = scalar_from_causal_lm(language_model, tokenizer, seed, training.heads)
    model.config.score_tokens = training.score_tokens
    if training.score_tokens == "all":  # a sum of S readings is √S … S times as wide as one
        with torch.no_grad():
            score_head(model).weight.mul_(SUMMED_HEAD)
    return model


def _member(
    config: RunConfig,
    folder: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    train: Sequence[Feedback],
    held_out: Sequence[Feedback],
    progress: Progress,
) -> tuple[Any, dict[str, Any]]:
    """A further model of an ensemble, from a seed of its own, and how training went; from its folder when finished."""
    output = folder.reward_model.with_name(f"{folder.reward_model.name}-{number + 1}")
    start = _start(config, folder, tokenizer, config.seed + number)
    settings = json.dumps(identity(config.reward_model, config.seed + number, start, train, held_out))
    finished, figures_file = output / "identity.json", output / "training.json"
    if finished.exists() and figures_file.exists() and finished.read_text(encoding="utf-8") == settings:
        model = load_scalar_model(output, device=str(resolve_device(config.model.device)))
        return model, json.loads(figures_file.read_text(encoding="utf-8"))
    model, result = _train(config, folder, output, tokenizer, config.seed + number, train, held_out, progress)
    save_model(model, tokenizer, output)
    write_text(figures_file, json.dumps(result.figures(), allow_nan=False))
    write_text(finished, settings)
    state_file(output).unlink(missing_ok=True)
    return model, result.figures()


def _learning_curve(
    config: RunConfig,
    folder: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Feedback],
    held_out: Sequence[Feedback],
    files: DataFiles,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Accuracy on the evaluation split of models trained on shares of the data; each smaller share is in the larger."""
    order = list(train)
    random.Random(f"{config.seed}/learning curve").shuffle(order)
    points = []
    for share in sorted(config.reward_model.learning_curve):
        rows = order[: max(1, round(share * len(order)))]
        output = folder.reward_model.with_name(f"{folder.reward_model.name}-share-{share:g}")
        model, result = _train(config, folder, output, tokenizer, config.seed, rows, held_out, progress)
        judged = judge([model], tokenizer, read_feedback(files.comparisons("evaluation")), config)
        pairs = judged.comparisons
        rate = accuracy(judged.differences, [row.label for row in pairs], [row.prompt for row in pairs])
        points.append({"rows": len(rows), **asdict(rate), "cut_short": result.cut_short})
        state_file(output).unlink(missing_ok=True)
    return points


def judge(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    feedback: Sequence[Feedback],
    config: RunConfig,
) -> Judged:
    """Scores of every completion by the mean of the models' reward heads, and by their aspects' heads.

    Raises:
        NonFinite: a model gave a score that is no number.
    """
    groups = encode_groups(tokenizer, feedback)
    scores_MBA = torch.stack([score_all(model, groups, config) for model in models])
    if not bool(torch.isfinite(scores_MBA).all()):
        raise NonFinite("the reward model gave a score that is NaN or infinite: its weights are broken")
    labels = _labels(models[0])
    rewards = [i for i, name in enumerate(labels) if name not in config.reward_model.aspects]
    per_member = scores_MBA[:, :, rewards].permute(1, 0, 2).flatten(1)
    spread = per_member.std(1, correction=0).tolist() if per_member.shape[1] > 1 else None
    aspects: Mapping[str, list[float]] = {
        name: scores_MBA[:, :, i].mean(0).tolist() for i, name in enumerate(labels) if i not in rewards
    }
    lengths = [len(row.token_ids) - row.prompt_tokens for group in groups for row in group]
    return Judged(feedback, per_member.mean(1).tolist(), lengths, aspects, spread)


def _labels(model: Any) -> tuple[str, ...]:
    names = model.config.id2label
    return tuple(names[i] for i in range(len(names))) if len(names) > 1 else ("reward",)


def _card(
    models: Sequence[Any], tokenizer: PreTrainedTokenizerBase, files: DataFiles, config: RunConfig
) -> dict[str, Any]:
    train, held_out, unseen = (read_feedback(files.comparisons(split)) for split in ("train", "held_out", "evaluation"))
    shown = read_demonstrations(files.demonstrations("held_out"))[:CALIBRATION_ROWS]
    demonstrations = [Feedback(row.prompt, (row.completion,), ()) for row in shown]
    card = make_card(
        comparisons(train),
        judge(models, tokenizer, unseen, config),
        judge(models, tokenizer, demonstrations, config).scores,
        judge(models, tokenizer, held_out, config),
    )
    counts = json.loads(files.counts.read_text(encoding="utf-8")) if files.counts.exists() else {}
    card["data"] = {
        name: count for name, count in counts.items() if name.startswith(("comparisons", "bad", "long_rows"))
    }
    return card


def _write_card(folder: Path, card: Mapping[str, Any]) -> None:
    write_text(folder / "card.json", json.dumps(card, indent=2, allow_nan=False) + "\n")
