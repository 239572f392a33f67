"""The kernels against what torch (and Liger, where it is installed) offers, on a GPU when there is one, else on a CPU.

    python benchmarks/kernels/run.py [--only logprob|attention|paged] [--small] [--runs N]

On a GPU: the shapes of kernels/README.md's goals, in bfloat16, with rates against the arithmetic or the measured copy
bandwidth. On a CPU: the shapes of a small model's PPO update, in float32. `--small` takes seconds and writes nothing.
A peer that refuses a shape (cuDNN and grouped heads, say) is left out of its row, and said so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lodestar_kernels.attention import PackedLayout, attention
from lodestar_kernels.backend import Backend
from lodestar_kernels.logprob import logprobs, token_loss
from lodestar_kernels.paged_attention import PagedLayout, paged_attention
from lodestar_kernels.warm_up import warm_up_attention, warm_up_paged_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import alternate, median_ratio, parser, report

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
Row = dict[str, Any]


def timer(work: Callable[[], object]) -> Callable[[], float]:
    """Milliseconds of one run, after a first one that compiles and allocates.

    On a GPU runs follow each other for 20 ms or more: one alone would be timed with the launches of its kernels.
    """
    work()
    if DEVICE == "cpu":

        def clock() -> float:
            began = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - began)

        return clock

    def measure(repeats: int = 1) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    repeats = max(1, round(20 / measure()))
    return lambda: measure(repeats)


def compared(runs: int, shape: str, work: dict[str, Callable[[], object]], rate: float, unit: str) -> Row:
    """Medians of every piece of work in turn, our rate, and how many times slower the others are.

    rate: what one run does, in 10¹² operations or 10⁹ bytes.
    """
    timers = {"ours": timer(work["ours"])}
    for name, function in work.items():
        try:
            timers.setdefault(name, timer(function))
        except (RuntimeError, ValueError) as error:  # how peers say that they do not take a shape
            if name == "ours":
                raise
            print(f"{shape}: without {name}: {str(error).splitlines()[0]}", file=sys.stderr)
    figures = alternate(runs, **timers)
    ours = statistics.median(figures["ours"])
    row: Row = {"shape": shape, "ours ms": ours, unit: rate / ours * 1e3}
    for name in work:
        if name != "ours":
            ran = name in figures
            row[f"{name} ms"] = statistics.median(figures[name]) if ran else "refused"
            row[f"{name} ÷ ours"] = median_ratio(figures[name], figures["ours"]) if ran else "—"
    return row


def logprob_work(tokens: int, hidden: int, vocab: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of the log-probs of the targets, from hidden states."""
    torch.manual_seed(0)
    hidden_TH = torch.randn(tokens, hidden, device=DEVICE, dtype=DTYPE, requires_grad=True)
    weight_VH = (torch.randn(vocab, hidden, device=DEVICE, dtype=DTYPE) * hidden**-0.5).requires_grad_()
    targets_T = torch.randint(vocab, (tokens,), device=DEVICE)
    upstream_T = torch.randn(tokens, device=DEVICE)

    def ours() -> object:
        logprobs_T = logprobs(hidden_TH, weight_VH, targets_T).logprobs_T
        return torch.autograd.grad(logprobs_T, (hidden_TH, weight_VH), upstream_T)

    def dense() -> object:
        logp_TV = torch.log_softmax((hidden_TH @ weight_VH.T).float(), dim=-1)
        logprobs_T = logp_TV.gather(1, targets_T[:, None])[:, 0]
        return torch.autograd.grad(logprobs_T, (hidden_TH, weight_VH), upstream_T)

    def inside() -> object:
        total, _ = token_loss(hidden_TH, weight_VH, targets_T, lambda chunk, lp_C, _: (lp_C * upstream_T[chunk]).sum())
        return torch.autograd.grad(total, (hidden_TH, weight_VH))

    work: dict[str, Callable[[], object]] = {"ours": ours, "torch": dense}
    if DEVICE == "cpu":  # on a GPU it is the same as ours
        work["token_loss"] = inside
    if DEVICE == "cuda":
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
        except ImportError:
            return work
        loss = LigerFusedLinearCrossEntropyLoss()
        work["liger"] = lambda: torch.autograd.grad(loss(weight_VH, hidden_TH, targets_T), (hidden_TH, weight_VH))
    return work


