"""What the policy server does: generates with the run's newest weights, and takes new ones in when they come."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from lodestar import metrics
from lodestar.config import PolicyTask
from lodestar.data.control import Control
from lodestar.data.rows import encode_beginnings, encode_prompts
from lodestar.engine.chat import chat_text
from lodestar.engine.engine import Engine, EngineStatus
from lodestar.engine.front import AsyncEngine
from lodestar.engine.limits import MAX_TOP_LOGPROBS
from lodestar.engine.pieces import Pieces
from lodestar.errors import InvalidArgument, ModelError, ProbeFailed, Unavailable, VersionUnavailable
from lodestar.model.loading import (
    load_causal_lm,
    load_tokenizer,
    resolve_device,
    tensor_digests,
    tokenizer_hash,
    weights_digest,
)
from lodestar.records import (
    ChatMessage,
    Detokenized,
    GenerationChunk,
    ModelDescription,
    ModelInfo,
    Purpose,
    SamplingParams,
    Scored,
    TokenLogProbs,
    WeightManifest,
    WeightVersion,
)
from lodestar.rpc import flows
from lodestar.rpc.batching import ComputeThread
from lodestar.rpc.checks import check_scored, check_tokenizer_hash
from lodestar.rpc.spec import Condition
from lodestar.weights.follower import WeightFollower
from lodestar.weights.port import WeightSource
from lodestar_services.policy.best_of import Asked, BestOf

log = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 600.0
WARM_TOKENS = 4
TRAINING = "lodestar.v1.PolicyService.Training"
"""The health name that says whether rollouts are taken here."""
WARM_PROMPT = 64
"""Tokens on a GPU: more than a decode step's kernel takes, so that the one for prompts is compiled, too."""


