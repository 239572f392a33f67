"""Kernels compile for Hopper without a GPU, within its registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels" / "compile_sm90.py"


def compile_for_hopper(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    target = tmp_path / "reports.json"
    command = [sys.executable, str(SCRIPT), "--json", str(target), *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(target.read_text())


def test_small_kernels_compile_for_hopper_without_spills(tmp_path: Path) -> None:
    reports = compile_for_hopper(tmp_path, "--only", "score_gradient", "--jobs", "1")
    assert len(reports) == 2
    for report in reports:
        assert report["spill_bytes"] == 0
        assert 0 < report["registers"] <= 255


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_default_choice_fits_a_hopper_block(tmp_path: Path) -> None:
    reports = compile_for_hopper(tmp_path)
    assert {report["kernel"] for report in reports} >= {"attention_forward", "paged_attention_forward"}
    half = [r for r in reports if r["dtype"] == "bf16" and r["kernel"] == "attention_forward"]
    assert all(report["instructions"] == "wgmma" for report in half)
