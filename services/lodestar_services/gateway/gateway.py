"""What the gateway does with a request: the model is the one served, prompts go to policy servers, samples come.

Consumes checked requests; produces chunks of numbered choices. Closing an answer early cancels the calls behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from lodestar.client import AsyncPolicyClient
from lodestar.config import GatewayTask
from lodestar.errors import LodestarError
from lodestar.records import ChatMessage, GenerationChunk, ModelDescription, SamplingParams, Scored, TokenPiece
from lodestar_services.gateway.errors import ApiError
from lodestar_services.gateway.requests import ChatRequest, CompletionRequest
from lodestar_services.gateway.tinker.api import Tinker

Prompt = str | Sequence[int] | Sequence[ChatMessage]
Samples = AsyncGenerator[tuple[int, GenerationChunk], None]
DESCRIBE_SECONDS = 5.0
FRESH_SECONDS = 5.0
"""How long an answer to what is served is good: under one name a fleet may come to serve another model."""
CHUNKS_WAITING = 16
"""Of all of a request's prompts together; a slow reader then holds up the policy servers' streams."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that the caller wants back."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    """Of all but the first token."""
    candidates: tuple[Mapping[int, float], ...] = ()
    """The same positions' most likely tokens, when asked for."""


class Gateway:
    """``await open()`` inside the event loop, then the rest."""

    def __init__(self, task: GatewayTask) -> None:
        self._task = task
        self._policy: AsyncPolicyClient
        self.tinker: Tinker | None = None
        """For those who train, where there is a training server."""
        self._served: ModelDescription | None = None
        self._described = 0.0
        self._pieces: dict[int, TokenPiece] = {}
        self._pieces_of = ""
        """Hash of the tokenizer that the pieces are of."""
        self.created = int(time.time())

    async def open(self) -> None:
        """Makes the channels; the first call connects them."""
        if self.generates:
            self._policy = AsyncPolicyClient(
                self._task.endpoints.policy, timeout=self._task.section.deadline_seconds, tls=self._task.listening.tls
            )
        if self._task.endpoints.training is not None:
            self.tinker = Tinker(self._task.section, self._task.endpoints.training, tls=self._task.listening.tls)

    @property
    def generates(self) -> bool:
        """Whether it stands before policy servers."""
        return bool(self._task.endpoints.policy)

    async def close(self) -> None:
        """Ends calls in flight."""
        if self.generates:
            await self._policy.close()
        if self.tinker is not None:
            await self.tinker.close()

    # --- the model ---------------------------------------------------------------------------------------------
    async def model(self) -> ModelDescription:
        """What the policy servers serve now."""
        self._served = await self._policy.describe(timeout=DESCRIBE_SECONDS)
        self._described = time.monotonic()
        return self._served

    def name_of(self, model: ModelDescription) -> str:
        """Its id."""
        return self._task.section.name or model.model.name

    async def check_model(self, asked: str) -> ModelDescription:
        """The served model, if it is the one asked for; a fleet may have come to serve another one meanwhile.

        Raises:
            ApiError: it is another.
        """
        stale = time.monotonic() - self._described > FRESH_SECONDS
        if self._served is None or stale or self.name_of(self._served) != asked:
            await self.model()
        assert self._served is not None
        name = self.name_of(self._served)
        if asked != name:
            message = f"The model {asked!r} does not exist here; this server has {name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._served

    def check_prompts(self, request: CompletionRequest) -> None:
        """
        Raises:
            ApiError: more prompts than one request may have.
        """
        most, sent = self._task.section.max_prompts, len(request.prompts)
        if sent > most:
            raise ApiError(400, f"prompt: has {sent} prompts, at most {most} are taken at once", param="prompt")

    # --- samples -----------------------------------------------------------------------------------------------
    async def chat(self, request: ChatRequest, model: ModelDescription) -> Samples:
        """Chunks of a chat's replies, each with its choice's number.

        Raises:
            ApiError: the chat leaves no room in the context.
            LodestarError: the policy servers'.
        """
        prompt: Prompt = request.turns
        length = request.length
        if length is None:
            prompt = await self._policy.tokenize(request.turns)
            length = model.context_tokens - len(prompt)
            if length < 1:
                message = f"the chat has {len(prompt)} tokens, and the context holds {model.context_tokens}"
                raise ApiError(400, f"messages: {message}", param="messages", code="context_length_exceeded")
        chunks = self._policy.stream(prompt, request.sampling(length, top_logprobs=request.candidates))
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk.sample_index, chunk

    async def complete(self, request: CompletionRequest) -> Samples:
        """Chunks of the completions of one or more prompts, each with its choice's number."""
        sampling = request.sampling(request.length, top_logprobs=request.logprobs)
        if len(request.prompts) == 1:
            chunks = self._numbered(0, request.prompts[0], sampling)
        else:
            chunks = _merged([self._numbered(i, one, sampling) for i, one in enumerate(request.prompts)])
        async with aclosing(chunks):
            async for numbered in chunks:
                yield numbered

    async def _numbered(self, place: int, prompt: Prompt, sampling: SamplingParams) -> Samples:
        chunks = self._policy.stream(prompt, sampling)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield place * sampling.n + chunk.sample_index, chunk

    async def echoes(self, request: CompletionRequest) -> list[Echo]:
        """The prompts, with log-probs of their tokens where the request wants them."""
        ids = [
            await self._policy.tokenize(prompt, as_prompt=True) if isinstance(prompt, str) else tuple(prompt)
            for prompt in request.prompts
        ]
        texts = [
            prompt if isinstance(prompt, str) else (await self._policy.detokenize(prompt)).text
            for prompt in request.prompts
        ]
        if request.logprobs is None:
            return [Echo(text, row) for text, row in zip(texts, ids, strict=True)]
        long = [row for row in ids if len(row) > 1]
        temperature = 1.0 if not request.temperature else request.temperature  # of greedy ones: as for samples
        scored = [Scored(row, prompt_tokens=1) for row in long]
        answers = await self._policy.logprobs(scored, temperature=temperature, top_logprobs=request.logprobs)
        found = dict(zip(long, answers.sequences, strict=True))
        echoes = []
        for text, row in zip(texts, ids, strict=True):
            one = found.get(row)
            best = [{c.token_id: c.logprob for c in position} for position in one.top_logprobs] if one else []
            echoes.append(Echo(text, row, one.logprobs if one else (), tuple(best)))
        return echoes

    # --- tokens ------------------------------------------------------------------------------------------------
    async def pieces(self, token_ids: Iterable[int], tokenizer_hash: str) -> Mapping[int, TokenPiece]:
        """What these tokens are, asked of a policy server once."""
        if tokenizer_hash != self._pieces_of:
            self._pieces, self._pieces_of = {}, tokenizer_hash
        known = self._pieces
        model = self._served or await self.model()
        missing = sorted({token for token in token_ids if token not in known})
        for start in range(0, len(missing), model.context_tokens):
            part = missing[start : start + model.context_tokens]
            answer = await self._policy.detokenize(part, tokenizer_hash=tokenizer_hash)
            known.update(zip(part, answer.pieces, strict=True))
        return known


async def _merged(streams: Sequence[Samples]) -> Samples:
    """Chunks of several streams as they come; the first error ends all of them."""
    arrived: asyncio.Queue[tuple[int, GenerationChunk] | Exception | None] = asyncio.Queue(CHUNKS_WAITING)

    async def read(stream: Samples) -> None:
        try:
            async with aclosing(stream):
                async for numbered in stream:
                    await arrived.put(numbered)
            await arrived.put(None)
        except LodestarError as error:
            await arrived.put(error)

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    try:
        left = len(readers)
        while left:
            numbered = await arrived.get()
            if isinstance(numbered, Exception):
                raise numbered
            if numbered is None:
                left -= 1
            else:
                yield numbered
    finally:
        for reader in readers:
            reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*readers, return_exceptions=True)
