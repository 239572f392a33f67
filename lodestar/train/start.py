"""What the supervised stages have in common: the start model, the computation's precision, what a saved state is of."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.config import ModelConfig, TrainingConfig
from lodestar.model.fused import fuse
from lodestar.model.loading import apply_lora, load_causal_lm, new_causal_lm, resolve_device
from lodestar.model.weights import tensor_digests, weights_digest


def start_model(
    config: ModelConfig, path: Path | None, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """The model at ``path``, else a Llama of ``config.architecture`` from nothing.

    Weights are float32 always; ``config.dtype`` is the precision of the computation (see precision).
    """
    device = str(resolve_device(config.device))
    if path is not None:
        return load_causal_lm(path, device=device)
    return cast(PreTrainedModel, new_causal_lm(config.architecture, tokenizer, seed).to(device))  # type: ignore[arg-type]


def trainable(config: ModelConfig, model: PreTrainedModel) -> Any:
    """The model as a stage trains it: with adapters if the run asks for them, else fused where it can be."""
    if config.lora and config.path:
        return apply_lora(model, config.lora)
    if config.dtype == "float32":
        fuse(model)
    return model


def precision(config: ModelConfig) -> AbstractContextManager[Any]:
    """Automatic mixed precision when ``dtype`` is bfloat16: float32 weights, bfloat16 products."""
    if config.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(resolve_device(config.device).type, dtype=torch.bfloat16)


def identity(config: TrainingConfig, seed: int, model: PreTrainedModel, *rows: Sequence[Any]) -> dict[str, str]:
    """Digests of all that an interrupted training's state depends on."""
    settings = json.dumps([config.model_dump(mode="json", exclude={"use"}), seed], sort_keys=True)
    return {
        "configuration": hashlib.sha256(settings.encode()).hexdigest(),
        "data": hashlib.sha256(repr(rows).encode()).hexdigest(),
        "start model": weights_digest(tensor_digests(model)),
    }
