"""From the LM head's product to logits: which ids may be sampled, and the scale and soft cap of an architecture.

Models of the Llama kind end in a linear map. Granite divides what it gives, Cohere multiplies it, Gemma 2 and later
ones cap it (Gemma Team 2024, section 2): logits = cap(scale · (W h + b)) with cap(z) = c · tanh(z / c).

Many models have more rows in W than their tokenizer has tokens. Such an id has no text: it is never sampled, and the
policy's distribution is over the others, in the engine, the reference and the learner alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lodestar.errors import ModelError
from lodestar.model.lora import plain
from lodestar.model.tokenizers import Vocabulary


@dataclass(frozen=True, slots=True)
class LogitRule:
    """``LogitRule(scale=1 / 13, softcap=None)``: what happens to the LM head's product."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, product: Tensor) -> Tensor:
        """The logits of a product W h + b."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def kernel_softcap(self) -> float | None:
        """The cap of the unscaled product: c·tanh(s·z / c) / τ is (c/s)·tanh(z / (c/s)) / (τ/s)."""
        return None if self.softcap is None else self.softcap / self.scale

    def temperature(self, temperature: float) -> float:
        """The temperature of the unscaled product, see ``kernel_softcap``."""
        return temperature / self.scale


def logit_rule(config: Any) -> LogitRule:
    """By the names that configurations use for it; lodestar.model.probe compares it with what the model computes.

    Raises:
        ModelError: a scale or cap that is not a positive number.
    """
    shape = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= _positive(shape, name) or 1.0
    scale /= _positive(shape, "logits_scaling") or 1.0
    return LogitRule(scale, _positive(shape, "final_logit_softcapping"))


def _positive(shape: Any, name: str) -> float | None:
    value = getattr(shape, name, None)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not value > 0:
        raise ModelError(f"config.json: {name} must be a positive number, got {value!r}")
    return float(value)


def lm_head(model: Any) -> nn.Linear:
    """The linear map from hidden states to logits.

    Raises:
        ModelError: the model's last map is something else.
    """
    head = plain(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    head = getattr(head, "base_layer", head)  # PEFT's, where the head has an adapter
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(plain(model)).__name__} has no linear LM head")
    return head


def set_vocabulary(model: PreTrainedModel, vocabulary: Vocabulary | None) -> None:
    """Leave ids without text out of the model's distribution; None, and a tokenizer of all rows, leave none out."""
    rows = lm_head(model).weight.shape[0]
    partial = vocabulary is not None and (vocabulary.size < rows or vocabulary.holes)
    model.lodestar_vocabulary = vocabulary if partial else None  # type: ignore[assignment]


def sampled_ids(model: Any) -> int:
    """Ids below it may be sampled."""
    vocabulary: Vocabulary | None = getattr(plain(model), "lodestar_vocabulary", None)
    return lm_head(model).weight.shape[0] if vocabulary is None else vocabulary.size


def ids_without_text(model: Any) -> tuple[int, ...]:
    """Ids below :func:`sampled_ids` that may not be sampled either."""
    vocabulary: Vocabulary | None = getattr(plain(model), "lodestar_vocabulary", None)
    return () if vocabulary is None else vocabulary.holes


def head_parameters(model: Any, *, whole: bool = False) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias [V] of the head over the ids that may be sampled, or over the ``whole`` vocabulary.

    A bias of −inf takes out ids without text that lie between others.
    """
    head = lm_head(model)
    weight_VH, bias_V = head.weight, getattr(head, "bias", None)
    adapted: Any = plain(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    if adapted is not head:  # an update W + BA of the whole head: its gradient goes to A and B
        weight_VH = weight_VH + adapted.get_delta_weight(adapted.active_adapters[0])
    vocabulary: Vocabulary | None = getattr(plain(model), "lodestar_vocabulary", None)
    if vocabulary is None or whole:
        return weight_VH, bias_V
    weight_VH = weight_VH[: vocabulary.size]
    bias_V = None if bias_V is None else bias_V[: vocabulary.size]
    if holes := ids_without_text(model):
        bias_V = weight_VH.new_zeros(len(weight_VH)) if bias_V is None else bias_V
        bias_V = bias_V.index_fill(0, torch.tensor(holes, device=bias_V.device), -torch.inf)
    return weight_VH, bias_V
