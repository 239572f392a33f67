"""Small random models, ready to be served: for benchmarks, tests and notebooks.

    write_tiny_models(root / "tiny", hidden=32, layers=2, vocab=64, eos_bias=3.0)
    run = tiny_config(root, "mine")

The models are plain Hugging Face Llamas whose responses end by themselves at a chosen rate; nothing was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lodestar.config import RunConfig
from lodestar.files import write_jsonl
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.model.weights import save_model

EOS = 1
_CHANNEL = 1.0
"""A residual channel that holds this for every token, so that one LM-head weight acts as a constant on a logit."""


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Words t0 … : t0 pads, t1 ends, t2 is unknown."""
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t2"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, pad_token="t0", eos_token="t1", unk_token="t2"
    )


def llama(*, hidden: int, layers: int, vocab: int, eos_bias: float, seed: int = 0) -> LlamaForCausalLM:
    """A Llama whose EOS logit is about ``eos_bias`` above the others, at every position."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=EOS,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = _CHANNEL
        model.lm_head.weight[:, 0] = 0.0
        states = model.model(torch.arange(3, 67)[None] % vocab).last_hidden_state[0]
        model.lm_head.weight[EOS] = 0.0
        model.lm_head.weight[EOS, 0] = eos_bias / float(states[:, 0].mean())
    return model


def tiny_config(root: Path, name: str, **sections: Any) -> RunConfig:
    """PPO alone, below ``root``, on what :func:`write_tiny_models` wrote to ``root/tiny``."""
    tiny = root / "tiny"
    given = {"reward_model": str(tiny / "reward"), "prompts": str(tiny / "prompts")}
    return RunConfig.model_validate(
        {
            "name": name,
            "runs_dir": str(root),
            "model": {"path": str(tiny / "policy")},
            "given": given,
            "stages": {"ppo": {}},
            **sections,
        }
    )


def write_tiny_models(
    folder: Path,
    *,
    hidden: int = 32,
    layers: int = 2,
    vocab: int = 64,
    eos_bias: float = 2.0,
    prompts: int = 64,
    prompt_tokens: tuple[int, int] = (4, 12),
) -> list[list[int]]:
    """Writes start model, reward model and PPO prompts; returns the prompts' token ids.

    ``prompt_tokens`` is the range of their lengths, inclusive.
    """
    words = tokenizer(vocab)
    policy = llama(hidden=hidden, layers=layers, vocab=vocab, eos_bias=eos_bias)
    save_model(policy, words, folder / "policy")
    save_model(scalar_from_causal_lm(policy, words, seed=1), words, folder / "reward")
    noise = torch.Generator().manual_seed(1)
    shortest, longest = prompt_tokens
    lengths = torch.randint(shortest, longest + 1, (prompts,), generator=noise).tolist()
    ids = [torch.randint(3, vocab, (length,), generator=noise).tolist() for length in lengths]
    rows = ({"id": str(i), "text": " ".join(f"t{i}" for i in prompt)} for i, prompt in enumerate(ids))
    write_jsonl(folder / "prompts" / "ppo.jsonl", rows)
    return ids
