"""Tiny models of real architectures with random weights, and a tokenizer for them."""

from __future__ import annotations

import copy

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 37
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 3,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=3),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, eos_token_id=1, bos_token_id=3
    ),
}
SEQUENCES = [[3, 5, 7, 9, 11, 4, 5, 6, 1], [4, 4, 4, 1], [3, 9]]
PROMPTS = [3, 2, 1]


def plain_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The architecture as transformers runs it, with its own attention."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """t0 … t36; PAD t0, EOS t1, UNK t2 unless told otherwise."""
    return words(VOCAB, **special)


def words(vocab: int, **special: str) -> PreTrainedTokenizerFast:
    """As word_tokenizer, of another size."""
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{"pad_token": "t0", "eos_token": "t1", "unk_token": "t2", **special}
    )
