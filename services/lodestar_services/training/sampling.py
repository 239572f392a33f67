"""Samples of many sets of weights of one architecture, by the few engines of samplers.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lodestar.config import PolicyConfig, TrainingTask
from lodestar.engine.engine import Engine
from lodestar.model.loading import resolve_device
from lodestar.records import GenerationChunk, ModelInfo, Purpose, Sampled, SamplingParams, Scored, TokenLogProbs
from lodestar.rpc.batching import ComputeThread
from lodestar_services.training.model import lm_head_name, untie
from lodestar_services.training.samplers import Samplers


@dataclass(frozen=True, slots=True)
class Source:
    """Whose weights are sampled from."""

    key: str
    """Another one for other weights."""
    model: ModelInfo
    load: Callable[[], Mapping[str, Tensor]]
    """The weights by name; called on the compute thread, where no engine has them."""


class Sampling:
    """``await sampling.sample(source, (4, 5), SamplingParams(8), top_prompt=None)``."""

    def __init__(self, task: TrainingTask, compute: ComputeThread, start: Any, tokenizer: Any) -> None:
        self._task = task
        self._compute = compute
        self._start = start
        self._tokenizer = tokenizer
        section = task.section
        self._samplers = Samplers(self._make_engine, section.samplers, threads=section.threads)

    def holds(self, key: str) -> bool:
        """Whether an engine has these weights now."""
        return self._samplers.hold(key)

    def stop(self) -> None:
        """Ends the engines' threads."""
        self._samplers.stop()

    async def sample(
        self, source: Source, prompt: Sequence[int], sampling: SamplingParams, *, top_prompt: int | None
    ) -> Sampled:
        """Whole samples; with ``max_tokens`` 0 none. ``top_prompt`` None: no log-probs of the prompt.

        Raises:
            InvalidArgument: a field of ``sampling`` is out of range.
            ResourceExhausted: too many wait.
        """

        async def load() -> Mapping[str, Tensor]:
            return await self._compute.run(self._for_engine, source)

        samples: dict[int, GenerationChunk] = {}
        async with self._samplers.lease(source.key, load) as engine:
            known = None if top_prompt is None else await _prompt_logprobs(engine, prompt, top_prompt)
            if sampling.max_tokens:
                engine.engine.check(prompt, sampling, Purpose.SERVING)
                async with aclosing(engine.generate(prompt, sampling, stream=False)) as chunks:
                    async for chunk in chunks:
                        samples[chunk.sample_index] = chunk
        return Sampled(source.model, tuple(samples[i] for i in sorted(samples)), known)

    def _for_engine(self, source: Source) -> Mapping[str, Tensor]:
        """Engines have a head of their own: some adapters give one to a model whose head was its embedding."""
        tensors = dict(source.load())
        head = f"{lm_head_name(self._start)}.weight"
        if head not in tensors:
            embedding = self._start.get_input_embeddings().weight
            shared = next(name for name, parameter in self._start.named_parameters() if parameter is embedding)
            tensors[head] = tensors[shared]
        return tensors

    def _make_engine(self) -> Engine:
        skeleton = copy.deepcopy(self._start)
        untie(skeleton)
        config = PolicyConfig(kv_cache_tokens=self._task.section.kv_cache_tokens, swap="drain")
        device = resolve_device(self._task.device)
        return Engine(skeleton, self._tokenizer, config, deterministic=self._task.deterministic, device=device)


async def _prompt_logprobs(engine: Any, prompt: Sequence[int], top: int) -> TokenLogProbs:
    if len(prompt) == 1:
        return TokenLogProbs(())
    (answer,) = await engine.logprobs([Scored(tuple(prompt), 1)], top=top)
    return TokenLogProbs(answer.logprobs, (), answer.top_logprobs)
