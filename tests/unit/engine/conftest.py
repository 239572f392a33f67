"""Tiny random models of several families and an engine over each, without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from lodestar.config import PolicyConfig
from lodestar.engine.engine import Engine
from lodestar.engine.sequence import Request
from lodestar.local.tiny import tokenizer as word_tokenizer
from lodestar.model.attention import NAME
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.records import SamplingParams

torch.set_num_threads(1)
VOCAB = 131
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "mistral window": lambda: MistralConfig(**SIZES, sliding_window=24),
    "gemma3 windows": lambda: Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=20, sliding_window_pattern=2),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=256, eos_token_id=1, bos_token_id=1
    ),
}


def make_model(kind: str = "llama") -> Any:
    """Random weights, scaled up so that log-probs are far from uniform."""
    config = CONFIGS[kind]()
    config._attn_implementation = NAME
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.data *= 3.0 if "gpt2" in kind and "wpe" not in name else 2.0
    return model


MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def models() -> Callable[[str], Any]:
    """``models("llama")``, made once."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = make_model(kind)
        return made[kind]

    return get


@pytest.fixture
def make_engine(models: Callable[[str], Any]) -> MakeEngine:
    """``make_engine("llama", deterministic=True, max_sequences=4)``."""

    def make(
        kind: str = "llama", *, deterministic: bool = False, paged: bool = False, model: Any = None, **options: Any
    ) -> Engine:
        config = PolicyConfig(**{"max_sequences": 32, "kv_cache_tokens": 8192, **options})
        own = model if model is not None else models(kind)
        return Engine(own, word_tokenizer(VOCAB), config, deterministic=deterministic, paged=paged)

    return make


def run_all(engine: Engine, work: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Request]:
    """Every request, added at once and finished."""
    requests = [engine.request(prompt, sampling) for prompt, sampling in work]
    for request in requests:
        engine.add(request)
    while engine.scheduler:
        engine.step()
    return requests


@pytest.fixture
def run() -> Callable[..., list[Request]]:
    """run_all, for test modules (which cannot import conftest.py)."""
    return run_all


@pytest.fixture
def full_logprobs() -> Callable[[Any, Request, float], list[list[float]]]:
    """Log-probs of a request's responses by one packed forward pass of the plain model."""

    def compute(model: Any, request: Request, temperature: float = 1.0) -> list[list[float]]:
        rows = []
        for sequence in request.sequences:
            batch = PackedBatch.pack([sequence.tokens], [sequence.prompt_tokens], device="cpu")
            with torch.no_grad():
                rows.append(response_logprobs(model, batch, temperature=temperature)[0].tolist())
        return rows

    return compute
