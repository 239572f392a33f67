"""The reward model: training on feedback, ensembles, and its card."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.config import ModelConfig, RewardTrainingConfig
from lodestar.data.files import read_demonstrations, read_feedback
from lodestar.errors import ConfigError, NonFinite
from lodestar.files import read_json, write_atomically
from lodestar.model.context import check_lengths
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
from lodestar.train.start import identity, start_model, trainable

SUMMED_HEAD = 1 / 2048
"""Factor on a new head's weights where the score is a sum over tokens: the first scores are then next to 0. With 1/64
training on HH began at a held-out loss of 0.756, worse than no opinion (0.693), and did not get over it."""
CALIBRATION_ROWS = 512
"""Held-out demonstrations scored for the card's offset."""


class RewardTraining:
    """One training of a reward model, an ensemble of them, or the judgement of one that is there.

    RewardTraining(options, model, feedback=[Path("runs/demo/data/feedback")], …).run(Path("reward"))
    """

    def __init__(
        self,
        training: RewardTrainingConfig,
        model: ModelConfig,
        *,
        feedback: Sequence[Path],
        demonstrations: Path | None,
        start: Path | None,
        tokenizer: Path | None = None,
        state: Path,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            feedback: folders of {train,held_out,evaluation}.jsonl; rows of all of them are one data set.
            demonstrations: folder whose held-out rows give the card's offset; None gives none.
            start: the language model whose trunk the reward model is; unused with ``training.path``.
            tokenizer: the run's; unset takes the language model's own.
            state: folder of what must survive a kill.

        Raises:
            DataError: feedback or demonstrations are missing or damaged.
        """
        self._training = training
        self._model = model
        self._feedback = {
            split: [row for folder in feedback for row in read_feedback(folder / f"{split}.jsonl")]
            for split in ("train", "held_out", "evaluation")
        }
        shown = read_demonstrations(demonstrations / "held_out.jsonl")[:CALIBRATION_ROWS] if demonstrations else []
        self._shown = [Feedback(row.prompt, (row.completion,), ()) for row in shown]
        self._start = start
        self._words = tokenizer or start
        self._state = state
        self._seed = seed
        self._progress = progress or Silent()
        self._device = str(resolve_device(model.device))

    def run(self, output: Path) -> Fit | None:
        """Writes the reward model with its card.json; returns how training of the first member went.

        The language model's trunk goes under a new head. An ensemble of models has further members in
        ``output/member-2`` …; one that is finished is not trained again after a kill. With ``training.path`` nothing is
        trained: that model is judged on the feedback, and copied; None is returned.

        Raises:
            ResumeRefused, NonFinite: see fit.
            ModelError: ``training.path`` is no reward model.
            InvalidArgument: rows beyond the model's context (lodestar.model.context), before anything is trained.
            ConfigError: aspects that nobody rated; a ``training.start`` that reads tokens otherwise.
        """
        if self._training.path is not None:
            self._tokenizer = load_tokenizer(self._training.path)
            model = load_scalar_model(self._training.path, device=self._device)
            held_out = encode_groups(self._tokenizer, self._feedback["held_out"])
            self._check_lengths(model, (len(row.token_ids) for rows in held_out for row in rows))
            save_model(model, self._tokenizer, output)
            write_card(output, self._card([model]))
            return None
        assert self._words is not None
        self._tokenizer = load_tokenizer(self._words)
        members = self._training.ensemble if self._training.ensemble_of == "models" else 1
        others = [self._member(i) for i in range(1, members)]
        model, result = self._train("reward", self._seed, self._feedback["train"])
        curve = self._learning_curve()
        save_model(model, self._tokenizer, output)
        for i, (other, _) in enumerate(others, start=2):
            save_model(other, self._tokenizer, output / f"member-{i}")
        card = self._card([model, *(other for other, _ in others)])
        card["training"] = result.figures()
        if others:
            card["training"]["other_members"] = [figures for _, figures in others]
        if curve:
            last = {"rows": len(self._feedback["train"]), **card["accuracy"], "cut_short": result.cut_short}
            card["learning_curve"] = [*curve, last]
        write_card(output, card)
        return result

    def _train(self, name: str, seed: int, train: Sequence[Feedback]) -> tuple[Any, Fit]:
        model = self._begin(seed)
        held_out = self._feedback["held_out"]
        objective = PreferenceObjective(train, held_out, self._tokenizer, self._training, self._model, seed)
        self._check_lengths(model, objective.row_lengths)
        digests = identity(self._training, seed, model, train, held_out)
        trained: Any = trainable(self._model, model)
        result = fit(
            "reward",
            Trainee(trained, self._training, rating_scales(train, self._training.aspects)),
            objective,
            self._training,
            seed=seed,
            state_file=self._state / f"{name}.pt",
            identity=digests,
            progress=self._progress,
        )
        return trained, result

    def _check_lengths(self, model: PreTrainedModel, lengths: Iterable[int]) -> None:
        """Refuses rows beyond the model's context: these, and those that the card is made of when training is over."""
        judged = encode_groups(self._tokenizer, [*self._feedback["evaluation"], *self._shown])
        later = (len(row.token_ids) for rows in judged for row in rows)
        check_lengths(model.config, (*lengths, *later), "reward's rows")

    def _begin(self, seed: int) -> PreTrainedModel:
        """What training begins with: ``training.start``, or the language model's trunk under a new head."""
        training = self._training
        if training.start is not None:
            model = load_scalar_model(training.start, device=self._device)
            if tokenizer_hash(load_tokenizer(training.start)) != tokenizer_hash(self._tokenizer):
                raise ConfigError("reward.start", f"{training.start} has another tokenizer than the run")
            if (read := getattr(model.config, "score_tokens", "last")) != training.score_tokens:
                raise ConfigError(
                    "reward.score_tokens", f"must be {read}, as {training.start} was trained, or start unset"
                )
            return model
        language_model = start_model(self._model, self._start, self._tokenizer, seed)
        model = scalar_from_causal_lm(language_model, self._tokenizer, seed, training.heads)
        model.config.score_tokens = training.score_tokens
        if training.score_tokens == "all":  # a sum of S readings is √S … S times as wide as one
            with torch.no_grad():
                score_head(model).weight.mul_(SUMMED_HEAD)
        return model

    def _member(self, number: int) -> tuple[Any, dict[str, Any]]:
        """A further model of an ensemble, from a seed of its own, and how training went; from disk when finished."""
        folder = self._state / f"member-{number + 1}"
        figures = folder.with_suffix(".json")
        if figures.exists():  # written last
            return load_scalar_model(folder, device=self._device), read_json(figures)
        model, result = self._train(folder.name, self._seed + number, self._feedback["train"])
        save_model(model, self._tokenizer, folder)
        write_atomically(figures, json.dumps(result.figures(), allow_nan=False))
        return model, result.figures()

    def _learning_curve(self) -> list[dict[str, Any]]:
        """Accuracy on the evaluation split of models trained on shares of the data; each smaller is in the larger."""
        order = list(self._feedback["train"])
        random.Random(f"{self._seed}/learning curve").shuffle(order)
        points = []
        for share in sorted(self._training.learning_curve):
            rows = order[: max(1, round(share * len(order)))]
            model, result = self._train(f"share-{share:g}", self._seed, rows)
            judged = judge([model], self._tokenizer, self._feedback["evaluation"], self._training, self._model)
            pairs = judged.comparisons
            rate = accuracy(judged.differences, [row.label for row in pairs], [row.prompt for row in pairs])
            points.append({"rows": len(rows), **asdict(rate), "cut_short": result.cut_short})
        return points

    def _card(self, models: Sequence[Any]) -> dict[str, Any]:
        def judged(rows: Sequence[Feedback]) -> Judged:
            return judge(models, self._tokenizer, rows, self._training, self._model)

        card = make_card(
            comparisons(self._feedback["train"]),
            judged(self._feedback["evaluation"]),
            judged(self._shown).scores if self._shown else [],
            judged(self._feedback["held_out"]),
        )
        card["data"] = {f"comparisons.{split}": len(rows) for split, rows in self._feedback.items()}
        return card


def judge(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    feedback: Sequence[Feedback],
    training: RewardTrainingConfig,
    config: ModelConfig,
) -> Judged:
    """Scores of every completion by the mean of the models' reward heads, and by their aspects' heads.

    Raises:
        NonFinite: a model gave a score that is no number.
    """
    groups = encode_groups(tokenizer, feedback)
    scores_MBA = torch.stack([score_all(model, groups, training, config) for model in models])
    if not bool(torch.isfinite(scores_MBA).all()):
        raise NonFinite("the reward model gave a score that is NaN or infinite: its weights are broken")
    labels = _labels(models[0])
    rewards = [i for i, name in enumerate(labels) if name not in training.aspects]
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


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes the card beside its model."""
    write_atomically(folder / "card.json", json.dumps(card, indent=2, allow_nan=False) + "\n")
