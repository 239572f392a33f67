"""Generation by the engine against transformers' generate and generate_batch: same weights, same prompts, one process.

Llama, hidden 256, 4 layers, vocabulary 4096, float32, random weights, sampling at temperature 1, no EOS. Tokens per
second count useful tokens: generate pads, and goes on for all rows until the longest is done.

mixed: 64 prompts of 16–256 tokens, 16–256 new ones each; uniform: 64 new each; samples: 8 samples each of 8 prompts of
384–512 tokens, 32 new each. Further: decoding at several batch sizes and contexts with the memory that the KV cache
takes, what deterministic costs, and where a step's time goes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from harness import alternate, median_ratio, parser, report
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lodestar.config import PolicyConfig
from lodestar.engine.engine import Engine
from lodestar.local.tiny import tokenizer
from lodestar.model.attention import NAME
from lodestar.records import SamplingParams

VOCAB = 4096
MFLOP_PER_TOKEN = 10.5
"""Of the model's matrices; attention comes on top and grows with the context."""
PEAK_GFLOPS = 240
"""Of float32 products on two cores of the kind of machine that the goals were set on."""
PROMPT_MFLOP = 6.7
"""Per prompt token: no head, and in the last layer keys and values alone."""
CATEGORIES = {
    "matrix products of the layers and the head": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"),
    "attention": (
        "aten::bmm",
        "aten::_embedding_bag_forward_only",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_softmax",
        "aten::masked_fill_",
    ),
    "keys and values written": ("aten::_index_put_impl_", "aten::copy_"),
    "sampling": ("aten::argmax", "aten::exp_", "aten::amax", "aten::sub", "aten::sum", "aten::log1p_", "aten::gather"),
}
REST = "norms, rotary, activations, views"
PROFILE_NOTES = (
    "s at best: the products at 240 GFLOP/s, and every key and value read once per token at the speed at which torch "
    "sums memory; what is neither is overhead"
)
Work = list[tuple[list[int], int]]
"""Prompts and how many new tokens each gets."""


@dataclass(frozen=True)
class Case:
    """One of the comparisons."""

    name: str
    prompt: tuple[int, int]
    new: tuple[int, int]
    prompts: int = 64
    samples: int = 1
    batch_peer: bool = False
    """Also against generate_batch."""

    def work(self, seed: int) -> Work:
        """Lengths are the same for every seed, token ids are not: no run finds another's prefixes."""
        lengths = torch.Generator().manual_seed(1)
        ids = torch.Generator().manual_seed(1000 + seed)
        draw = lambda low, high: int(torch.randint(low, high + 1, (1,), generator=lengths))  # noqa: E731
        pairs = [(draw(*self.prompt), draw(*self.new)) for _ in range(self.prompts)]
        return [(torch.randint(4, VOCAB, (length,), generator=ids).tolist(), new) for length, new in pairs]


