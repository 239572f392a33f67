"""Every kernel under compute-sanitizer: no access outside its tensors, no uninitialised or misaligned one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "values_and_gradients or head_dimensions or masks_equal or decode_and_chunked or writes_land"


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer of the CUDA toolkit")
def test_kernels_touch_only_their_own_memory() -> None:
    pytest_command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-k", SMALL, "--timeout", "1500"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor is an allocation of its own
    finished = subprocess.run(
        ["compute-sanitizer", "--error-exitcode", "9", *pytest_command], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
