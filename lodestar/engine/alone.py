"""The engine in ordinary code: one call's samples, whole, with nobody else to wait for."""

from __future__ import annotations

from collections.abc import Sequence as Turns
from dataclasses import replace

import torch

from lodestar.config import PolicyConfig
from lodestar.data.rows import encode_prompts
from lodestar.engine.chat import chat_ids
from lodestar.engine.engine import Engine
from lodestar.engine.sequence import Sequence
from lodestar.engine.text import TextStream
from lodestar.errors import InvalidArgument, LodestarError
from lodestar.model.loading import load_causal_lm, load_tokenizer, resolve_device
from lodestar.records import ChatMessage, FinishReason, SamplingParams, WeightVersion


class Alone:
    """``Alone("runs/demo/ppo/policy").texts("what color is the sky ?", SamplingParams(20, n=4))``."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            ModelError: no model or tokenizer there that can be used.
        """
        self._tokenizer = load_tokenizer(path)
        device = resolve_device("auto")
        model = load_causal_lm(path, device=str(device))
        self._engine = Engine(model, self._tokenizer, PolicyConfig(), version=WeightVersion("", 0, ""), device=device)

    def texts(self, prompt: str | Turns[ChatMessage], sampling: SamplingParams) -> list[str]:
        """Each sample's text; fewer tokens than asked for where the context ends before.

        Raises:
            InvalidArgument: an option is out of range, or the prompt fills the context.
            LodestarError: the model gave logits that are not finite.
        """
        if isinstance(prompt, str):
            ids = encode_prompts(self._tokenizer, [prompt])[0]
        else:
            ids = chat_ids(self._tokenizer, prompt, "prompt")
        room = self._engine.limits.context_tokens - len(ids)
        if room < 1:
            raise InvalidArgument("prompt", f"has {len(ids)} tokens, and the model's context ends there")
        if sampling.max_tokens > room:
            sampling = replace(sampling, max_tokens=room)
        request = self._engine.request(ids, sampling)
        with torch.inference_mode():
            self._engine.add(request)
            while any(sequence.finish_reason is None for sequence in request.sequences):
                self._engine.step()
        return [self._text(sequence, sampling) for sequence in request.sequences]

    def _text(self, sequence: Sequence, sampling: SamplingParams) -> str:
        ended, tokens = sequence.finish_reason, list(sequence.response)
        if ended is FinishReason.ERROR:
            raise LodestarError(sequence.error)
        if ended is FinishReason.EOS or (ended is FinishReason.STOP and tokens[-1] in sampling.stop_token_ids):
            tokens = tokens[:-1]
        return TextStream(self._tokenizer, sampling.stop, sampling.min_tokens).add(tokens, last=True)
