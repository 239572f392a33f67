"""The generation engine, synchronous: ``add`` requests, ``step`` until there is nothing left.

One step = plan (scheduler), forward and sample (runner), take the tokens in. Whoever calls owns the model:
lodestar.engine.front does so from one thread and serves any number of asyncio callers.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from lodestar import metrics
from lodestar.config import PolicyConfig
from lodestar.data.control import Control
from lodestar.engine.blocks import block_hashes
from lodestar.engine.caches import make_cache
from lodestar.engine.figures import Figures
from lodestar.engine.limits import Limits, check_room
from lodestar.engine.replay import Standby, replay
from lodestar.engine.runner import ModelRunner
from lodestar.engine.sampler import Sampler
from lodestar.engine.scheduler import Scheduler
from lodestar.engine.sequence import Plan, Request, Sequence
from lodestar.engine.text import StopChecker
from lodestar.engine.weights import LiveWeights
from lodestar.errors import ModelError, ResourceExhausted
from lodestar.fair import Flow
from lodestar.model.attention import NAME as ATTENTION
from lodestar.model.candidates import response_candidates
from lodestar.model.context import context_tokens
from lodestar.model.loading import named_tensors, tokenizer_hash
from lodestar.model.logits import sampled_ids
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.model.tokenizers import check_special_ids, end_ids
from lodestar.records import MAX_PROBES, FinishReason, Purpose, SamplingParams, Scored, TokenLogProbs, WeightVersion

START = WeightVersion("", 0, "")


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How full the engine is."""

    version: WeightVersion
    paused: bool
    running: int
    waiting: int
    blocks_used: int
    """Held by sequences; blocks kept for a prefix alone are free to take."""
    blocks_total: int
    swap_seconds: float
    """How long the last swap of weights stopped decoding."""


