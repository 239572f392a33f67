"""``lodestar generate`` and ``lodestar chat``: the engine in this process, or a policy server's address."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from lodestar.config import PolicyConfig
from lodestar.errors import InvalidArgument
from lodestar.recipe import named
from lodestar.records import ChatMessage, GenerationChunk, SamplingParams, WeightVersion

if TYPE_CHECKING:
    from lodestar.engine.front import AsyncEngine

GENERATED, CHATTED = 128, 256
"""New tokens where nobody says how many, as far as the model's context has room."""
Prompt = str | Sequence[ChatMessage]
ADDRESS = re.compile(r"^([\w.-]+|\[[0-9a-f:]+\]):\d+$|^(dns|ipv4|ipv6):")


class Remote:
    """A policy server somewhere."""

    def __init__(self, address: str, tls: Path | None, token: str | None) -> None:
        from lodestar.client import AsyncPolicyClient

        self._client = AsyncPolicyClient(address, timeout=600.0, tls=tls, token=token)

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[GenerationChunk]:
        """Chunks of the samples as they come."""
        return self._client.stream(prompt, sampling)

    async def room(self, prompt: Prompt) -> int:
        """Tokens that the model's context leaves for a reply, at least 1: the server says why none fits."""
        served = await self._client.describe()
        ids = await self._client.tokenize(prompt, add_special_tokens=True)
        return max(1, served.context_tokens - len(ids))

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.close()


class Local:
    """A model on this machine, in an engine of our own."""

    def __init__(self, path: str) -> None:
        import torch

        from lodestar.engine.engine import Engine
        from lodestar.engine.front import AsyncEngine
        from lodestar.model.loading import load_causal_lm, load_tokenizer, resolve_device

        self._tokenizer = load_tokenizer(path)
        device = resolve_device("auto")

        def make() -> Engine:
            model = load_causal_lm(path, device=str(device))
            config = PolicyConfig(max_sequences=16, kv_cache_tokens=16_384)
            return Engine(model, self._tokenizer, config, version=WeightVersion("", 0, ""), device=device)

        self._engine = AsyncEngine(make, name=path, threads=torch.get_num_threads())
        self._started = False

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[GenerationChunk]:
        """Chunks of the samples as they come; the first call loads the model."""
        async for chunk in (await self._loaded()).generate(self._ids(prompt), sampling):
            yield chunk

    async def room(self, prompt: Prompt) -> int:
        """See Remote."""
        limits = (await self._loaded()).engine.limits
        return max(1, limits.context_tokens - len(self._ids(prompt)))

    async def _loaded(self) -> AsyncEngine:
        if not self._started:
            await self._engine.start()
            self._started = True
        return self._engine

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        from lodestar.data.rows import encode_prompts
        from lodestar.engine.chat import chat_ids

        return (
            encode_prompts(self._tokenizer, [prompt])[0]
            if isinstance(prompt, str)
            else chat_ids(self._tokenizer, prompt)
        )

    async def close(self) -> None:
        """Frees the model."""
        if self._started:
            await self._engine.close()


Opening = AbstractAsyncContextManager[Remote | Local]


def generate(
    opening: Opening,
    prompt: str,
    *,
    n: int,
    temperature: float,
    top_p: float,
    max_tokens: int | None,
    seed: int | None,
) -> None:
    """Prints n completions of one prompt; a single one as it comes. ``max_tokens`` unset: GENERATED, or what fits."""
    text = sys.stdin.read() if prompt == "-" else prompt

    async def work() -> None:
        texts = [""] * n
        async with opening as source:
            tokens = max_tokens or min(GENERATED, await source.room(text))
            sampling = SamplingParams(tokens, n=n, temperature=temperature, top_p=top_p, seed=seed)
            async for chunk in source.stream(text, sampling):
                texts[chunk.sample_index] += chunk.text
                if n == 1:
                    print(chunk.text, end="", flush=True)
        print("" if n == 1 else "\n".join(f"[{index}] {one}" for index, one in enumerate(texts)))

    asyncio.run(work())


def chat(opening: Opening, model: str, *, temperature: float, max_tokens: int | None, seed: int | None) -> None:
    """Talks until Ctrl-D, Ctrl-C or /quit at the prompt; /new forgets what was said, Ctrl-C ends a reply.

    ``max_tokens`` unset: CHATTED, or what fits after what was said.
    """
    console = Console(highlight=False)

    async def reply(source: Remote | Local, turns: Sequence[ChatMessage]) -> str:
        said = ""
        tokens = max_tokens or min(CHATTED, await source.room(turns))
        async for chunk in source.stream(turns, SamplingParams(tokens, temperature=temperature, seed=seed)):
            said += chunk.text
            print(chunk.text, end="", flush=True)
        print()
        return said

    turns: list[ChatMessage] = []
    console.print(f"[dim]{escape(str(model))} · /new starts over, Ctrl-D or /quit leaves[/]", soft_wrap=True)
    with asyncio.Runner() as runner:  # the prompt is asked here and not in it: Ctrl-C must reach whoever types
        source = runner.run(opening.__aenter__())
        try:
            while (line := _ask(console)) not in (None, "/quit"):
                if line == "/new":
                    turns = []
                elif line:
                    asked = [*turns, ChatMessage("user", line)]
                    try:
                        turns = [*asked, ChatMessage("assistant", runner.run(reply(source, asked)))]
                    except InvalidArgument as error:  # a chat beyond the model's context, say
                        console.print(f"[red]{escape(str(error))}[/]")
                    except KeyboardInterrupt:
                        console.print("\n[dim]stopped; it is as if you had not asked[/]")
        finally:  # a second Ctrl-C would leave it half closed
            held = signal.signal(signal.SIGINT, signal.SIG_IGN)
            runner.run(opening.__aexit__(None, None, None))
            signal.signal(signal.SIGINT, held)


def opened(model: str, *, tls: Path | None = None, token: str | None = None) -> Opening:
    """What answers: a policy server when ``model`` is an address, else an engine with the model."""

    @asynccontextmanager
    async def context() -> AsyncIterator[Remote | Local]:
        source = Remote(model, tls, token) if ADDRESS.match(model) else Local(named.model(model))
        try:
            yield source
        finally:
            await source.close()

    return context()


def _ask(console: Console) -> str | None:
    """A line; None at Ctrl-D and Ctrl-C."""
    try:
        return console.input("[bold cyan]›[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