class Policy:
    """``await load()``, then serve; where there is a learner, ``attach(…)`` before that and ``follow(…)`` beside it."""

    def __init__(self, task: PolicyTask) -> None:
        self._path = task.model
        self._task = task
        self._follower: WeightFollower | None = None
        self._best_of: BestOf | None = None
        self._description: ModelDescription
        threads = 1 if task.deterministic else task.section.threads
        self._tokenizing = ComputeThread("tokenizer")
        """The event loop answers health, too: no text is read on it."""
        self._standing_by = ComputeThread("weights", 1)
        """Lays new weights out and probes them, while the engine's thread goes on with the old ones."""
        self.training = Condition(TRAINING)
        """Whether rollouts are taken: not while the learner's weights are refused. Others are served on."""
        self.engine = AsyncEngine(self._make_engine, name=task.model, threads=threads)

    async def load(self) -> None:
        """Load the model on the engine's thread as step 0, and generate once.

        Raises:
            ModelError: the folder holds no model or tokenizer that can be used.
        """
        self._tokenizer = load_tokenizer(self._task.tokenizer or self._path)
        self._control = Control.of(self._tokenizer)
        self.tokenizer_hash = tokenizer_hash(self._tokenizer)
        self._pieces = Pieces(self._tokenizer)
        for outcome in ("chosen", "passed"):  # at 0 from the start: an increase from nothing would not be seen
            metrics.BEST_OF_SAMPLES.labels(outcome)
            metrics.BEST_OF_TOKENS.labels(outcome)
        if (n := self._task.section.best_of) > 1:
            rewards, tls = self._task.endpoints.reward, self._task.listening.tls
            self._best_of = BestOf(n, rewards, self._tokenizer, self.tokenizer_hash, tls=tls)
        await self.engine.start()
        info = self.engine.model_info
        metrics.MODEL_INFO.labels(info.name, info.tokenizer_hash, info.version.incarnation).set(1)
        context = self.engine.engine.limits.context_tokens
        compiles = resolve_device(self._task.device).type == "cuda"
        prompt = [self._tokenizer.eos_token_id] * (min(WARM_PROMPT, context - 1) if compiles else 1)
        warm = SamplingParams(max_tokens=min(WARM_TOKENS, context - len(prompt)), seed=0)
        async for _ in self.engine.generate(prompt, warm):
            pass

    def _make_engine(self) -> Engine:
        device = resolve_device(self._task.device)
        model = load_causal_lm(self._path, dtype=self._task.dtype, device=str(device))
        engine = Engine(
            model,
            self._tokenizer,
            self._task.section,
            deterministic=self._task.deterministic,
            version=WeightVersion("", 0, weights_digest(tensor_digests(model))),
            device=device,
        )
        self._description = ModelDescription(
            ModelInfo(self._path, engine.version, self.tokenizer_hash),
            context_tokens=engine.limits.context_tokens,
            vocab_size=engine.limits.vocab_size,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            dtype=self._task.dtype,
        )
        return engine

    def stop(self) -> None:
        """End the engine's thread; nothing is answered afterwards."""
        self.engine.stop()
        self._tokenizing.close()
        self._standing_by.close()

    # --- what callers ask --------------------------------------------------------------------------------------
    @property
    def info(self) -> ModelInfo:
        """What answers now."""
        return self.engine.model_info

    @property
    def description(self) -> ModelDescription:
        """What is served; its version is that of the start model, :attr:`info` has today's."""
        return self._description

    def check_tokenizer(self, theirs: str) -> None:
        """Raises TokenizerMismatch when the caller names another tokenizer than this model's."""
        check_tokenizer_hash(self.tokenizer_hash, theirs)

    @property
    def context_tokens(self) -> int:
        """Prompt and completion at most, as callers know them."""
        return self.engine.engine.limits.context_tokens

    @property
    def sequence_tokens(self) -> int:
        """The same with the control token that a prompt of token ids may have."""
        return self.context_tokens + self._control.tokens

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of plain text, in which a control token is text."""
        if self._control.as_text(text) != text:
            (ids,) = await self._tokenizing.run(encode_beginnings, self._tokenizer, [text])
            return ids if add_special_tokens or ids[:1] != (self._tokenizer.bos_token_id,) else ids[1:]
        encoded = await self._tokenizing.run(self._tokenizer, text, add_special_tokens=add_special_tokens)
        return tuple(encoded["input_ids"])

    async def text_prompt(self, text: str) -> Asked:
        """A prompt as training encodes it: a BOS that a chat template wrote is not doubled.

        Without the control token of a conditioned model, here and below: the engine puts it there.
        """
        (ids,) = await self._tokenizing.run(encode_prompts, self._tokenizer, [text])
        return Asked(self._control.without(ids), text)

    async def chat_prompt(self, messages: Sequence[ChatMessage], field: str) -> Asked:
        """A chat in the model's template, up to where the assistant's answer begins.

        Raises:
            InvalidArgument: no messages, or roles that the template does not take.
            ModelError: the tokenizer has no chat template.
        """
        text = await self._tokenizing.run(chat_text, self._tokenizer, messages, field)
        return replace(await self.text_prompt(text), messages=tuple(messages))

    async def detokenize(self, token_ids: Sequence[int]) -> Detokenized:
        """Text of token ids, and the ids one by one.

        Raises:
            InvalidArgument: an id is no token of the model.
        """
        self.engine.engine.limits.check_ids("token_ids", token_ids)
        return await self._tokenizing.run(self._pieces.detokenized, token_ids)

    async def generate(
        self,
        asked: Asked,
        sampling: SamplingParams,
        *,
        min_version: WeightVersion | None,
        wait_seconds: float,
        purpose: Purpose,
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Chunks of the samples; training gets each sample whole. Closing it early frees their memory.

        With ``best_of`` each sample is the best of so many, and comes whole; training gets the policy's own.

        Raises:
            VersionUnavailable: older weights than wanted, after ``wait_seconds``.
            Unavailable: training asks, and the learner's weights are refused here.
            LodestarError: see AsyncEngine.generate.
        """
        if not 0 <= wait_seconds <= MAX_WAIT_SECONDS:
            raise InvalidArgument("wait_seconds", f"must be 0 … {MAX_WAIT_SECONDS:g}, got {wait_seconds}")
        self.engine.engine.check(asked.ids, sampling, purpose)
        trains = purpose is Purpose.TRAINING
        if trains and not self.training.holds:
            raise Unavailable(f"this server takes no rollouts while it refuses the learner's weights: {self.refusal}")
        best_of = None if trains else self._best_of
        drawn = best_of.drawn(sampling, self.engine.engine.limits) if best_of else sampling
        if min_version is not None:
            await self.engine.wait_for(min_version, wait_seconds)
        chunks = self.engine.generate(
            asked.ids, drawn, purpose=purpose, flow=flows.present(), stream=not (trains or best_of)
        )
        async with aclosing(chunks):
            chosen = best_of.chosen(asked, best_of.n_of(sampling), chunks) if best_of else chunks
            async with aclosing(chosen):
                async for chunk in chosen:
                    yield chunk

    async def logprobs(
        self, sequences: Sequence[Scored], *, temperature: float, entropy: bool, top_logprobs: int = 0
    ) -> list[TokenLogProbs]:
        """Log-probs of given completions under the present weights.

        Raises:
            InvalidArgument: a sequence, the temperature or top_logprobs is out of range.
        """
        if not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidArgument("top_logprobs", f"must be 0 … {MAX_TOP_LOGPROBS}, got {top_logprobs}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InvalidArgument("temperature", f"must be a number above 0, got {temperature}")
        limits, visible = self.engine.engine.limits, [*map(self._control.without_scored, sequences)]
        check_scored(visible, "sequences", vocab_size=limits.vocab_size, context_tokens=limits.context_tokens)
        return await self.engine.logprobs(
            sequences, temperature=temperature, entropy=entropy, top=top_logprobs, flow=flows.present()
        )

    # --- weights -----------------------------------------------------------------------------------------------
    async def attach(self, source: WeightSource, cache: Path) -> None:
        """Serve the last verified version that ``cache`` holds, if any. To be awaited before anybody is answered."""
        engine = self.engine
        self._follower = WeightFollower(
            source, cache, self._task.run, engine.version, self.apply, lambda: engine.engine.held_weights()
        )
        self._follower.refuses = self._refuses
        await self._follower.restore()

    async def follow(self, stopping: asyncio.Event) -> None:
        """Keep to the versions that the attached source announces until ``stopping`` is set."""
        if self._follower is None:
            await stopping.wait()
            return
        following = asyncio.create_task(self._follower.run())
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait([following, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            following.cancel()
            await asyncio.wait([following, stopped])
            await self._follower.close()
        if not following.cancelled():
            following.result()

    async def apply(self, manifest: WeightManifest, tensors: Mapping[str, Tensor] | None) -> None:
        """Serve a version whose tensors were verified; without tensors the weights held are the version's already.

        Raises:
            ModelError: another tokenizer's weights, or tensors that are not this model's.
            ProbeFailed: the serving path does not give the learner's log-probs. The weights held before are served on.
        """
        if manifest.tokenizer_hash and manifest.tokenizer_hash != self.tokenizer_hash:
            raise ModelError(
                f"weights of step {manifest.version.step} belong to tokenizer {manifest.tokenizer_hash[:12]}, "
                f"this server's is {self.tokenizer_hash[:12]}"
            )
        if tensors is not None and self.engine.engine.can_stand_by:
            standby = await self._standing_by.run(self.engine.engine.stand_by, tensors)
            served = await self._standing_by.run(standby.replay, [probe.scored for probe in manifest.probes])
            check_probes(manifest, served)
            await self.engine.adopt(standby, manifest.version)
        else:
            verify = partial(_verify, manifest, copied=tensors is not None)
            await self.engine.swap(tensors or {}, manifest.version, verify)

    async def load_version(self, version: WeightVersion, seconds: float) -> None:
        """Return once exactly this version is served; the learner must announce it.

        Raises:
            VersionUnavailable: it is not within ``seconds``; the message says what is held and why.
        """
        try:
            await self.engine.wait_for(version, seconds)
        except VersionUnavailable as error:
            raise VersionUnavailable(f"{error}{'; ' + self.refusal if self.refusal else ''}") from None

    @property
    def refusal(self) -> str:
        """Why the last announced version is not served; empty when it is."""
        return self._follower.refusal if self._follower is not None else ""

    def _refuses(self, refuses: bool) -> None:
        self.training.set(not refuses)

    async def status(self) -> EngineStatus:
        """How full the engine is."""
        return await self.engine.status()


def _verify(manifest: WeightManifest, engine: Engine, *, copied: bool) -> None:
    """Whether the tensors that were copied are the manifest's, and the serving path gives the learner's log-probs.

    Raises:
        ModelError: they differ.
    """
    live = weights_digest(tensor_digests(engine.model)) if copied else manifest.version.digest
    if live != manifest.version.digest:
        raise ModelError(
            f"weights of step {manifest.version.step}: the tensors in memory hash to {live[:12]}, "
            f"announced was {manifest.version.digest[:12]}"
        )
    check_probes(manifest, [engine.replay(probe.scored) for probe in manifest.probes])


def check_probes(manifest: WeightManifest, served: Sequence[Sequence[float]]) -> None:
    """
    Raises:
        ProbeFailed: a served log-prob is other than the learner's by more than its probe allows.
    """
    for probe, logprobs in zip(manifest.probes, served, strict=True):
        worst = max(abs(ours - theirs) for ours, theirs in zip(logprobs, probe.logprobs, strict=True))
        if not worst <= probe.tolerance:
            raise ProbeFailed(
                f"weights of step {manifest.version.step}: served log-probs differ from the learner's by {worst:.2g} "
                f"on its probe, more than {probe.tolerance:.2g}"
            )
