"""The parity probe: the learner's log-probs of a few tokens, which a policy server compares with its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from lodestar.errors import NonFinite
from lodestar.model.context import context_tokens
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.records import Probe, Prompt, Scored

PROBES = 2
TOKENS, BEHIND = 24, 3
"""Of a probe at most, and of these behind its prompt: decode steps of the server, one for each."""
SMALLEST_TOLERANCE = 1e-3
"""Nats. Two ways through a float32 model differ by some 1e-5."""
ROUNDINGS = 32
"""Roundings of the weights' dtype by which log-probs may differ: 0.25 nats in bfloat16, where two ways through a model
of 126M parameters differ by 0.01."""


def probed_tokens(prompts: Sequence[Prompt], model_config: Any) -> tuple[Scored, ...]:
    """The last tokens of the first prompts that have two, as completions of what stands before them."""
    context = context_tokens(model_config) or TOKENS
    texts = [prompt.token_ids[: min(TOKENS, context)] for prompt in prompts if len(prompt.token_ids) > 1][:PROBES]
    return tuple(Scored(ids, max(1, len(ids) - BEHIND)) for ids in texts)


@torch.no_grad()
def probes_of(model: Any, probed: Sequence[Scored]) -> tuple[Probe, ...]:
    """The model's log-probs of ``probed``, in its own dtype.

    Raises:
        NonFinite: they are no numbers.
    """
    if not probed:
        return ()
    parameter = next(model.parameters())
    batch = PackedBatch.pack(
        [scored.token_ids for scored in probed], [scored.prompt_tokens for scored in probed], device=parameter.device
    )
    logprobs_R, _ = response_logprobs(model, batch, temperature=1.0)
    if not bool(torch.isfinite(logprobs_R).all()):
        raise NonFinite("the policy's log-probs of the parity probe are not finite; these weights are not published")
    tolerance = max(SMALLEST_TOLERANCE, ROUNDINGS * torch.finfo(parameter.dtype).eps)
    values = iter(logprobs_R.tolist())
    return tuple(
        Probe(scored, tuple(islice(values, len(scored.token_ids) - scored.prompt_tokens)), tolerance)
        for scored in probed
    )
