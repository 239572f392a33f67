"""Compile every kernel for Hopper (sm_90) without a GPU and report registers, spills and shared memory.

    python benchmarks/kernels/compile_sm90.py [--all] [--only NAME] [--json FILE]

Each kernel is compiled with the blocks that a call would choose (`--all`: with every candidate of the tuners), for the
problems of `cases`. Exits with 1 when a default choice spills registers or asks for more shared memory than a Hopper
block can have. It says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from lodestar_kernels.attention import flash
from lodestar_kernels.attention import kernel as attention_kernels
from lodestar_kernels.logprob import kernel as logprob_kernels
from lodestar_kernels.paged_attention import kernel as paged_kernels
from lodestar_kernels.paged_attention import split_kv
from lodestar_kernels.tuning import Blocks, Tuner
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER_SHARED_BYTES = 227 << 10
# float32 products are three tf32 products each; at head dimension 256 no tile is small enough for them.
SPILL_ALLOWANCE = {"bf16": 0, "fp32": 1024}
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
FLOAT32_POINTERS = (
    "inverse_temperature_ptr", "max_ptr", "sum_ptr", "moment_ptr", "target_score_ptr", "log_sum_ptr", "entropy_ptr",
    "grad_logprob_ptr", "grad_entropy_ptr", "grad_lse_ptr", "lse_ptr", "delta_ptr", "part_ptr", "part_lse_ptr",
)  # fmt: skip
INT32_POINTERS = ("cu_ptr", "tiles_ptr", "tables_ptr", "context_ptr")
INT64_POINTERS = ("targets_ptr", "slots_ptr")
UNALIGNED = ("first", "width", "window", "tokens", "splits", "part_rows", "table_stride")


@dataclass(frozen=True)
class Case:
    """One kernel with its constants; `default` marks the blocks that a call without tuning uses."""

    kernel: str
    label: str
    dtype: str
    constants: dict[str, Any]
    warps: int
    stages: int
    default: bool = True


@dataclass(frozen=True)
class Report:
    """What the compiler made of a case; bytes for spills and shared memory."""

    kernel: str
    label: str
    dtype: str
    warps: int
    stages: int
    default: bool
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: str

    @property
    def fits(self) -> bool:
        """No spills to speak of, and no more shared memory than a block can have."""
        return self.spill_bytes <= SPILL_ALLOWANCE[self.dtype] and self.shared_bytes <= HOPPER_SHARED_BYTES


def cases(every_candidate: bool) -> Iterator[Case]:
    """All kernels: log-prob with and without its options, attention and paged attention for every head dimension."""
    for options in (False, True):
        flags = {"HAS_BIAS": options, "HAS_TEMPERATURE": options, "ENTROPY": options, "BLOCK_V": 4096}
        yield Case("accumulate_statistics", f"options={options}", "fp32", flags, 8, 3)
        flags = {"HAS_BIAS": options, "HAS_TEMPERATURE": options, "GRAD_LOGPROB": True, "BLOCK_V": 2048}
        flags |= {"GRAD_ENTROPY": options, "GRAD_LSE": options}
        yield Case("score_gradient", f"options={options}", "fp32", flags, 4, 3)
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        for dim in HEAD_DIMS:
            yield from _attention_cases(dtype, size, dim, every_candidate)
            yield from _paged_cases(dtype, size, dim, every_candidate)


def _candidates(tuner: Tuner, key: tuple[Any, ...], every_candidate: bool) -> Iterator[tuple[Blocks, bool]]:
    for place, blocks in enumerate(tuner.candidates(key)):
        if place == 0 or every_candidate:
            yield blocks, place == 0


def _attention_cases(dtype: str, size: int, dim: int, every_candidate: bool) -> Iterator[Case]:
    shape = {"GROUP": 4, "D": dim, "BLOCK_D": flash.padded_dim(dim)}
    for windowed in (False, True):
        mask = shape | {"CAUSAL": True, "WINDOWED": windowed, "PRECISION": flash.PRECISION}
        key = (dim, size, True, windowed)
        for name, tuner in (
            ("attention_forward", flash.FORWARD),
            ("attention_key_gradient", flash.KEY_GRADIENT),
            ("attention_query_gradient", flash.QUERY_GRADIENT),
        ):
            for blocks, default in _candidates(tuner, key, every_candidate):
                constants = mask | {"BLOCK_M": blocks.rows, "BLOCK_N": blocks.columns}
                label = f"D={dim} {blocks.rows}×{blocks.columns}{' window' if windowed else ''}"
                yield Case(name, label, dtype, constants, blocks.warps, blocks.stages, default)
    yield Case("output_dot_gradient", f"D={dim}", dtype, {"D": dim, "BLOCK_D": shape["BLOCK_D"], "BLOCK_M": 64}, 4, 3)


def _paged_cases(dtype: str, size: int, dim: int, every_candidate: bool) -> Iterator[Case]:
    group, page = 8, 16
    shape = {"GROUP": group, "D": dim, "BLOCK_D": flash.padded_dim(dim)}
    for split, tuner in ((split_kv.SPLIT, split_kv.DECODE), (0, split_kv.PREFILL)):
        for blocks, default in _candidates(tuner, (dim, size, group, page, False), every_candidate):
            constants = shape | {"BLOCK_M": blocks.rows, "BLOCK_N": blocks.columns, "PAGE": page, "SPLIT": split}
            constants |= {"WINDOWED": False, "PRECISION": flash.PRECISION}
            label = f"D={dim} {blocks.rows}×{blocks.columns} {'decode' if split else 'prefill'}"
            yield Case("paged_attention_forward", label, dtype, constants, blocks.warps, blocks.stages, default)
    reduce = shape | {"SPLIT": split_kv.SPLIT, "BLOCK_S": split_kv.REDUCE_BLOCK}
    yield Case("reduce_splits", f"D={dim}", dtype, reduce, 4, 3)
    write = {"HEADS": 8, "D": dim, "BLOCK_D": shape["BLOCK_D"], "BLOCK_H": 8, "PAGE": page}
    yield Case("write_cache", f"D={dim}", dtype, write, 4, 3)


def compile_case(case: Case) -> Report:
    """Compile one case with Triton, and assemble its PTX once more for ptxas's own report."""
    for module in (logprob_kernels, attention_kernels, paged_kernels):
        function = getattr(module, case.kernel, None)
        if function is not None:
            break
    signature, aligned = {}, {}
    for place, name in enumerate(function.arg_names):
        signature[name] = "constexpr" if name in case.constants else _type(name, case)
        if signature[name] not in ("constexpr", "fp32") and name not in UNALIGNED:
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=case.constants, attrs=aligned)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, spills = _assemble(ptx)
    product = next((name for name in ("wgmma", "mma.sync") if name in ptx), "")
    return Report(
        case.kernel, case.label, case.dtype, case.warps, case.stages, case.default,
        registers, spills, compiled.metadata.shared, product,
    )  # fmt: skip


