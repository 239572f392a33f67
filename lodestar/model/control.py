"""Adds control tokens to a language model and its tokenizer (lodestar.data.control says what they are for)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodestar.data.control import KEY, Control
from lodestar.errors import ConfigError
from lodestar.model.logits import set_vocabulary
from lodestar.model.tokenizers import Vocabulary


def add_control_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], *, key: str, seed: int
) -> Control:
    """Gives the model control tokens, the best first; one that has just these is left as it is.

    Their rows of the embedding are drawn from ``seed`` with mean and variance of all others (Hewitt 2021,
    "Initializing New Word Embeddings"), so that they differ before anything is learned, adapters or not. An LM head of
    its own gets the mean of its rows: no control token is ever sampled (lodestar.model.logits).

    Args:
        key: of the option that names them, for the refusal.

    Raises:
        ConfigError: a token that the tokenizer has already, or the model is conditioned on others.
    """
    present = Control.of(tokenizer)
    if present.names == tuple(names):
        return present
    if present.names:
        raise ConfigError(
            key, f"are {', '.join(names)}, and the model is conditioned on {', '.join(present.names)} already"
        )
    if len(set(names)) < len(names):
        raise ConfigError(key, f"must all be different, are {', '.join(names)}")
    known = tokenizer.get_vocab()
    if taken := [name for name in names if name in known]:
        raise ConfigError(
            key, f"{taken[0]!r} is a token of this model already (id {known[taken[0]]}); give it another name"
        )
    text = sorted(known.values())
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.init_kwargs[KEY] = list(names)
    control, vocabulary = Control.of(tokenizer), Vocabulary.of(tokenizer)
    embedding: Any = model.get_input_embeddings()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if vocabulary.tokens > len(embedding.weight):
            model.resize_token_embeddings(vocabulary.tokens, mean_resizing=False)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is not None and head.weight is not embedding.weight:
            _to_mean(head.weight, control.ids, text)
        if head is not None and getattr(head, "bias", None) is not None:
            _to_mean(head.bias, control.ids, text)
        _draw(embedding.weight, control.ids, text, seed)
    set_vocabulary(model, vocabulary)
    return control


def _to_mean(parameter: Tensor, rows: Sequence[int], others: Sequence[int]) -> None:
    parameter[list(rows)] = parameter[list(others)].mean(0)


def _draw(weight_VH: Tensor, rows: Sequence[int], others: Sequence[int], seed: int) -> None:
    known_VH = weight_VH[list(others)].float()
    noise = torch.randn(len(rows), weight_VH.shape[1], generator=torch.Generator().manual_seed(seed))
    drawn = known_VH.mean(0) + known_VH.std(0, unbiased=False) * noise.to(weight_VH.device)
    weight_VH[list(rows)] = drawn.to(weight_VH.dtype)
