"""Warm-up runs every kernel that a service calls later, and tuning measures every candidate of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton
from lodestar_kernels import tuning, warm_up
from lodestar_kernels.attention import flash
from lodestar_kernels.paged_attention import split_kv
from lodestar_kernels.warm_up import warm_up_attention, warm_up_logprob, warm_up_paged_attention

TUNERS = (flash.BACKEND, flash.FORWARD, flash.KEY_GRADIENT, flash.QUERY_GRADIENT, split_kv.DECODE, split_kv.PREFILL)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the tuners that timed something; problems are small and choices go to an empty folder."""
    names: list[str] = []
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(warm_up, "TUNING_TOKENS", 16)
    monkeypatch.setattr(warm_up, "TUNING_CONTEXT", 20)
    monkeypatch.setattr(warm_up, "TUNING_SEQUENCES", 2)
    for tuner in TUNERS:

        def time(run: Callable[[], object], name: str = tuner.name) -> float:
            names.append(name)
            run()
            return 1.0

        monkeypatch.setattr(tuner, "time", time)
        monkeypatch.setattr(tuner, "_chosen", {})
    return names


def test_tuning_measures_every_kernel_of_training_and_generation(measured: list[str], device: str) -> None:
    warm_up_attention(2, 1, 16, torch.float32, device, train=True, tune=True)
    caches = torch.zeros(2, 4, 16, 1, 16, device=device)
    warm_up_paged_attention(2, *caches, tune=True)
    assert set(measured) == {tuner.name for tuner in TUNERS}


def test_warm_up_without_tuning_measures_nothing(measured: list[str], device: str) -> None:
    warm_up_attention(1, 1, 16, torch.float32, device, train=False)
    warm_up_logprob(8, 50, torch.float32, device, train=True)
    warm_up_paged_attention(1, *torch.zeros(2, 3, 16, 1, 16, device=device))
    assert measured == []


def test_warm_up_does_nothing_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    monkeypatch.setattr(warm_up, "interpreted", lambda: False)
    monkeypatch.setattr(warm_up, "attention", None)
    warm_up_attention(2, 1, 16, torch.float32, "cpu", train=True, tune=True)
