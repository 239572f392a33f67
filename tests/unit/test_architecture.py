"""Imports point one way: lodestar_services → lodestar → lodestar_kernels, where log-probs and attention live."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "lodestar": ROOT / "lodestar",
    "lodestar_services": ROOT / "services" / "lodestar_services",
    "lodestar_kernels": ROOT / "kernels" / "lodestar_kernels",
}
MAY_IMPORT = {
    "lodestar_services": {"lodestar_services", "lodestar", "lodestar_kernels"},
    "lodestar": {"lodestar", "lodestar_kernels"},
    "lodestar_kernels": {"lodestar_kernels"},
}


def _imports(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    ours = set(PACKAGES)
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted((_imports(path) & ours) - MAY_IMPORT[package])
    ]
    assert not offences, "\n".join(offences)


def test_the_kernels_need_torch_and_triton_only() -> None:
    allowed = {"torch", "triton", "lodestar_kernels"} | set(sys.stdlib_module_names)
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(PACKAGES["lodestar_kernels"].rglob("*.py"))
        for name in sorted(_imports(path) - allowed)
    ]
    assert not offences, "\n".join(offences)


# What log-probs and attention are made of.
KERNEL_WORK = {
    "softmax", "log_softmax", "logsumexp", "cross_entropy", "nll_loss", "scaled_dot_product_attention",
    "multi_head_attention_forward", "varlen_attn",
}  # fmt: skip
MAY_COMPUTE = {
    "lodestar/engine/slab_attention.py": "a CPU's decode reads the slabs of the engine's own cache, where they lie",
    "lodestar/engine/sampler.py": "one exp over the logits draws the token and gives its log-prob",
    "lodestar/engine/processing.py": "top-p of a row that is to be sampled from",
    "lodestar/preference/losses.py": "over the outcomes of a comparison, not over a vocabulary",
}


def test_log_probs_and_attention_are_computed_by_the_kernels_alone() -> None:
    offences = []
    for package in ("lodestar", "lodestar_services"):
        for path in sorted(PACKAGES[package].rglob("*.py")):
            names = {
                name
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))
                for name in (getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "name", None))
            }
            where = path.relative_to(ROOT).as_posix()
            if where not in MAY_COMPUTE:
                offences += [f"{where} uses {name}" for name in sorted(names & KERNEL_WORK)]
    assert not offences, "\n".join(offences)