class Engine:
    """Generates with one model. Not thread-safe: one thread calls everything but :meth:`request`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: PolicyConfig,
        *,
        deterministic: bool = False,
        version: WeightVersion = START,
        device: torch.device | str = "cpu",
        paged: bool | None = None,
    ) -> None:
        """``model`` runs on our attention (lodestar.model.loading); adapters are merged already.

        ``paged`` chooses the KV cache: pages or slabs; pages on a GPU and slabs on a CPU unless told otherwise.

        Raises:
            ModelError: the model runs on other attention, the KV cache cannot hold what its layers keep, an EOS id is
                no token of the model, or deterministic is asked for without float32 or with pages.
        """
        device = torch.device(device)
        if model.config._attn_implementation != ATTENTION:
            raise ModelError(
                f"{type(model).__name__} runs on {model.config._attn_implementation} attention, not on Lodestar's; "
                "load it with lodestar.model.loading.load_causal_lm"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.deterministic = deterministic
        self.version = version
        self.tokenizer_hash = tokenizer_hash(tokenizer)
        check_special_ids(model, type(model).__name__)
        self.eos_ids = end_ids(model, tokenizer)
        self.control = Control.of(tokenizer)
        self._device = device
        self._paged = device.type != "cpu" if paged is None else paged
        self._cache = make_cache(model, config, deterministic=deterministic, paged=self._paged, device=device)
        self.scheduler = Scheduler(
            self._cache,
            max_sequences=config.max_sequences,
            prefill_tokens=config.prefill_tokens,
            deterministic=deterministic,
            training_share=config.training_share,
        )
        context = context_tokens(model.config) or self._cache.capacity
        context = min(context, self._cache.capacity, self._cache.blocks.total * config.block_tokens)
        self._context_tokens = context
        self.limits = Limits(
            vocab_size=sampled_ids(model),
            context_tokens=context - self.control.tokens,
            request_tokens=config.kv_cache_tokens * 4,
            samples=config.max_waiting,
        )
        self._runner = ModelRunner(
            model,
            self._cache,
            Sampler(self.eos_ids, device),
            context_tokens=context,
            deterministic=deterministic,
            device=device,
        )
        self._weights = LiveWeights(model, apart=self.can_stand_by)
        self._figures = Figures(self.scheduler, self._cache.blocks, config.block_tokens)
        self._requests: dict[int, Request] = {}
        self._stops: dict[int, StopChecker] = {}
        self._ids = count()
        self.swap_seconds = 0.0

    # --- requests ----------------------------------------------------------------------------------------------
    def check(self, prompt_ids: Tokens[int], sampling: SamplingParams, purpose: Purpose) -> None:
        """Raises InvalidArgument for what :meth:`request` would refuse; a control token before the prompt is let be."""
        self.limits.check(self.control.without(prompt_ids), sampling, purpose)

    def request(
        self,
        prompt_ids: Tokens[int],
        sampling: SamplingParams,
        *,
        priority: float = 0.0,
        purpose: Purpose = Purpose.SERVING,
        flow: Flow | None = None,
    ) -> Request:
        """A checked request for :meth:`add`; safe to call from any thread.

        ``flow`` says whose it is; unset, training's by its purpose.

        A conditioned model's prompt gets the best control token where it has none (lodestar.data.control).

        Raises:
            InvalidArgument: see Limits.check.
        """
        self.check(prompt_ids, sampling, purpose)
        prompt = self.control.before(prompt_ids)
        request = Request(
            id=next(self._ids),
            prompt_ids=prompt,
            sampling=sampling,
            seed=sampling.seed if sampling.seed is not None else random.getrandbits(63),
            priority=priority,
            flow=flow or Flow(training=purpose is Purpose.TRAINING),
            hashes=block_hashes(prompt, self.config.block_tokens) if self.config.prefix_cache else (),
            hidden=len(prompt) - len(prompt_ids),
        )
        request.sequences = [Sequence(next(self._ids), request, i, list(prompt)) for i in range(sampling.n)]
        request.unfinished = sampling.n
        return request

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ResourceExhausted: its samples do not fit among the waiting ones.
        """
        check_room(self.scheduler.waiting_of(request.flow.training), request.sampling.n, self.config.max_waiting)
        self._requests[request.id] = request
        if request.sampling.stop:
            self._stops[request.id] = StopChecker(self.tokenizer, request.sampling.stop)
        self.scheduler.add(request)
        metrics.TOKENS_IN.inc(len(request.prompt_ids))
        self._figures.show_load()

    def abort(self, request_id: int) -> None:
        """Drop what is unfinished of a request, and free its memory; unknown ids are ignored."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self.scheduler.cancel(request)
        self._stops.pop(request_id, None)
        self._figures.show_load()

    def reset(self) -> list[int]:
        """Drop every request, and return their ids: after a failed step nobody knows what the cache holds."""
        dropped = list(self._requests)
        for request_id in dropped:
            self.abort(request_id)
        self._cache.forget_prefixes()
        return dropped

    # --- steps -------------------------------------------------------------------------------------------------
    def step(self) -> list[Sequence]:
        """Compute one step; returns the sequences that got a token or ended. Empty when nothing can run."""
        plan = self.scheduler.plan()
        if not plan:
            return []
        began = time.monotonic()
        sampled = self._runner.run(plan)
        self._note_computed(plan)
        now = time.monotonic()
        rows = len(plan.decode) + sum(chunk.end - chunk.start for chunk in plan.chunks)
        self.scheduler.shares.costs.observe(rows, now - began)
        self._figures.count_step(plan.decode, now)
        for row, sequence in enumerate(plan.decode):
            if not math.isfinite(sampled.logprobs[row]):
                self._fail(sequence)
                continue
            sequence.computed = len(sequence.tokens)
            sequence.tokens.append(sampled.tokens[row])
            sequence.logprobs.append(sampled.logprobs[row])
            sequence.processed_logprobs.append(sampled.processed_logprobs[row])
            if row in sampled.top:
                sequence.top_logprobs.append(sampled.top[row])
            sequence.versions.append(self.version)
            sequence.request.started = True
            sequence.last_token_at = now
            reason = self._finish_reason(sequence, sampled.tokens[row])
            if reason is not None:
                self._finish(sequence, reason)
        self._figures.show_load()
        return plan.decode

    def generate(self, prompt_ids: Tokens[int], sampling: SamplingParams) -> list[Sequence]:
        """All samples of one prompt, finished; others' requests go on meanwhile."""
        request = self.request(prompt_ids, sampling)
        self.add(request)
        while any(sequence.finish_reason is None for sequence in request.sequences):
            self.step()
        return request.sequences

    def _note_computed(self, plan: Plan) -> None:
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.end
            if sequence.cached_version is None:
                sequence.cached_version = self.version
            if chunk.start < sequence.prompt_tokens - 1 <= chunk.end:
                self.scheduler.share_prompt(sequence)
            prefixes = sequence.request.hashes[: (sequence.prompt_tokens - 1) // self.config.block_tokens]
            if prefixes and chunk.end == sequence.prefill_target and sequence.cached_version == self.version:
                self._cache.remember(sequence, prefixes)

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        if token in self.eos_ids and not sampling.ignore_eos:
            return FinishReason.EOS
        if token in sampling.stop_token_ids:
            return FinishReason.STOP
        generated = len(sequence.logprobs)
        checker = self._stops.get(sequence.request.id)
        if checker is not None and generated >= sampling.min_tokens and checker.found(sequence.response):
            return FinishReason.STOP
        return FinishReason.LENGTH if generated >= sampling.max_tokens else None

    def _fail(self, sequence: Sequence) -> None:
        sequence.error = (
            f"the model's logits are not finite at response token {len(sequence.logprobs)}; its weights are broken"
        )
        self._finish(sequence, FinishReason.ERROR)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        self.scheduler.release(sequence)
        request = sequence.request
        request.unfinished -= 1
        if not request.unfinished:
            self._requests.pop(request.id, None)
            self._stops.pop(request.id, None)

    # --- weights -----------------------------------------------------------------------------------------------
    @property
    def drained(self) -> bool:
        """Whether no sequence is between its first and last token."""
        return not self.scheduler.running and not any(request.started for request in self._requests.values())

    def swap(
        self, tensors: Mapping[str, Tensor], version: WeightVersion, verify: Callable[[Engine], None] | None = None
    ) -> None:
        """Copy new weights in place and forget cached prefixes. No tensors: the same weights under another name.

        ``verify`` looks at the engine with its new weights; when it raises, the old ones come back.

        Raises:
            ModelError: names, shapes or dtypes are not the model's; nothing was changed. Also what ``verify`` raises.
        """
        started = time.monotonic()
        previous: Mapping[str, Tensor] = {}
        if tensors:
            self._weights.check(tensors)
            previous = self._weights.copies() if verify else {}
            self._copy_in(tensors)
        if verify is not None:
            try:
                verify(self)
            except BaseException:
                if tensors:
                    self._copy_in(previous)
                raise
        self._serves(version, started, swapped=bool(tensors))

    @property
    def can_stand_by(self) -> bool:
        """Whether new weights can be laid out beside those that serve: on a CPU, where no graph knows addresses."""
        return self._device.type == "cpu"

    def stand_by(self, tensors: Mapping[str, Tensor]) -> Standby:
        """A model with new weights, which are not copied, beside the one that serves; callable from any thread.

        Raises:
            ModelError: names, shapes or dtypes are not the model's.
        """
        self._weights.check(tensors)
        model = self._weights.model_of(tensors)
        config = self.config.model_copy(update={"max_sequences": MAX_PROBES})
        cache = make_cache(model, config, deterministic=self.deterministic, paged=self._paged, device=self._device)
        return Standby(model, self._runner.of(model), cache, self._device)

    def adopt(self, standby: Standby, version: WeightVersion) -> None:
        """Serve what stood by, from the next step on, and forget cached prefixes."""
        started = time.monotonic()
        self.model, self._runner = standby.model, standby.runner
        self._weights.model = standby.model
        self._cache.forget_prefixes()
        self._serves(version, started, swapped=True)

    def held_weights(self) -> Mapping[str, Tensor]:
        """The weights that serve, on the CPU; nobody writes them before the next swap."""
        return {name: tensor.cpu() for name, tensor in named_tensors(self.model).items()}

    def _serves(self, version: WeightVersion, started: float, *, swapped: bool) -> None:
        if swapped:
            self.swap_seconds = time.monotonic() - started
            metrics.WEIGHT_SWAP_SECONDS.observe(self.swap_seconds)
        self.version = version
        metrics.WEIGHT_STEP.set(version.step)

    def _copy_in(self, tensors: Mapping[str, Tensor]) -> None:
        self._weights.replace(tensors)
        self._runner.refresh()
        self._cache.forget_prefixes()

    def replay(self, scored: Scored) -> list[float]:
        """Log-probs of a completion through the serving path itself (lodestar.engine.replay).

        Running sequences yield their blocks to it where they must, and are recomputed later.

        Raises:
            ResourceExhausted: the cache is smaller than the completion.
        """
        self._check_replayed(scored)
        self.scheduler.make_way(len(scored.token_ids))
        (logprobs,) = replay(self._runner, self._cache, [scored], self._ids, self._device)
        return logprobs

    def _check_replayed(self, scored: Scored) -> None:
        tokens = len(scored.token_ids)
        if tokens > self._context_tokens:
            raise ResourceExhausted(f"a completion of {tokens} tokens cannot be replayed in this KV cache")

    @torch.inference_mode()
    def logprobs(
        self, sequences: Tokens[Scored], *, temperature: float = 1.0, entropy: bool = False, top: int = 0
    ) -> list[TokenLogProbs]:
        """Log-probs of given completions under the present weights, in one packed pass; prompts as request's.

        With ``top`` also the most likely tokens at each position; that takes a second pass.
        """
        sequences = [*map(self.control.before_scored, sequences)]
        batch = PackedBatch.pack(
            [scored.token_ids for scored in sequences],
            [scored.prompt_tokens for scored in sequences],
            device=self._device,
            per_sequence=self.deterministic,
        )
        logprobs_R, entropy_R = response_logprobs(self.model, batch, temperature=temperature, entropy=entropy)
        logprobs = iter(logprobs_R.tolist())
        entropies = iter(entropy_R.tolist() if entropy_R is not None else ())
        best = iter(response_candidates(self.model, batch, top, temperature=temperature) if top else ())
        return [
            TokenLogProbs(
                tuple(islice(logprobs, length)), tuple(islice(entropies, length)), tuple(islice(best, length))
            )
            for length in batch.response_lengths
        ]

    # --- figures -----------------------------------------------------------------------------------------------
    def status(self, *, paused: bool = False) -> EngineStatus:
        """Counts of this moment."""
        return EngineStatus(
            version=self.version,
            paused=paused,
            running=len(self.scheduler.running),
            waiting=self.scheduler.waiting,
            blocks_used=self._cache.blocks.held,
            blocks_total=self._cache.blocks.total,
            swap_seconds=self.swap_seconds,
        )
