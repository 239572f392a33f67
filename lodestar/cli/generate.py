"""``lodestar generate`` and ``lodestar chat``: the engine in this process, or a policy server's address."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lodestar.cli.serve import served_model
from lodestar.config import PolicyConfig
from lodestar.errors import InvalidArgument
from lodestar.records import ChatMessage, GenerationChunk, SamplingParams, WeightVersion

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
        from lodestar.data.rows import encode_prompts
        from lodestar.engine.chat import chat_ids

        if not self._started:
            await self._engine.start()
            self._started = True
        if isinstance(prompt, str):
            ids = encode_prompts(self._tokenizer, [prompt])[0]
        else:
            ids = chat_ids(self._tokenizer, prompt)
        async for chunk in self._engine.generate(ids, sampling):
            yield chunk

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
    max_tokens: int,
    seed: int | None,
) -> None:
    """Prints n completions of one prompt; a single one as it comes."""
    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = SamplingParams(max_tokens, n=n, temperature=temperature, top_p=top_p, seed=seed)

    async def work() -> None:
        texts = [""] * n
        async with opening as source:
            async for chunk in source.stream(text, sampling):
                texts[chunk.sample_index] += chunk.text
                if n == 1:
                    print(chunk.text, end="", flush=True)
        print("" if n == 1 else "\n".join(f"[{index}] {one}" for index, one in enumerate(texts)))

    asyncio.run(work())


def chat(opening: Opening, model: str, *, temperature: float, max_tokens: int, seed: int | None) -> None:
    """Talks until end of input or /quit; /new forgets what was said."""
    console = Console(highlight=False)
    sampling = SamplingParams(max_tokens, temperature=temperature, seed=seed)

    async def reply(source: Remote | Local, turns: Sequence[ChatMessage]) -> str:
        said = ""
        async for chunk in source.stream(turns, sampling):
            said += chunk.text
            print(chunk.text, end="", flush=True)
        print()
        return said

    async def work() -> None:
        turns: list[ChatMessage] = []
        console.print(f"[dim]{escape(str(model))} · /new starts over, /quit leaves[/]")
        async with opening as source:
            while (line := await asyncio.to_thread(_ask, console)) not in (None, "/quit"):
                if line == "/new":
                    turns = []
                elif line:
                    asked = [*turns, ChatMessage("user", line)]
                    try:
                        turns = [*asked, ChatMessage("assistant", await reply(source, asked))]
                    except InvalidArgument as error:  # a chat beyond the model's context, say
                        console.print(f"[red]{escape(str(error))}[/]")

    asyncio.run(work())


def opened(model: str, *, tls: Path | None = None, token: str | None = None) -> Opening:
    """What answers: a policy server when ``model`` is an address, else an engine with the model."""

    @asynccontextmanager
    async def context() -> AsyncIterator[Remote | Local]:
        source = Remote(model, tls, token) if ADDRESS.match(model) else Local(served_model(model, "model"))
        try:
            yield source
        finally:
            await source.close()

    return context()


def _ask(console: Console) -> str | None:
    try:
        return console.input("[bold cyan]›[/] ").strip()
    except EOFError:
        return None
