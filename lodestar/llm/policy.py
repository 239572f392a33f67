"""A language model behind our own PolicyService."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lodestar.asking import patiently
from lodestar.client import AsyncPolicyClient
from lodestar.client.calls import Assembly
from lodestar.llm.port import Answer, Ask, Token
from lodestar.records import FinishReason, GenerationChunk, SamplingParams, TokenPiece


class PolicyModel:
    """Asks policy servers, the run's own or others; one that is away is asked again for a while (lodestar.asking)."""

    def __init__(
        self, addresses: Sequence[str], *, timeout: float, tls: Path | str | None = None, token: str | None = None
    ) -> None:
        self._client = AsyncPolicyClient(addresses, timeout=timeout, tls=tls, token=token)
        self._pieces: dict[int, str] = {}
        """Token id → what it spells."""

    async def identity(self) -> str:
        """The digest of its weights."""
        return "policy-" + (await patiently(self._client.describe)).model.version.digest[:32]

    async def ask(self, ask: Ask) -> Answer:
        """See LanguageModel."""
        told = SamplingParams(
            ask.max_tokens,
            temperature=ask.temperature,
            seed=ask.seed,
            logprobs=ask.candidates > 0,
            top_logprobs=ask.candidates,
        )

        async def chunks() -> list[GenerationChunk]:
            return [chunk async for chunk in self._client.stream(ask.prompt, told)]

        found = await patiently(chunks)
        assembly = Assembly()
        for chunk in found:
            assembly.add(chunk)
        made = assembly.finish()
        (one,) = made.completions
        tokens = await self._tokens(found) if ask.candidates else ()
        ended = one.finish_reason is FinishReason.EOS
        return Answer(one.text, ended, made.prompt_tokens, len(one.token_ids), tokens)

    async def close(self) -> None:
        """See LanguageModel."""
        await self._client.close()

    async def _tokens(self, chunks: Sequence[GenerationChunk]) -> tuple[Token, ...]:
        """Ids as texts; the server is asked for each id once."""
        ids = {token for chunk in chunks for token in chunk.token_ids}
        ids |= {one.token_id for chunk in chunks for at in chunk.top_logprobs for one in at}
        if unknown := sorted(ids - self._pieces.keys()):
            told = await patiently(lambda: self._client.detokenize(unknown))
            self._pieces |= zip(unknown, map(_spelled, told.pieces), strict=True)
        return tuple(
            Token(self._pieces[token], {self._pieces[one.token_id]: one.logprob for one in at})
            for chunk in chunks
            for token, at in zip(chunk.token_ids, chunk.top_logprobs, strict=True)
        )


def _spelled(piece: TokenPiece) -> str:
    return piece.special or piece.text.decode(errors="replace")
