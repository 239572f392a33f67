"""What the supervised stages have in common: the start model, the computation's precision, the end."""

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

from lodestar.config import RunConfig, TrainingConfig
from lodestar.layout import RunFolder
from lodestar.model.fused import fuse
from lodestar.model.loading import apply_lora, load_causal_lm, load_tokenizer, new_causal_lm, resolve_device
from lodestar.model.weights import tensor_digests, weights_digest


def policy_tokenizer(config: RunConfig, folder: RunFolder) -> PreTrainedTokenizerBase:
    """The run's tokenizer, which the data stage made: the model's own with its chat template, or one from nothing."""
    made = folder.tokenizer.exists()
    return load_tokenizer(config.model.path if config.model.path and not made else folder.tokenizer)


def start_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase, *earlier: Path) -> PreTrainedModel:
    """The first of the earlier stages' folders that is there, else ``model.path``, else a Llama from nothing.

    Weights are float32 always; ``model.dtype`` is the precision of the computation (see precision).
    """
    device = str(resolve_device(config.model.device))
    for folder in earlier:
        if folder.exists():
            return load_causal_lm(folder, device=device)
    if config.model.path is not None:
        return load_causal_lm(config.model.path, device=device)
    model = new_causal_lm(config.model.architecture, tokenizer, config.seed)
    return cast(PreTrainedModel, model.to(device))  # type: ignore[arg-type]


def trainable(config: RunConfig, model: PreTrainedModel) -> Any:
    """The model as a stage trains it: with adapters if the run asks for them, else fused where it can be."""
    if config.model.lora and config.model.path:
        return apply_lora(model, config.model.lora)
    if config.model.dtype == "float32":
        fuse(model)
    return model


def precision(config: RunConfig) -> AbstractContextManager[Any]:
    """Automatic mixed precision when ``model.dtype`` is bfloat16: float32 weights, bfloat16 products."""
    if config.model.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(resolve_device(config.model.device).type, dtype=torch.bfloat16)


def state_file(output: Path) -> Path:
    """Where a stage that writes ``output`` keeps its state until it is done."""
    return output.with_name(f"{output.name}.unfinished.pt")


def identity(config: TrainingConfig, seed: int, model: PreTrainedModel, *rows: Sequence[Any]) -> dict[str, str]:
    """Digests of all that an interrupted stage's state depends on."""
    settings = json.dumps([config.model_dump(mode="json"), seed], sort_keys=True)
    return {
        "configuration": hashlib.sha256(settings.encode()).hexdigest(),
        "data": hashlib.sha256(repr(rows).encode()).hexdigest(),
        "start model": weights_digest(tensor_digests(model)),
    }
