"""A training server of a tiny model in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lodestar.client import TrainingClient
from lodestar.config import ArchitectureConfig
from lodestar.local.tiny import tokenizer
from lodestar.model.loading import new_causal_lm, save_model


@pytest.fixture(scope="session")
def tiny_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 words; t1 ends a text."""
    folder = tmp_path_factory.mktemp("start") / "model"
    words = tokenizer(32)
    shape = ArchitectureConfig(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, context_tokens=64)
    save_model(new_causal_lm(shape, words, seed=1), words, folder)
    return folder


@pytest.fixture(scope="session")
def training_service(start_service: Any, tiny_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    section = {"weights": str(tmp_path_factory.mktemp("weights")), "kv_cache_tokens": 4096, "max_models": 24}
    return start_service("training", model=str(tiny_start), section=section)


@pytest.fixture
def training(training_service: Any) -> Iterator[TrainingClient]:
    with TrainingClient(training_service.address) as client:
        yield client
