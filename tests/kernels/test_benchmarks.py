"""The kernels' benchmark runs, so that it cannot rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels" / "run.py"


def test_the_benchmark_runs_and_reports_every_kernel() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), "--small", "--runs", "1"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for name in ("logprob", "attention", "paged"):
        assert f"kernels-{name}" in finished.stdout
