"""Rows of the embedding: one for every id of the tokenizer, PAD included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lodestar.errors import ModelError
from lodestar.model.tokenizers import Vocabulary, check_rows


def make_room(model: PreTrainedModel, vocabulary: Vocabulary, path: str | Path) -> None:
    """Give PAD a row where it lies behind the model's vocabulary; the row is the mean of the others and never used.

    Only PAD may lie there: a mean says nothing about a token that is read.

    Raises:
        ModelError: the tokenizer has other ids that the embedding has no rows for.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    check_rows(vocabulary, rows, path)
    if vocabulary.tokens <= rows:
        return
    if vocabulary.pad_id is None or vocabulary.tokens != vocabulary.pad_id + 1:
        raise ModelError(f"{path}: the tokenizer has {vocabulary.tokens} ids, and the model's vocabulary is {rows}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.resize_token_embeddings(vocabulary.tokens, mean_resizing=False)
        modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
        for module in modules:
            if module is not None:
                _fill(module.weight, rows)
                if getattr(module, "bias", None) is not None:
                    _fill(module.bias, rows)


def _fill(parameter: Tensor, known: int) -> None:
    parameter[known:] = parameter[:known].mean(0)
