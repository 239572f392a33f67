"""Scoring models read a score where it was trained to be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lodestar.local.tiny import llama, tokenizer
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.model.loading import save_model
from lodestar.model.packed import PackedBatch, label_scores
from lodestar.records import Scored
from lodestar.rewards.models import Encoded, ScoringModel

ROWS = [Scored((5, 9, 7, 3, 1), 3), Scored((6, 2, 8, 8, 4, 1), 1)]


@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_served_model_scores_as_it_was_trained_to(tmp_path: Path, tokens: str, alone: bool) -> None:
    words = tokenizer(16)
    causal = llama(hidden=32, layers=2, vocab=16, eos_bias=1.0)
    trained = scalar_from_causal_lm(causal, words, 1, ("reward", "harmless"))
    trained.config.score_tokens = tokens
    save_model(trained, words, tmp_path / "reward")
    with torch.no_grad():
        expected_BA = label_scores(trained, PackedBatch.of(ROWS, device="cpu"))
    served = ScoringModel.load(str(tmp_path / "reward"), device="cpu")
    assert served.labels == ("reward", "harmless")
    scores_BA = served.scores([Encoded(row.token_ids, row.prompt_tokens) for row in ROWS], alone=alone)
    assert torch.allclose(scores_BA, expected_BA, atol=1e-5)
    other_BA = served.scores([Encoded(row.token_ids[:-1], row.prompt_tokens) for row in ROWS], alone=alone)
    assert not torch.allclose(other_BA, expected_BA, atol=1e-3)