def extra_memory(shape: tuple[int, int, int], name: str) -> int:
    """Bytes that one run needs at its peak beyond the inputs; on a CPU in a process of its own."""
    if DEVICE == "cuda":
        work = logprob_work(*shape)[name]
        work()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident_peak, (shape, name))


def _resident_peak(shape: tuple[int, int, int], name: str) -> int:
    logprob_work(64, 8, 8)[name]()
    work = logprob_work(*shape)[name]
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def logprob_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Several vocabularies; on a GPU the goal's 16,384 × 4096 × 131,072."""
    if arguments.small:
        shapes = [(256, 32, 500)]
    elif DEVICE == "cuda":
        shapes = [(16384, 4096, 131072), (16384, 4096, 32000), (8192, 2048, 151936)]
    else:
        shapes = [(3072, 256, 1024), (1024, 512, 8192), (512, 512, 50257), (2048, 512, 50257)]
    for shape in shapes:
        tokens, hidden, vocab = shape
        work = logprob_work(*shape)
        # Four products are what a backward that keeps no [T, V] has to do; who keeps one or a chunk does three.
        row = compared(arguments.runs, "×".join(map(str, shape)), work, 8 * tokens * hidden * vocab / 1e12, "TFLOP/s")
        names = list(work)
        del work
        gradients = (tokens + vocab) * hidden * DTYPE.itemsize
        for name in names:
            row[f"{name} MiB"] = (extra_memory(shape, name) - gradients) / 2**20
        yield row


