"""The reference model's log-probs, batched over the calls that are waiting."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from lodestar import metrics
from lodestar.config import ReferenceTask
from lodestar.errors import LodestarError, NonFinite
from lodestar.model.loading import load_causal_lm
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.model.prompt_once import shares_prompts
from lodestar.model.warm_up import warm_up_kernels
from lodestar.records import Scored, TokenLogProbs
from lodestar.rpc.batching import ComputeThread, TokenBatcher
from lodestar.rpc.checks import check_scored, check_temperature
from lodestar_services.reference.frozen import FrozenModel


@dataclass(frozen=True, slots=True)
class Question:
    """One sequence of a call, with what the call asked for."""

    scored: Scored
    temperature: float
    entropy: bool


class Reference:
    """``await load()``, then ``await logprobs(…)``."""

    def __init__(self, task: ReferenceTask) -> None:
        self._task = task
        self._deterministic = task.deterministic
        section = task.section
        self._compute = ComputeThread("reference", threads=1 if task.deterministic else section.threads)
        self._batcher = TokenBatcher[Question, TokenLogProbs](
            self._compute,
            self._answer,
            tokens_of=lambda question: len(question.scored.token_ids),
            batch_tokens=section.batch_tokens,
            wait_seconds=section.batch_wait_ms / 1000,
            max_queued_tokens=section.max_queued_tokens,
            training_share=section.training_share,
        )
        self.frozen: FrozenModel

    async def load(self) -> None:
        """Loads the model on its thread and runs it once."""
        self.frozen = await self._compute.run(FrozenModel.load, load_causal_lm, self._task)
        await self._compute.run(partial(warm_up_kernels, self.frozen.model, train=False))
        self._share = await self._compute.run(shares_prompts, self.frozen.model)
        eos = self.frozen.tokenizer.eos_token_id
        await self._compute.run(self._answer, [Question(Scored((eos, eos), 1), 1.0, entropy=True)])

    async def logprobs(self, sequences: Sequence[Scored], *, temperature: float, entropy: bool) -> list[TokenLogProbs]:
        """One answer per sequence: log softmax(logits / temperature) of every token after the prompt.

        Raises:
            InvalidArgument: an empty call or sequence, one beyond the context, an id that is no token, a prompt length
                outside the sequence, a temperature out of range.
            ResourceExhausted: too much is queued.
            NonFinite: the model's logits are broken.
        """
        check_temperature(temperature)
        control, limits = self.frozen.control, (self.frozen.vocab_size, self.frozen.context_tokens)
        visible = [*map(control.without_scored, sequences)]
        check_scored(visible, "sequences", vocab_size=limits[0], context_tokens=limits[1])
        sequences = [*map(control.before_scored, sequences)]
        metrics.TOKENS_IN.inc(sum(len(scored.token_ids) for scored in sequences))
        return await self._batcher.submit([Question(scored, temperature, entropy) for scored in sequences])

    @torch.inference_mode()
    def _answer(self, questions: Sequence[Question]) -> list[TokenLogProbs | LodestarError]:
        """One forward pass per temperature; calls of one run share theirs."""
        places: defaultdict[tuple[float, bool], list[int]] = defaultdict(list)
        for place, question in enumerate(questions):
            places[question.temperature, question.entropy].append(place)
        answers: dict[int, TokenLogProbs | LodestarError] = {}
        for (temperature, entropy), group in places.items():
            batch = PackedBatch.pack(
                [questions[place].scored.token_ids for place in group],
                [questions[place].scored.prompt_tokens for place in group],
                device=self.frozen.device,
                per_sequence=self._deterministic,
                share=self._share,
            )
            logprobs_R, entropy_R = response_logprobs(
                self.frozen.model, batch, temperature=temperature, entropy=entropy
            )
            logprobs = _split(logprobs_R, batch.response_lengths)
            entropies = _split(entropy_R, batch.response_lengths)
            answers.update((place, _checked(*both)) for place, *both in zip(group, logprobs, entropies, strict=True))
        return [answers[place] for place in range(len(questions))]


def _split(values_R: Tensor | None, lengths: Sequence[int]) -> list[tuple[float, ...]]:
    """Each sequence's own values; empty ones where there are none at all."""
    if values_R is None:
        return [()] * len(lengths)
    values = iter(values_R.tolist())
    return [tuple(islice(values, length)) for length in lengths]


def _checked(logprobs: tuple[float, ...], entropy: tuple[float, ...]) -> TokenLogProbs | NonFinite:
    if not all(map(math.isfinite, [*logprobs, *entropy])):
        return NonFinite("the reference model gave log-probs that are not finite: its weights are broken")
    return TokenLogProbs(logprobs, entropy)
