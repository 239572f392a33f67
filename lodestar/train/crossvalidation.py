"""Cross-validation of a reward model: what it would say of each answer, had it not seen that one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lodestar.config import ModelConfig, RewardTrainingConfig
from lodestar.data.files import write_feedback
from lodestar.errors import FailedPrecondition
from lodestar.model.loading import load_scalar_model, load_tokenizer
from lodestar.preference.statistics import accuracy
from lodestar.records import Comparison, Feedback
from lodestar.train.progress import Progress, Silent
from lodestar.train.reward import RewardTraining, judge

LEAST_FOLDS = 3
"""One is judged, one ends training, the rest are learned."""


def cross_validate(
    rows: Sequence[Feedback],
    training: RewardTrainingConfig,
    model: ModelConfig,
    *,
    start: Path,
    tokenizer: Path,
    state: Path,
    folds: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[list[tuple[Comparison, float]], dict[str, Any]]:
    """Every comparison with the score difference by the reward model of its fold, and their accuracy over all.

    A fold's model is trained as the run's own is, on the other folds but one, whose held-out loss ends its training.
    No prompt is in two folds.

    Args:
        start: language model under the reward model's head. state: folder of what must survive a kill.
        progress: advances by one per fold.

    Raises:
        FailedPrecondition: fewer prompts than LEAST_FOLDS. What training raises besides.
    """
    prompts = sorted({row.prompt for row in rows})
    if len(prompts) < LEAST_FOLDS:
        raise FailedPrecondition(f"{len(prompts)} prompts were judged; cross-validation needs {LEAST_FOLDS}")
    random.Random(f"{seed}/folds").shuffle(prompts)
    folds = min(folds, len(prompts))
    fold_of = {prompt: place % folds for place, prompt in enumerate(prompts)}
    judged: list[tuple[Comparison, float]] = []
    for fold in range(folds):
        parts: dict[str, list[Feedback]] = {"train": [], "held_out": [], "evaluation": []}
        for row in rows:
            away = (fold_of[row.prompt] - fold) % folds
            parts["evaluation" if away == 0 else "held_out" if away == 1 else "train"].append(row)
        folder = state / f"fold-{fold + 1}"
        for name, some in parts.items():
            write_feedback(folder / "feedback" / f"{name}.jsonl", some)
        RewardTraining(
            training,
            model,
            feedback=[folder / "feedback"],
            demonstrations=None,
            start=start,
            tokenizer=tokenizer,
            state=folder,
            seed=seed,
        ).run(folder / "reward")
        words, trained = load_tokenizer(tokenizer), load_scalar_model(folder / "reward")
        said = judge([trained], words, parts["evaluation"], training, model)
        judged += zip(said.comparisons, said.differences, strict=True)
        (progress or Silent()).advance()
    rate = accuracy(
        [difference for _, difference in judged],
        [row.label for row, _ in judged],
        [row.prompt for row, _ in judged],
    )
    return judged, asdict(rate)
