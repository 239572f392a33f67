"""How likely a language model finds completions, and comparisons labelled by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, combinations, pairwise
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lodestar.errors import InvalidArgument
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.packing import batches_of
from lodestar.preference.calibration import win_probability
from lodestar.records import Choice, Feedback
from lodestar.train.preference import encode_groups

BATCH_TOKENS = 8192


@torch.inference_mode()
def log_likelihoods(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Feedback], *, batch_tokens: int = BATCH_TOKENS
) -> list[list[float]]:
    """log π(completion | prompt) in nats, EOS included, of every row's completions."""
    groups = encode_groups(tokenizer, rows)
    encoded = [scored for group in groups for scored in group]
    lengths = [len(scored.token_ids) for scored in encoded]
    found = [0.0] * len(encoded)
    order = sorted(range(len(encoded)), key=lengths.__getitem__)
    for numbers in batches_of(order, batch_tokens, lengths.__getitem__):
        sequences = [encoded[i] for i in numbers]
        batch = PackedBatch.of(sequences, device=model.device)
        logprobs_R, _ = response_logprobs(model, batch, temperature=1.0)
        for i, logprobs in zip(numbers, torch.split(logprobs_R, list(batch.response_lengths)), strict=True):
            found[i] = float(logprobs.sum())
    ends = accumulate(map(len, groups), initial=0)
    return [found[start:end] for start, end in pairwise(ends)]


def judged_by_likelihood(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Feedback],
    *,
    temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Feedback]:
    """The rows with every pair of their completions labelled σ((log π(first) − log π(second)) / temperature).

    A reward model trained on them learns r = log π / temperature up to a constant of the prompt: what DPO (Rafailov et
    al. 2023, eq. 5) takes for the reward, without a reference. Where demonstrations err by chance, the model has
    averaged over their errors, which one demonstration against its rival has not. Labels near 0 and 1 say only who
    wins: a temperature of about a third of the usual difference keeps them where they also say by how much.

    Raises:
        InvalidArgument: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise InvalidArgument("temperature", f"must be above 0, not {temperature}")
    likelihoods = log_likelihoods(model, tokenizer, rows, batch_tokens=batch_tokens)
    return [
        replace(
            row,
            verdict=tuple(
                Choice(i, j, win_probability((found[i] - found[j]) / temperature))
                for i, j in combinations(range(len(found)), 2)
            ),
        )
        for row, found in zip(rows, likelihoods, strict=True)
    ]