def attention_work(lengths: list[int], heads: int, key_heads: int, dim: int, part: str) -> dict[str, Any]:
    """Causal attention over packed sequences; the peers get the layout that suits them best.

    part: "forward", "backward" (alone) or "both".
    """
    backward = part != "forward"
    torch.manual_seed(0)
    layout = PackedLayout.from_lengths(lengths, DEVICE)
    shapes = ((heads, dim), (key_heads, dim), (key_heads, dim))
    packed = [torch.randn(layout.tokens, *s, device=DEVICE, dtype=DTYPE, requires_grad=backward) for s in shapes]
    rows = [
        torch.nn.utils.rnn.pad_sequence(x.detach().split(lengths), batch_first=True).transpose(1, 2) for x in packed
    ]
    padded = [x.requires_grad_(backward) for x in rows]
    gqa = heads != key_heads

    def run(inputs: list[Tensor], forward: Callable[..., Tensor]) -> Callable[[], object]:
        if not backward:
            return torch.no_grad()(lambda: forward(*inputs))
        out = forward(*inputs)
        upstream = torch.randn_like(out)
        if part == "backward":
            return lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True)
        return lambda: torch.autograd.grad(forward(*inputs), inputs, upstream)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)

    def pinned(backend: SDPBackend) -> Callable[..., Tensor]:
        def forward(*x: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return sdpa(*x)

        return forward

    def ours(backend: Backend | None = None, **options: Any) -> Callable[..., Tensor]:
        return lambda *x: attention(*x, layout=layout, backend=backend, **options)

    kinds: dict[str, tuple[list[Tensor], Callable[..., Tensor]]]
    if DEVICE == "cpu":
        kinds = {"ours": (packed, ours()), "padded SDPA": (padded, sdpa)}
        kinds["SDPA per sequence"] = (packed, ours(per_sequence=True))
    else:
        kinds = {"ours": (packed, ours("triton")), "FA2, packed": (packed, ours("torch"))}
        kinds["FA2"] = (padded, pinned(SDPBackend.FLASH_ATTENTION))
        kinds["cuDNN"] = (padded, pinned(SDPBackend.CUDNN_ATTENTION))
    # The graph that a backward alone needs is made when it is first called, so that a peer's refusal is its own.
    return {name: _prepared(run, *kind) for name, kind in kinds.items()}


def _prepared(run: Callable[..., Callable[[], object]], *arguments: Any) -> Callable[[], object]:
    made: list[Callable[[], object]] = []

    def work() -> object:
        if not made:
            made.append(run(*arguments))
        return made[0]()

    return work


def attention_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Forward alone, and forward with backward."""
    uneven = [30 + 37 * i % 71 for i in range(64)]
    if arguments.small:
        shapes = [([5, 9, 20], 2, 1, 16)]
    elif DEVICE == "cuda":
        shapes = [([16384], 16, 16, 128), ([4096] * 4, 32, 8, 128), ([1024] * 16, 32, 8, 128), ([16384], 32, 32, 64)]
        shapes += [([512 + 331 * i % 3585 for i in range(16)], 32, 8, 128)]
    else:
        shapes = [(uneven, 4, 4, 64), (uneven, 4, 2, 64), ([256] * 8, 4, 4, 64), ([1024] * 2, 4, 4, 64)]
    for lengths, heads, key_heads, dim in shapes:
        if DEVICE == "cuda" and not arguments.small:
            warm_up_attention(heads, key_heads, dim, DTYPE, DEVICE, train=True, tune=True)
        operations = sum(2 * n * n for n in lengths) * heads * dim / 1e12
        # In forwards: a backward has two and a half times the products.
        parts = {"forward": 1.0, "both": 3.5} | ({"backward": 2.5} if DEVICE == "cuda" else {})
        for part, products in parts.items():
            work = attention_work(lengths, heads, key_heads, dim, part)
            label = f"{len(lengths)} × ≤{max(lengths)}, {heads}/{key_heads} heads of {dim}, "
            label += "forward + backward" if part == "both" else part
            yield compared(arguments.runs, label, work, operations * products, "TFLOP/s")


def paged_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Decode: bytes of the contexts' keys and values per second, beside a copy of as many bytes."""
    if arguments.small:
        shapes = [(2, 40, 2, 1, 16)]
    elif DEVICE == "cuda":
        shapes = [(64, 4096, 64, 8, 128), (1, 131072, 64, 8, 128), (256, 1024, 32, 8, 128)]
    else:
        shapes = [(16, 256, 4, 4, 64), (1, 2048, 4, 4, 64)]
    for batch, context, heads, key_heads, dim in shapes:
        pages = -(-context // 16)
        caches = torch.randn(2, batch * pages, 16, key_heads, dim, device=DEVICE, dtype=DTYPE)
        tables_BP = torch.randperm(batch * pages, device=DEVICE).view(batch, pages).int()
        layout = PagedLayout.from_lengths([1] * batch, [context] * batch, tables_BP)
        q_TND = torch.randn(batch, heads, dim, device=DEVICE, dtype=DTYPE)
        if DEVICE == "cuda" and not arguments.small:
            warm_up_paged_attention(heads, *caches, tune=True)
        target = torch.empty_like(caches[0])
        work = {
            "ours": lambda q=q_TND, c=caches, of=layout: paged_attention(q, *c, of),
            "copy of as many bytes": lambda t=target, c=caches: t.copy_(c[0]),  # reads half of them and writes half
        }
        label = f"batch {batch}, context {context}, {heads}/{key_heads} heads of {dim}"
        yield compared(arguments.runs, label, work, caches.nbytes / 1e9, "GB/s")


def _liger() -> str:
    try:
        return f", liger-kernel {metadata.version('liger-kernel')}"
    except metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Run what was asked for, and report."""
    options = parser(__doc__)
    options.add_argument("--only", choices=["logprob", "attention", "paged"], help="one of the three")
    arguments = options.parse_args()
    for name, rows in (("logprob", logprob_rows), ("attention", attention_rows), ("paged", paged_rows)):
        if arguments.only in (None, name):
            where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
            note = f"{where}, {DTYPE}{_liger()}. “÷ ours” above 1: ours is faster."
            report(f"kernels-{name}-{DEVICE}", list(rows(arguments)), arguments, note)


if __name__ == "__main__":
    main()
