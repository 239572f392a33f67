"""Scalar heads: from a language model to a reward model or critic."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from lodestar.errors import ModelError
from lodestar.model.attention import NAME as ATTENTION
from lodestar.model.classifiers import ensure_classifier
from lodestar.model.tokenizers import end_ids


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The [A, H] head of a sequence-classification model of A labels.

    Raises:
        ModelError: the class keeps its head elsewhere.
    """
    head = getattr(model, "score", None)
    adapted = getattr(head, "modules_to_save", None)  # PEFT keeps the trainable head beside the original
    if adapted is not None:
        head = adapted["default"]
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(model).__name__} has no linear head named score")
    return head


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """The [1, H] head of a sequence-classification model.

    Raises:
        ModelError: the class keeps its head elsewhere or has more than one label.
    """
    head = getattr(model, "score", None)
    if head is None or score_head(model).out_features != 1:
        raise ModelError(f"{type(model).__name__} has no linear head of one label named score")
    return score_head(model)


def scalar_from_causal_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, labels: Sequence[str] = ("reward",)
) -> PreTrainedModel:
    """Copy a language model's trunk under a new head of one score per label.

    The head is drawn from N(0, 1/(H + 1)) with zero bias (Stiennon et al. 2020): scores start with unit variance at
    most and no preference. Weights are copies; ``model`` is not touched.

    Raises:
        ModelError: the architecture's trunk takes no linear head (see lodestar.model.classifiers).
    """
    config = copy.deepcopy(model.config)
    config.num_labels = len(labels)
    if len(labels) > 1:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    config.pad_token_id = tokenizer.pad_token_id
    ends = sorted(end_ids(model, tokenizer))
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    config.score_bias = 0.0 if len(labels) == 1 else [0.0] * len(labels)
    config._attn_implementation = ATTENTION
    ensure_classifier(config)
    try:
        with torch.random.fork_rng(devices=[]):
            scalar = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, AssertionError) as error:
        raise ModelError(f"{type(model).__name__} cannot be given a scalar head: {error}") from error
    parameter = next(model.parameters())
    scalar = scalar.to(device=parameter.device, dtype=parameter.dtype).eval()
    scalar.base_model.load_state_dict(model.base_model.state_dict())
    head = score_head(scalar)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(head.weight.shape, generator=generator) / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        head.weight.copy_(weight)
    head.bias = nn.Parameter(torch.zeros(len(labels), device=parameter.device, dtype=parameter.dtype))
    return scalar  # type: ignore[no-any-return]


def restore_bias(model: PreTrainedModel, path: str | Path) -> None:
    """Give a loaded scalar model its bias back: ``score_bias`` of its config, 0 where another program made it.

    Raises:
        ModelError: no scalar head, or a bias that is not a number.
    """
    scalar_head(model)
    bias = getattr(model.config, "score_bias", 0.0)
    if not isinstance(bias, (int, float)):
        raise ModelError(f"{path}: score_bias in config.json must be a finite number, got {bias!r}")
    restore_biases(model, path)


def restore_biases(model: PreTrainedModel, path: str | Path) -> None:
    """As restore_bias for a head of K labels; ``score_bias`` is a number for all or a list of K.

    Raises:
        ModelError: a bias that is not a number, or another count of them than labels.
    """
    head = cast(nn.Linear, model.score)
    bias = getattr(model.config, "score_bias", 0.0)
    biases = list(bias) if isinstance(bias, (list, tuple)) else [bias] * head.out_features
    if len(biases) != head.out_features or not all(
        isinstance(one, (int, float)) and math.isfinite(one) for one in biases
    ):
        raise ModelError(
            f"{path}: score_bias in config.json must be a finite number, or {head.out_features} of them, got {bias!r}"
        )
    if getattr(head, "bias", None) is None:
        head.bias = nn.Parameter(torch.tensor(biases, device=head.weight.device, dtype=head.weight.dtype))
