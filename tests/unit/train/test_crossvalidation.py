"""Cross-validation: every answer is judged once, by a model that saw nothing of its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lodestar.config import ModelConfig, RewardTrainingConfig
from lodestar.data.files import read_feedback
from lodestar.errors import FailedPrecondition
from lodestar.records import Choice, Feedback
from lodestar.train import crossvalidation
from lodestar.train.crossvalidation import cross_validate

ROWS = [
    Feedback(f"q {i // 2}", (f"a {i}", f"b {i}"), (Choice(0, 1, label=float(i % 3 != 0)),), f"{i}") for i in range(14)
]


def test_every_answer_is_judged_once_by_a_model_that_never_saw_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], set[str], set[str]]] = []

    class Training:
        """Notes what it is given."""

        def __init__(self, *_: Any, feedback: list[Path], **__: Any) -> None:
            (folder,) = feedback
            splits = ("train", "held_out", "evaluation")
            train, held_out, unseen = (
                {row.prompt for row in read_feedback(folder / f"{name}.jsonl")} for name in splits
            )
            seen.append((train, held_out, unseen))

        def run(self, output: Path) -> None:
            """Nothing."""

    from lodestar.preference.card import Judged

    def judge(_models: Any, _words: Any, rows: list[Feedback], *_: Any) -> Judged:
        return Judged(rows, [1.0, 0.0] * len(rows), [1] * 2 * len(rows))

    monkeypatch.setattr(crossvalidation, "RewardTraining", Training)
    monkeypatch.setattr(crossvalidation, "load_scalar_model", lambda _: None)
    monkeypatch.setattr(crossvalidation, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(crossvalidation, "judge", judge)
    judged, rate = cross_validate(
        ROWS, RewardTrainingConfig(), ModelConfig(), start=tmp_path, tokenizer=tmp_path, state=tmp_path, folds=3, seed=1
    )
    assert sorted(row.id for row, _ in judged) == sorted(row.id for row in ROWS)
    assert rate["n"] == len(ROWS)
    assert rate["value"] == pytest.approx(sum(i % 3 != 0 for i in range(14)) / 14), "this judge prefers the first"
    for train, held_out, unseen in seen:
        assert not train & unseen
        assert not held_out & unseen
        assert not train & held_out
    assert set().union(*(unseen for *_, unseen in seen)) == {row.prompt for row in ROWS}


def test_too_few_prompts_are_said(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="2 prompts were judged; cross-validation needs 3"):
        cross_validate(
            ROWS[:4],
            RewardTrainingConfig(),
            ModelConfig(),
            start=tmp_path,
            tokenizer=tmp_path,
            state=tmp_path,
            folds=5,
            seed=1,
        )
