"""Compiles and tunes, before the first batch, the kernels that a model's forward and backward passes will call."""

from __future__ import annotations

from typing import Any

from lodestar_kernels.warm_up import warm_up_attention, warm_up_logprob

from lodestar.model.logits import head_parameters, logit_rule
from lodestar.model.lora import plain


def warm_up_kernels(model: Any, *, train: bool) -> None:
    """Attention and log-probs of ``model`` where it is; the backward, too, if ``train``. On a CPU nothing happens.

    On a GPU the first call on a kind of device measures block shapes for a minute or so; Triton's cache folder keeps
    what it found.
    """
    config = plain(model).config.get_text_config()
    parameter = next(model.parameters())
    if parameter.device.type != "cuda":
        return
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    for window in {None, getattr(config, "sliding_window", None)}:
        warm_up_attention(
            heads, kv_heads, dim, parameter.dtype, parameter.device, train=train, window=window, tune=True
        )
    weight_VH, bias_V = head_parameters(model)
    vocab, hidden = weight_VH.shape
    warm_up_logprob(
        hidden, vocab, weight_VH.dtype, parameter.device, train=train, bias=bias_V is not None,
        softcap=logit_rule(config).kernel_softcap,
    )  # fmt: skip
