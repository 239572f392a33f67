"""Generation on a GPU: against transformers' generate and continuous batching, and decode against the memory's speed.

bfloat16, random weights in the shapes of Llama-3.2-1B and Llama-3.1-8B. Goals: ≥ 5 × generate, ≥ 1.5 × generate_batch;
decode ≥ 70% of the bandwidth bound at batch 1 and ≥ 60% at batch 64. The bound is every weight and every key and value
read once per step, at the speed of a device-to-device copy. Without a CUDA device it says so and ends.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import torch
from generate import VOCAB, Case, compare, decoded
from harness import parser, report
from transformers import LlamaConfig, LlamaForCausalLM

from lodestar.config import PolicyConfig
from lodestar.engine.engine import Engine
from lodestar.local.tiny import tokenizer
from lodestar.model.attention import NAME

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}
CONTEXT = 512


def make_model(name: str) -> LlamaForCausalLM:
    """Random bfloat16 weights on the GPU."""
    config = LlamaConfig(
        **{"vocab_size": VOCAB, **SHAPES[name]},
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=3,
    )
    with torch.device("cuda"):
        return LlamaForCausalLM._from_config(config, attn_implementation=NAME, dtype=torch.bfloat16).eval()


def copy_bandwidth() -> float:
    """Bytes per second that a device-to-device copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


def decode(name: str, model: LlamaForCausalLM, batch: int, steps: int, bandwidth: float) -> Mapping[str, Any]:
    """Steps of a batch whose sequences have about CONTEXT tokens, from the captured graph."""
    tokens = batch * (CONTEXT + 2 * steps + 16)
    config = PolicyConfig(max_sequences=batch, kv_cache_tokens=max(tokens, 4096), prefix_cache=False)
    engine = Engine(model, tokenizer(VOCAB), config, device="cuda")
    seconds = decoded(engine, batch, CONTEXT, steps)[1] / steps
    embedding = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes
    weights = sum(parameter.nbytes for parameter in model.parameters()) - embedding
    cached = batch * (CONTEXT + steps) * engine._cache.shape.token_bytes
    return {
        "what": f"{name}, decode",
        "batch": batch,
        "ms/step": 1e3 * seconds,
        "tokens/s": batch / seconds,
        "GB/step": (weights + cached) / 1e9,
        "share of the copy bandwidth": (weights + cached) / seconds / bandwidth,
    }


def main(arguments: argparse.Namespace) -> None:
    """Both shapes, or a tiny one with --small."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return
    small = arguments.small
    names = ["tiny"] if small else arguments.shapes
    mixed = Case("mixed lengths", (16, 256), (16, 32 if small else 256))
    uniform = Case("128 new tokens each", (16, 256), (16, 16) if small else (128, 128), 128, batch_peer=True)
    bandwidth = copy_bandwidth()
    compared: list[Mapping[str, Any]] = []
    decoded: list[Mapping[str, Any]] = []
    for name in names:
        model = make_model(name)
        rows = compare(model, [mixed, uniform], 1 if small else arguments.runs)
        compared += [{"model": name, **{k: v for k, v in row.items() if "GFLOP" not in k}} for row in rows]
        decoded += [decode(name, model, batch, 16 if small else 128, bandwidth) for batch in (1, 64)]
        del model
        torch.cuda.empty_cache()
    notes = f"{torch.cuda.get_device_name()}, copies at {bandwidth / 1e9:,.0f} GB/s"
    report("generate_gpu", compared, arguments, notes)
    arguments.out = arguments.out and arguments.out.with_name("generate_gpu_decode.json")
    report("generate_gpu_decode", decoded, arguments, notes)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", default=list(SHAPES)[1:], choices=list(SHAPES))
    main(options.parse_args())
