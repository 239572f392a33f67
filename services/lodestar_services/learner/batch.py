"""What PPO learns from in one iteration: responses from the rollouts, and what the learner adds to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lodestar import strict_json
from lodestar.errors import InvalidArgument, NonFinite
from lodestar.files import write_atomically
from lodestar.model.packed import PackedBatch
from lodestar.packing import batches_of
from lodestar.records import FinishReason, Rollout


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """The rollouts of a batch as tensors; R runs over the response tokens of all B sequences, in order."""

    sequences: tuple[tuple[int, ...], ...]
    """Prompt and response of each sequence."""
    prompt_tokens: tuple[int, ...]
    """Of which the prompt."""
    lengths_B: Tensor
    """int64: response tokens, ≥ 1."""
    scores_B: Tensor
    """The reward model's, as they came."""
    deviations_B: Tensor
    """Standard deviation of the score over the reward ensemble."""
    truncated_B: Tensor
    """bool: no EOS."""
    versions_B: Tensor
    """int64: step of the policy that made the response."""
    behaviour_R: Tensor
    """The sampler's log-probs."""
    reference_R: Tensor
    """The reference model's log-probs."""
    share: bool = True
    """Whether policy and critic may compute equal prompts once."""

    @staticmethod
    def from_rollouts(rollouts: Sequence[Rollout], device: torch.device | str, *, share: bool = True) -> Responses:
        """Order rollouts by their place in the batch and check every number.

        Raises:
            InvalidArgument: no rollouts, an empty prompt or response, or log-probs that do not match its tokens.
            NonFinite: a score or log-prob is NaN or infinite; the message names ticket and sample.
        """
        ordered = sorted(rollouts, key=lambda rollout: rollout.ticket.index)
        pairs = [(rollout, sample) for rollout in ordered for sample in rollout.samples]
        if not pairs:
            raise InvalidArgument("rollouts", "a batch needs at least one sample")
        for rollout in ordered:
            _check(rollout)
        samples = [sample for _, sample in pairs]
        prompts = [rollout.ticket.prompt.token_ids for rollout, _ in pairs]
        complete = (FinishReason.EOS, FinishReason.STOP)

        def floats(values: Iterator[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float32, device=device)

        return Responses(
            sequences=tuple(prompt + sample.token_ids for prompt, sample in zip(prompts, samples, strict=True)),
            prompt_tokens=tuple(len(prompt) for prompt in prompts),
            lengths_B=torch.tensor([len(sample.token_ids) for sample in samples], device=device),
            scores_B=floats(sample.score for sample in samples if sample.score is not None),
            deviations_B=floats(sample.score_standard_deviation for sample in samples),
            truncated_B=torch.tensor([sample.finish_reason not in complete for sample in samples], device=device),
            versions_B=torch.tensor([rollout.version.step for rollout, _ in pairs], device=device),
            behaviour_R=floats(value for sample in samples for value in sample.behaviour_logprobs),
            reference_R=floats(value for sample in samples for value in sample.reference_logprobs),
            share=share,
        )

    def pack(self, indexes: Sequence[int]) -> PackedBatch:
        """The sequences of ``indexes``, packed, equal prompts once."""
        return PackedBatch.pack(
            [self.sequences[i] for i in indexes],
            [self.prompt_tokens[i] for i in indexes],
            device=self.behaviour_R.device,
            share=self.share,
        )

    def rows(self, indexes: Sequence[int]) -> Tensor:
        """Where the response tokens of ``indexes`` lie among all R, in packed order."""
        ends = self.lengths_B.cumsum(0).tolist()
        lengths = self.lengths_B.tolist()
        rows = [torch.arange(ends[i] - lengths[i], ends[i]) for i in indexes]
        return torch.cat(rows).to(self.behaviour_R.device)

    def micro_batches(self, indexes: Sequence[int], tokens: int) -> Iterator[list[int]]:
        """``indexes`` in batches of at most ``tokens`` tokens; a longer sequence stands alone.

        A prompt counts with the first of the sequences behind it that follow each other.
        """
        before: tuple[int, ...] | None = None
        costs: dict[int, int] = {}
        for i in indexes:
            prompt = self.prompt(i)
            costs[i] = len(self.sequences[i]) - len(prompt) * (prompt == before)
            before = prompt
        return batches_of(indexes, tokens, costs.__getitem__)

    def prompt(self, index: int) -> tuple[int, ...]:
        """The prompt of a sequence."""
        return self.sequences[index][: self.prompt_tokens[index]]

    def by_prompt(self, order: Sequence[int]) -> list[int]:
        """``order`` with the sequences that share a prompt moved up to the first of them."""
        found: dict[tuple[int, ...], list[int]] = {}
        for i in order:
            found.setdefault(self.prompt(i), []).append(i)
        return [i for members in found.values() for i in members]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Responses with the proximal policy's and the old critic's view of them, [R] each."""

    responses: Responses
    proximal_R: Tensor
    """Log-probs under the policy before the first epoch: π_old of the ratio."""
    values_R: Tensor
    """The critic's values before the first epoch."""
    advantages_R: Tensor
    """Whitened over the batch, if so configured."""
    returns_R: Tensor
    """What the critic is taught: unwhitened advantages + values."""
    weights_R: Tensor
    """Capped importance weights of proximal against behaviour policy."""
    figures: dict[str, float]
    """Metrics of the batch, known before the first epoch."""


def save_rollouts(rollouts: Sequence[Rollout], path: Path) -> None:
    """Write ``{"rollouts": […]}`` as JSON for a person to look at; numbers that are none are named (strict_json)."""
    write_atomically(path, strict_json.dumps({"rollouts": [asdict(rollout) for rollout in rollouts]}))


def _check(rollout: Rollout) -> None:
    name = f"ticket {rollout.ticket.id}"
    if not rollout.ticket.prompt.token_ids:
        raise InvalidArgument(name, "its prompt has no tokens")
    for number, sample in enumerate(rollout.samples):
        tokens = len(sample.token_ids)
        if tokens == 0:
            raise InvalidArgument(f"{name}, sample {number}", "the response has no tokens")
        for field in ("behaviour_logprobs", "reference_logprobs"):
            values = getattr(sample, field)
            if len(values) != tokens:
                raise InvalidArgument(f"{name}, sample {number}, {field}", f"{len(values)} for {tokens} tokens")
            if not all(map(math.isfinite, values)):
                raise NonFinite(f"{name}, sample {number}: {field} has NaN or infinity")
        if sample.score is None:
            raise InvalidArgument(f"{name}, sample {number}", "it has no score")
        if not math.isfinite(sample.score):
            raise NonFinite(f"{name}, sample {number}: the reward is {sample.score}")
