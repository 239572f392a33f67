"""The models of the benchmarks: plain Llamas with random weights, in folders that both sides load."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lodestar.data.files import DataFiles, write_jsonl
from lodestar.layout import RunFolder
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.model.weights import save_model

EOS = 1
_CHANNEL = 1.0
"""A residual channel that holds this for every token, so that one LM-head weight acts as a constant on a logit."""


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Words t0 … : t0 pads, t1 ends, t2 is unknown."""
    inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t2"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="t0", eos_token="t1", unk_token="t2")


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


def write_models(root: Path, *, eos_bias: float, small: bool = False, prompts: int = 64) -> None:
    """``root/bench``: a run folder with start model, reward model and prompts; ``root/peer``: the same for the peer."""
    hidden, layers, vocab = (32, 2, 64) if small else (256, 4, 1024)
    words = tokenizer(vocab)
    policy = llama(hidden=hidden, layers=layers, vocab=vocab, eos_bias=eos_bias)
    reward = scalar_from_causal_lm(policy, words, seed=1)
    folder, peer = RunFolder(root / "bench"), root / "peer"
    for model, places in ((policy, (folder.sft, peer / "policy")), (reward, (folder.reward_model, peer / "reward"))):
        for place in places:
            save_model(model, words, place)
    noise = torch.Generator().manual_seed(1)
    lengths = torch.randint(16, 49, (prompts,), generator=noise).tolist()
    ids = [torch.randint(3, vocab, (length,), generator=noise).tolist() for length in lengths]
    texts = [" ".join(f"t{i}" for i in prompt) for prompt in ids]
    files = DataFiles.of(folder)
    write_jsonl(files.ppo_prompts, ({"id": str(i), "text": text} for i, text in enumerate(texts)))
    (peer / "prompts.json").write_text(json.dumps(ids))
