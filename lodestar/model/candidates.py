"""The most likely tokens at every position of given responses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lodestar.model.logits import head_parameters, logit_rule
from lodestar.model.lora import plain
from lodestar.model.packed import PackedBatch, response_states
from lodestar.records import TokenCandidate

ROWS = 256
"""Positions whose logits are held at once."""


def response_candidates(
    model: Any, batch: PackedBatch, top: int, *, temperature: float
) -> list[tuple[TokenCandidate, ...]]:
    """Per response token the ``top`` most likely tokens under softmax(logits / temperature), the likeliest first."""
    if batch.per_sequence:
        return [row for one in batch.alone() for row in response_candidates(model, one, top, temperature=temperature)]
    rule = logit_rule(plain(model).config)
    weight_VH, bias_V = head_parameters(model)
    weight_VH, bias_V = weight_VH.float(), None if bias_V is None else bias_V.float()
    found: list[tuple[TokenCandidate, ...]] = []
    for hidden_RH in torch.split(response_states(model, batch), ROWS):
        product_RV = torch.nn.functional.linear(hidden_RH.float(), weight_VH, bias_V)
        found += _best(rule(product_RV) / temperature, top)
    return found


def _best(logits_RV: Tensor, top: int) -> list[tuple[TokenCandidate, ...]]:
    best = logits_RV.log_softmax(-1).topk(min(top, logits_RV.shape[-1]))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [tuple(map(TokenCandidate, ids, values)) for ids, values in rows]
