"""A model's weights as named tensors, digests and files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lodestar.files import replacing
from lodestar.model.classifiers import NOTE_FILE, note_of
from lodestar.model.lora import merge_lora
from lodestar.model.quiet import quiet_transformers


def named_tensors(model: Any) -> dict[str, Tensor]:
    """The weights by name, in name order, tied ones once; detached, adapters merged."""
    return {name: tensor.detach() for name, tensor in sorted(merge_lora(model).named_parameters())}


def tensor_digest(tensor: Tensor) -> str:
    """Hex sha256 of a tensor's values in memory order."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()


def tensor_digests(model: Any) -> dict[str, str]:
    """Hex sha256 of every tensor of :func:`named_tensors`."""
    return {name: tensor_digest(tensor) for name, tensor in named_tensors(model).items()}


def weights_digest(digests: Mapping[str, str]) -> str:
    """Hex sha256 over the tensors' digests, in name order: the digest of a WeightVersion."""
    return hashlib.sha256("".join(f"{name}:{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Write a folder that ``from_pretrained`` loads; adapters are merged.

    It appears whole or not at all; one that was there is replaced.
    """
    with replacing(Path(path)) as temporary:
        _write(merge_lora(model), tokenizer, temporary)


def _write(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    state = model.state_dict()
    bias = state.pop("score.bias", None)
    if bias is not None:
        model.config.score_bias = float(bias) if len(bias) == 1 else bias.tolist()
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    note = note_of(model)
    if note is not None:
        (folder / NOTE_FILE).write_text(note, encoding="utf-8")
