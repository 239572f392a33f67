"""A worker's calls to the policy, reward and reference services."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from lodestar import metrics
from lodestar.client import AsyncPolicyClient, AsyncReferenceClient, AsyncRewardClient
from lodestar.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LodestarError,
    NonFinite,
    PermissionDenied,
    ResourceExhausted,
    TokenizerMismatch,
    Unauthenticated,
    Unavailable,
)
from lodestar.records import (
    Completion,
    FinishReason,
    Generation,
    ModelDescription,
    Sample,
    SamplingParams,
    Score,
    Scored,
    ScoreItem,
    Ticket,
    TokenLogProbs,
    WeightVersion,
)
from lodestar_services.rollout.sharing import SharedCalls

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENT = (Unavailable, DeadlineExceeded, ResourceExhausted, Unauthenticated, PermissionDenied)
"""Says nothing about the ticket: another replica, or the same one later, may answer. A certificate may be renewed."""
LATE = 4
"""Deadlines missed in a row by one call before its ticket fails: enough of those pause the run."""
UNLIMITED = 2**31
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0


class ModelCalls:
    """The three calls that make a rollout, each patient with servers that are away.

    Channels spread calls round-robin, so a call that is tried again goes to another replica first.
    """

    def __init__(
        self,
        policy: AsyncPolicyClient,
        reward: AsyncRewardClient | None,
        reference: AsyncReferenceClient | None,
        *,
        version_wait_seconds: float,
        call_tokens: int,
        follows: bool = True,
    ) -> None:
        """
        Args:
            policy, reward, reference: clients, whose timeout is the deadline of each call; without one of the latter
                samples carry no scores, or no reference log-probs.
            version_wait_seconds: how long a policy server may wait for the wanted weights.
            follows: whether the policy servers follow the learner that issues tickets; if not, any weights will do.
            call_tokens: how many tokens of several tickets one call to a scorer may hold.
        """
        self._policy = policy
        self._reward = reward
        self._reference = reference
        self._version_wait_seconds = version_wait_seconds
        self._follows = follows
        for service in ("policy", "reward", "reference"):
            metrics.ROLLOUT_RETRIES.labels(service)  # at 0 from the start: an increase from nothing would not be seen
        self._tokenizer = ""
        self._reward_reads_tokens = False
        self._call_tokens = call_tokens
        self._scores = SharedCalls(self._score, tokens_of=_score_tokens, call_tokens=call_tokens)
        self._most_items = UNLIMITED
        """Completions that one call to the reward may hold."""
        self._late_after = 0.0
        """Seconds after which the last call that was late was given up."""
        self._references: dict[float, SharedCalls[Scored, TokenLogProbs]] = {}

    async def meet(self) -> None:
        """Waits until all three services answer, and learns which tokenizers they have.

        Raises:
            TokenizerMismatch: policy and reference disagree.
        """
        policy, reward, reference = await asyncio.gather(
            _patiently("policy", self._policy.describe),
            _described("reward", self._reward),
            _described("reference", self._reference),
        )
        self._tokenizer = policy.model.tokenizer_hash
        if reference is not None and reference.model.tokenizer_hash != self._tokenizer:
            raise TokenizerMismatch(ours=reference.model.tokenizer_hash, theirs=self._tokenizer)
        self._reward_reads_tokens = reward is not None and reward.model.tokenizer_hash == self._tokenizer
        if reward is not None and not self._reward_reads_tokens:
            log.info("the reward model has a tokenizer of its own: completions are sent to it as text")

    async def generate(self, ticket: Ticket) -> Generation:
        """The ticket's n samples, from weights of its incarnation no older than min_step."""
        if not ticket.prompt.token_ids:
            raise InvalidArgument("prompt.token_ids", f"prompt {ticket.prompt.id} has no tokens")
        sampling = SamplingParams(
            n=ticket.n,
            max_tokens=ticket.max_tokens,
            temperature=ticket.temperature,
            seed=ticket.seed,
            logprobs=True,
        )
        generation = await _patiently(
            "policy",
            lambda: self._policy.generate(
                ticket.prompt.token_ids,
                sampling,
                min_version=WeightVersion(ticket.incarnation, ticket.min_step, "") if self._follows else None,
                wait_seconds=self._version_wait_seconds,
                purpose="training",
                tokenizer_hash=self._tokenizer,
            ),
        )
        if len(generation.completions) != ticket.n:
            raise LodestarError(f"the policy gave {len(generation.completions)} samples of {ticket.n}")
        for completion in generation.completions:
            if completion.finish_reason is FinishReason.ERROR:
                raise NonFinite(completion.error)
        return generation

    async def score(self, ticket: Ticket, generation: Generation) -> Sequence[Score | None]:
        """One score per sample; None each where no reward is served."""
        if self._reward is None:
            return [None] * len(generation.completions)
        return await self._scores.submit([self._item(ticket, completion) for completion in generation.completions])

    async def reference(self, ticket: Ticket, generation: Generation) -> Sequence[TokenLogProbs | None]:
        """The reference model's log-probs of every sample's tokens, at the ticket's temperature; None as above."""
        if self._reference is None:
            return [None] * len(generation.completions)
        prompt = ticket.prompt.token_ids
        sequences = [Scored(prompt + completion.token_ids, len(prompt)) for completion in generation.completions]
        shared = self._references.get(ticket.temperature)
        if shared is None:
            shared = self._references[ticket.temperature] = SharedCalls(
                partial(self._reference_logprobs, ticket.temperature),
                tokens_of=lambda scored: len(scored.token_ids),
                call_tokens=self._call_tokens,
            )
        return await shared.submit(sequences)

    async def _score(self, items: Sequence[ScoreItem]) -> Sequence[Score]:
        """Scores, in calls as large as the slowest source can answer before the deadline."""
        scores: list[Score] = []
        while len(scores) < len(items):
            part = items[len(scores) : len(scores) + self._most_items]
            began = time.monotonic()
            try:
                scores += await self._score_part(part)
            except DeadlineExceeded as error:
                if len(part) == 1:
                    raise
                self._late_after = time.monotonic() - began
                self._most_items = max(1, min(self._most_items, len(part)) // 2)
                log.warning("%s; asking for at most %d at once from now on", error, self._most_items)
            else:
                if len(part) == self._most_items and time.monotonic() - began < self._late_after / 4:
                    self._most_items *= 2
        return scores

    async def _score_part(self, items: Sequence[ScoreItem]) -> Sequence[Score]:
        hash_ = self._tokenizer if self._reward_reads_tokens else ""
        client, late = self._reward, LATE if len(items) == 1 else 1
        assert client is not None
        return (await _patiently("reward", lambda: client.score(items, tokenizer_hash=hash_), late=late)).scores

    async def _reference_logprobs(self, temperature: float, sequences: Sequence[Scored]) -> Sequence[TokenLogProbs]:
        client = self._reference
        assert client is not None
        reply = await _patiently(
            "reference",
            lambda: client.logprobs(sequences, temperature=temperature, tokenizer_hash=self._tokenizer),
        )
        return reply.sequences

    def _item(self, ticket: Ticket, completion: Completion) -> ScoreItem:
        prompt = ticket.prompt
        if self._reward_reads_tokens:
            return ScoreItem(prompt.token_ids, completion.token_ids, columns=prompt.columns)
        cut_off = completion.finish_reason is FinishReason.LENGTH
        return ScoreItem(prompt.text, completion.text, cut_off, prompt.columns, prompt.messages)


def samples(
    generation: Generation, scores: Sequence[Score | None], references: Sequence[TokenLogProbs | None]
) -> tuple[Sample, ...]:
    """What the three calls returned, put together sample by sample.

    Raises:
        LodestarError: a reply is too short or too long.
    """
    made = []
    try:
        for completion, score, reference in zip(generation.completions, scores, references, strict=True):
            tokens = len(completion.token_ids)
            logprobs = () if reference is None else reference.logprobs
            if len(completion.logprobs) != tokens or (reference is not None and len(logprobs) != tokens):
                raise LodestarError(
                    f"{tokens} tokens came with {len(completion.logprobs)} log-probs of the policy and "
                    f"{len(logprobs)} of the reference"
                )
            made.append(
                Sample(
                    token_ids=completion.token_ids,
                    behaviour_logprobs=completion.logprobs,
                    reference_logprobs=logprobs,
                    score=None if score is None else score.score,
                    finish_reason=completion.finish_reason,
                    text=completion.text,
                    score_standard_deviation=0.0 if score is None else score.standard_deviation,
                    heads={} if score is None else score.heads,
                )
            )
    except ValueError as error:
        raise LodestarError(
            f"{len(generation.completions)} samples came with {len(scores)} scores and {len(references)} references"
        ) from error
    return tuple(made)


async def _described(service: str, client: AsyncRewardClient | AsyncReferenceClient | None) -> ModelDescription | None:
    """What a service serves; None where there is no such service."""
    return None if client is None else await _patiently(service, client.describe)


def _score_tokens(item: ScoreItem) -> int:
    """Its tokens; of text at most as many as it has characters."""
    return len(item.prompt) + len(item.completion)


async def _patiently(service: str, call: Callable[[], Awaitable[T]], late: int = LATE) -> T:
    """The call's answer, asked again while the service is away; every other error passes.

    Raises:
        DeadlineExceeded: no answer before the deadline, ``late`` times in a row: asking again would only be late again.
    """
    pause, missed = FIRST_PAUSE_SECONDS, 0
    while True:
        try:
            answer = await call()
        except PATIENT as error:
            missed = missed + 1 if isinstance(error, DeadlineExceeded) else 0
            if missed >= late:
                if late == 1:
                    raise
                raise DeadlineExceeded(
                    f"{service}: {error}; {missed} times in a row: raise rollout.deadline_seconds, or make it faster"
                ) from error
            metrics.ROLLOUT_RETRIES.labels(service).inc()
            log.log(
                logging.DEBUG if pause == FIRST_PAUSE_SECONDS else logging.INFO, "%s: %s; trying again", service, error
            )
        else:
            metrics.ROLLOUT_CALLS.labels(service).inc()
            return answer
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