def make_model(positions: int = 1024) -> LlamaForCausalLM:
    """The benchmark's model on our attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=3,
    )
    config._attn_implementation = NAME
    return LlamaForCausalLM(config).eval()


def ours(model: LlamaForCausalLM, case: Case, **options: Any) -> Callable[[], float]:
    """Tokens per second of the engine; every call takes new prompts."""
    deterministic = bool(options.pop("deterministic", False))
    engine = Engine(model, tokenizer(VOCAB), PolicyConfig(**options), deterministic=deterministic, device=model.device)
    seeds = itertools.count()

    def measure() -> float:
        seed = next(seeds)
        started = time.perf_counter()
        for i, (prompt, new) in enumerate(case.work(seed)):
            engine.add(engine.request(prompt, SamplingParams(new, n=case.samples, seed=i, ignore_eos=True)))
        tokens = 0
        while engine.scheduler:
            tokens += len(engine.step())
        return tokens / (time.perf_counter() - started)

    return measure


def padded_generate(model: LlamaForCausalLM, case: Case) -> Callable[[], float]:
    """Useful tokens per second of transformers' generate on one padded batch."""
    peer = on_sdpa(model)
    seeds = itertools.count()

    @torch.no_grad()
    def measure() -> float:
        work = case.work(next(seeds))
        longest = max(len(prompt) for prompt, _ in work)
        padding = [longest - len(prompt) for prompt, _ in work]
        ids = torch.tensor([[0] * pad + prompt for pad, (prompt, _) in zip(padding, work, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        new = max(new for _, new in work)
        started = time.perf_counter()
        peer.generate(
            ids.to(peer.device),
            attention_mask=mask.to(peer.device),
            max_new_tokens=new,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            num_return_sequences=case.samples,
        ).cpu()
        return case.samples * sum(new for _, new in work) / (time.perf_counter() - started)

    return measure


def continuous_generate(model: LlamaForCausalLM, case: Case) -> Callable[[], float]:
    """Tokens per second of transformers' generate_batch, for work with equal new tokens."""
    peer = on_sdpa(model)
    seeds = itertools.count()

    def measure() -> float:
        work = case.work(next(seeds))
        config = GenerationConfig(max_new_tokens=work[0][1], do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0)
        started = time.perf_counter()
        output = peer.generate_batch([prompt for prompt, _ in work], generation_config=config, progress_bar=False)
        seconds = time.perf_counter() - started
        return sum(len(answer.generated_tokens) for answer in output.values()) / seconds

    return measure


def on_sdpa(model: LlamaForCausalLM) -> Any:
    """The same weights as a user has them."""
    with model.device:
        peer = LlamaForCausalLM._from_config(
            copy.deepcopy(model.config), attn_implementation="sdpa", dtype=model.dtype
        ).eval()
    peer.load_state_dict(model.state_dict())
    return peer


def compare(model: LlamaForCausalLM, cases: list[Case], runs: int) -> list[Mapping[str, Any]]:
    """A row per case and peer."""
    rows: list[Mapping[str, Any]] = []
    for case in cases:
        work = {"engine": ours(model, case), "generate": padded_generate(model, case)}
        if case.batch_peer:
            work["generate_batch"] = continuous_generate(model, case)
        for measure in work.values():
            measure()  # warm: allocators, thread pools, pages
        figures = alternate(runs, **work)
        engine = statistics.median(figures["engine"])
        for peer in list(work)[1:]:
            rows.append(
                {
                    "what": case.name,
                    "against": peer,
                    "engine tokens/s": engine,
                    "peer tokens/s": statistics.median(figures[peer]),
                    "ratio": median_ratio(figures["engine"], figures[peer]),
                    "share of 240 GFLOP/s": engine * MFLOP_PER_TOKEN / PEAK_GFLOPS / 1e3,
                }
            )
    return rows


def scaling(batches: list[int], contexts: list[int], steps: int) -> list[Mapping[str, Any]]:
    """Decoding alone: n samples share one computed prompt, so that only its copies cost."""
    rows: list[Mapping[str, Any]] = []
    model = make_model(max(contexts) + 2 * steps)
    process = psutil.Process()
    for batch, context in itertools.product(batches, contexts):
        tokens = batch * (context + 2 * steps)
        needed = tokens * 2 * 4 * 256 * 4
        if needed > 0.6 * psutil.virtual_memory().available:
            continue
        gc.collect()
        before = process.memory_info().rss
        config = PolicyConfig(max_sequences=batch, kv_cache_tokens=tokens + 16 * batch, prefix_cache=False)
        engine = Engine(model, tokenizer(VOCAB), config)
        made, seconds = decoded(engine, batch, context, steps)
        held = engine.status().blocks_used * 16 * engine._cache.shape.token_bytes
        rows.append(
            {
                "batch": batch,
                "context": context,
                "tokens/s": made / seconds,
                "ms/step": 1000 * seconds / steps,
                "KV MB by blocks": held / 1e6,
                "resident MB": (process.memory_info().rss - before) / 1e6,
            }
        )
        del engine
    return rows


def decoded(engine: Engine, batch: int, context: int, steps: int) -> tuple[int, float]:
    """Tokens and seconds of decode steps of ``batch`` sequences that have about ``context`` tokens."""
    prompt = torch.randint(4, VOCAB, (context,)).tolist()
    engine.add(engine.request(prompt, SamplingParams(2 * steps, n=batch, seed=0, ignore_eos=True)))
    while len(engine.step()) < batch:
        pass
    for _ in range(steps // 2):
        engine.step()
    started = time.perf_counter()
    made = sum(len(engine.step()) for _ in range(steps))
    return made, time.perf_counter() - started


def profiled(model: LlamaForCausalLM, case: Case) -> list[Mapping[str, Any]]:
    """Where a run's time goes, against what the arithmetic and the memory allow."""
    measure = ours(model, case)
    measure()
    tokens = sum(new for _, new in case.work(0)) * case.samples
    seconds = tokens / measure()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        measure()
    kinds = {operation: kind for kind, operations in CATEGORIES.items() for operation in operations}
    times = dict.fromkeys((*CATEGORIES, REST), 0.0)
    for event in profiler.key_averages():
        times[kinds.get(event.key, REST)] += event.self_cpu_time_total / 1e6
    times["Python between operations"] = max(0.0, seconds - sum(times.values()))
    products, attention = list(CATEGORIES)[:2]
    prompts = sum(len(prompt) for prompt, _ in case.work(0))
    seen = case.samples * sum(new * len(prompt) + new * (new + 1) // 2 for prompt, new in case.work(0))
    gflop = (MFLOP_PER_TOKEN * tokens + PROMPT_MFLOP * prompts) / 1e3
    gigabytes = seen * 2 * 4 * 256 * 4 / 1e9
    best = {products: gflop / PEAK_GFLOPS, attention: gigabytes / read_bandwidth()}
    return [
        {
            "case": case.name,
            "kind": kind,
            "share": value / seconds,
            "s": value,
            "s at best": best.get(kind, 0.0),
        }
        for kind, value in sorted(times.items(), key=lambda item: -item[1])
    ]


def read_bandwidth() -> float:
    """GB per second at which torch sums 256 MB."""
    numbers = torch.ones(2**26)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return numbers.nbytes / min(seconds) / 1e9


def main(arguments: argparse.Namespace) -> None:
    """Everything, or what --small leaves of it."""
    torch.set_num_threads(arguments.threads)
    small = arguments.small
    prompts = 8 if small else 64
    new = 16 if small else 256
    mixed = Case("mixed lengths", (16, 256), (16, new), prompts)
    uniform = Case("64 new tokens each", (16, 256), (8, 8) if small else (64, 64), prompts, batch_peer=not small)
    samples = Case("8 samples per long prompt", (384, 512), (4, 4) if small else (32, 32), 2 if small else 8, samples=8)
    model = make_model()
    rows = compare(model, [mixed, uniform, samples], 1 if small else arguments.runs)
    exact = alternate(
        1 if small else arguments.runs,
        fast=ours(model, mixed),
        deterministic=ours(model, mixed, deterministic=True),
    )
    rows.append(
        {
            "what": "mixed lengths, deterministic",
            "against": "the engine without it",
            "engine tokens/s": statistics.median(exact["deterministic"]),
            "peer tokens/s": statistics.median(exact["fast"]),
            "ratio": median_ratio(exact["deterministic"], exact["fast"]),
            "share of 240 GFLOP/s": statistics.median(exact["deterministic"]) * MFLOP_PER_TOKEN / PEAK_GFLOPS / 1e3,
        }
    )
    report("generate", rows, arguments)
    batches, contexts = ([8, 32], [128]) if small else ([8, 32, 128, 512], [128, 512, 2048])
    arguments.out = arguments.out and arguments.out.with_name("generate_scaling.json")
    report("generate_scaling", scaling(batches, contexts, 8 if small else 24), arguments)
    arguments.out = arguments.out and arguments.out.with_name("generate_profile.json")
    report("generate_profile", profiled(model, mixed) + profiled(model, uniform), arguments, PROFILE_NOTES)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    main(options.parse_args())
