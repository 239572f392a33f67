"""Whether a rollout is an answer to the ticket that was issued: what stands in Redis is not believed.

Scores and log-probs that are no numbers pass: they are a model's or a reward's defect, and the trainer undoes the step
and keeps the batch for whoever looks into it.
"""

from __future__ import annotations

import math

from lodestar.queue import wire
from lodestar.records import FinishReason, Rollout, Sample, Ticket

SCORE_LIMIT = 1e9
"""A score beyond this, up or down, is no reward: its square would leave float32's range within a batch."""
LOGPROB_SLACK = 1e-3
"""A log-prob may be this much above 0 by rounding."""


def fault_of(rollout: Rollout, ticket: Ticket, vocabulary: int | None = None, *, trains: bool = True) -> str:
    """Why the rollout does not answer the ticket, for a dead letter; "" when it does.

    Args:
        rollout: as it came from the queue.
        ticket: as it was issued.
        vocabulary: how many token ids the policy's model knows; None leaves ids unchecked.
        trains: PPO will learn from it, so scores and reference log-probs must be there.
    """
    if wire.ticket_bytes(rollout.ticket) != wire.ticket_bytes(ticket):  # as the queue has it: a temperature is float32
        return f"the rollout names ticket {ticket.id} and holds another one than was issued"
    if len(rollout.samples) != ticket.n:
        return f"the rollout has {len(rollout.samples)} samples, and {ticket.n} were asked for"
    for number, sample in enumerate(rollout.samples):
        if fault := _fault_of_sample(sample, ticket, vocabulary, trains=trains):
            return fault.replace("sample", f"sample {number}", 1)
    return ""


def _fault_of_sample(sample: Sample, ticket: Ticket, vocabulary: int | None, *, trains: bool) -> str:
    tokens = len(sample.token_ids)
    if not 1 <= tokens <= ticket.max_tokens:
        return f"sample has {tokens} tokens, and 1 to {ticket.max_tokens} were asked for"
    if vocabulary is not None and (largest := max(sample.token_ids)) >= vocabulary:
        return f"sample has token id {largest}, and the policy's vocabulary ends at {vocabulary - 1}"
    if sample.finish_reason not in (FinishReason.EOS, FinishReason.STOP, FinishReason.LENGTH):
        return f"sample did not come to an end (finish reason {sample.finish_reason.value})"
    if trains and sample.score is None:
        return "sample has no score"
    logprobs = [("behaviour", sample.behaviour_logprobs)]
    if trains or sample.reference_logprobs:
        logprobs.append(("reference", sample.reference_logprobs))
    for name, values in logprobs:
        if len(values) != tokens:
            return f"sample has {tokens} tokens and {len(values)} {name} log-probs"
        if max(values) > LOGPROB_SLACK:
            return f"sample has a {name} log-prob of {max(values):g}, and none is above 0"
    for score in (sample.score or 0.0, sample.score_standard_deviation, *sample.heads.values()):
        if math.isfinite(score) and abs(score) > SCORE_LIMIT:
            return f"sample has a score of {score:g}, and none is beyond ±{SCORE_LIMIT:g}"
    if sample.score_standard_deviation < 0:
        return "sample has a score with a standard deviation below 0"
    return ""
