"""The most likely tokens of given responses, against the model's own logits."""

from __future__ import annotations

import pytest
import torch

from lodestar.local.tiny import llama
from lodestar.model.candidates import response_candidates
from lodestar.model.packed import PackedBatch, response_logprobs


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_candidates_are_the_top_of_the_softmax(alone: bool, temperature: float) -> None:
    model = llama(hidden=16, layers=1, vocab=40, eos_bias=0.5).eval()
    rows, prompts = [(3, 4, 5, 6, 7), (8, 9, 10)], [2, 1]
    batch = PackedBatch.pack(rows, prompts, device="cpu", per_sequence=alone)
    with torch.inference_mode():
        found = response_candidates(model, batch, 4, temperature=temperature)
        logprobs_R, _ = response_logprobs(model, batch, temperature=temperature)
        every = response_candidates(model, batch, 100, temperature=temperature)
        expected = []
        for row, prompt in zip(rows, prompts, strict=True):
            logits_SV = model(torch.tensor([row])).logits[0, prompt - 1 : -1] / temperature
            expected += logits_SV.log_softmax(-1).topk(4).values.tolist()
    assert [[one.logprob for one in position] for position in found] == [pytest.approx(e, abs=1e-4) for e in expected]
    targets = [token for row, prompt in zip(rows, prompts, strict=True) for token in row[prompt:]]
    for target, logprob, position in zip(targets, logprobs_R.tolist(), every, strict=True):
        assert len(position) == 40
        assert {one.token_id: one.logprob for one in position}[target] == pytest.approx(logprob, abs=1e-4)
