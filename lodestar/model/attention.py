"""Plugs our attention into unmodified Hugging Face models.

Every model is loaded with ``attn_implementation=NAME``. Its layers then call :func:`attend`, which hands the
queries, keys and values to the :class:`AttentionContext` that the caller passed to the forward call as the
keyword ``attention_context``: packed sequences when training or scoring, the KV cache when generating. One model
definition therefore serves the generator, the reference model and the learner.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from lodestar.errors import ModelError

NAME = "lodestar"
"""Without "flash" in it: transformers dispatches on substrings."""


class AttentionContext(Protocol):
    """Attention over one forward call's tokens, which lie packed one after another."""

    def attend(
        self,
        layer: int,
        q_TND: Tensor,
        k_TMD: Tensor,
        v_TMD: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Causal attention within each sequence; returns out_TND. M key/value heads divide N query heads."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    attention_context: AttentionContext | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls per layer: q [1, N, T, D], k and v [1, M, T, D] → out [1, T, N, D].

    Raises:
        ModelError: no context was passed, or the model asks for something our attention does not compute.
    """
    if attention_context is None:
        raise ModelError("the model was called without attention_context; call it through lodestar.model.packed")
    for option in ("softcap", "s_aux", "position_bias"):
        if unsupported.get(option) is not None:
            raise ModelError(f"{type(module).__name__} needs {option}, which Lodestar's attention does not compute")
    if dropout:
        raise ModelError("attention dropout must be 0: PPO's ratios need log-probs without noise")
    if query.dtype != value.dtype:  # under autocast the rotary embedding leaves queries and keys in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    layer: int = module.layer_idx  # type: ignore[assignment]
    out_TND = attention_context.attend(
        layer,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
    )
    return out_TND.unsqueeze(0), None


AttentionInterface.register(NAME, attend)