def _type(name: str, case: Case) -> str:
    if name in INT32_POINTERS:
        return "*i32"
    if name in INT64_POINTERS:
        return "*i64"
    if name in FLOAT32_POINTERS:
        return "*fp32"
    if name.endswith("_ptr"):
        return "*bf16" if case.kernel == "score_gradient" and name == "out_ptr" else f"*{case.dtype}"
    return "fp32" if name.startswith("scale") else "i32"


def _assemble(ptx: str) -> tuple[int, int]:
    """Registers per thread and bytes of spilled stores and loads."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        ptxas = triton.knobs.nvidia.ptxas.path
        command = [ptxas, "-v", "--gpu-name=sm_90a", str(source), "-o", str(Path(folder) / "kernel.cubin")]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
    registers = re.search(r"Used (\d+) registers", text)
    return int(registers.group(1)) if registers else 0, spills


def main() -> int:
    """Compile, print a table, and tell whether every default fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every candidate of the tuners, not only the defaults")
    parser.add_argument("--only", default="", help="kernels and labels that contain this text")
    parser.add_argument("--json", type=Path, help="also write the reports to this file")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at once (default 2)")
    arguments = parser.parse_args()
    chosen = [case for case in cases(arguments.all) if arguments.only in f"{case.kernel} {case.dtype} {case.label}"]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        reports = list(pool.map(compile_case, chosen))
    print(f"{'kernel':<26}{'problem':<34}{'dtype':<7}{'warps':>5}{'stages':>7}{'regs':>6}{'spill':>7}{'shared':>9}")
    for report in reports:
        print(
            f"{report.kernel:<26}{report.label:<34}{report.dtype:<7}{report.warps:>5}{report.stages:>7}"
            f"{report.registers:>6}{report.spill_bytes:>7}{report.shared_bytes:>9}  {report.instructions}"
            f"{'' if report.fits else '  DOES NOT FIT'}{'' if report.default else '  (candidate)'}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=1) + "\n")
    return int(any(report.default and not report.fits for report in reports))


if __name__ == "__main__":
    sys.exit(main())
