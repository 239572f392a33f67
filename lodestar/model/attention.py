"""Plugs our attention into unmodified Hugging Face models.

Every model is loaded with ``attn_implementation=NAME``. Its layers then call :func:`attend`, which hands the
queries, keys and values to the :class:`AttentionContext` that the caller passed to the forward call as the
keyword ``attention_context``: packed sequences when training or scoring, the KV cache when generating. One model
definition therefore serves the generator, the reference model and the learner.

A layer says what it sees in its mask, in keywords, or both. The masks that transformers would make come here as
:class:`CausalMask`, a description; everything else that a layer asks for is known by name or refused, so that nothing
is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface

from lodestar.cores import follow
from lodestar.errors import ModelError

NAME = "lodestar"
"""Without "flash" in it: transformers dispatches on substrings."""

HARMLESS = frozenset(
    {
        "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "num_items_in_batch",
        "output_attentions", "output_hidden_states", "output_router_logits", "position_embeddings", "position_ids",
        "return_dict", "seq_idx", "token_type_ids", "use_cache",
    }
)  # fmt: skip
"""Keywords of a forward call that reach its layers and ask nothing of attention."""


_EXAMINES: ContextVar[bool] = ContextVar("examined_masks", default=False)


class LayerRule(TypedDict):
    """How a layer scores keys, as the keywords of lodestar_kernels.attention."""

    scale: float
    window: int | None
    softcap: NotRequired[float]
    """See lodestar_kernels.attention.scored, as for sinks; only of layers that have them."""
    sinks_N: NotRequired[Tensor]


def scores_plainly(rule: LayerRule) -> bool:
    """Whether scores are neither capped nor beside sinks."""
    return "softcap" not in rule and "sinks_N" not in rule


class AttentionContext(Protocol):
    """Attention over one forward call's tokens, which lie packed one after another."""

    def attend(self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rule: LayerRule) -> Tensor:
        """Causal attention within each sequence; returns out_TND. M key/value heads divide N query heads."""


_CONTEXT: ContextVar[AttentionContext | None] = ContextVar("attention_context", default=None)


@contextmanager
def attending(context: AttentionContext) -> Iterator[dict[str, Any]]:
    """What a forward call is given besides its tokens; layers that drop keyword arguments find the context anyway."""
    token = _CONTEXT.set(context)
    try:
        yield {"use_cache": False, "attention_context": context}
    finally:
        _CONTEXT.reset(token)


@dataclass(frozen=True, slots=True)
class CausalMask:
    """What a layer's mask lets a token see: ``CausalMask(window=8)`` is itself and the seven tokens before it."""

    window: int | None = None
    problem: str = ""
    """Why it is no mask of this kind; empty where it is."""


def describe_mask(
    *, mask_function: Callable[..., Tensor], local_size: int | None = None, use_vmap: bool = False, **more: Any
) -> CausalMask:
    """Stands where transformers makes a mask tensor: says what the mask would let a token see.

    ``mask_function(sequence, head, query, key)`` is the rule, ``local_size`` the window or chunk in it. Under
    :func:`examined_masks` the rule is tried on pairs of positions around the window's edge.
    """
    if "allow_is_bidirectional_skip" in more:
        return CausalMask(problem="tokens see what follows them (is_causal is false)")
    if use_vmap:
        return CausalMask(problem="its mask is causal and something besides")
    if _EXAMINES.get() and not _is_causal_within(mask_function, local_size):
        return CausalMask(problem="it attends over chunks, or by another rule than to the tokens before")
    return CausalMask(window=local_size)


@contextmanager
def examined_masks() -> Iterator[None]:
    """Try the rule of every mask, not its window alone. For one sequence: of packed ones it knows where they lie."""
    token = _EXAMINES.set(True)
    try:
        yield
    finally:
        _EXAMINES.reset(token)


def _is_causal_within(mask_function: Callable[..., Tensor], window: int | None) -> bool:
    edge = 16 if window is None else window
    queries = sorted({0, 1, edge - 1, edge, edge + 1, 2 * edge - 1, 2 * edge, 2 * edge + 1})
    query_Q1 = torch.tensor([query for query in queries if query >= 0])[:, None]
    key_QK = torch.cat([query_Q1 - edge + torch.arange(-1, 2), query_Q1 + torch.arange(-1, 3)], 1).clamp(min=0)
    seen_QK = key_QK <= query_Q1
    if window is not None:
        seen_QK &= query_Q1 - key_QK < window
    none = torch.zeros(1, dtype=torch.int64)
    try:
        return bool((mask_function(none, none, query_Q1, key_QK) == seen_QK).all())
    except (IndexError, RuntimeError):  # it looks positions up in what belongs to this call's tokens
        return False


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    attention_context: AttentionContext | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls per layer: q [1, N, T, D], k and v [1, M, T, D] → out [1, T, N, D].

    Values of another size than the keys' (DeepSeek's latent attention) are padded to one size and cut back.

    Raises:
        ModelError: no context was passed, or the model asks for something our attention does not compute.
    """
    follow()
    name = type(module).__name__
    attention_context = attention_context or _CONTEXT.get()
    if attention_context is None:
        raise ModelError("the model was called without attention_context; call it through lodestar.model.packed")
    unknown = sorted(option for option, given in keywords.items() if given is not None and option not in HARMLESS)
    if unknown:
        raise ModelError(f"{name} needs {', '.join(unknown)}, which Lodestar's attention does not compute")
    if is_causal is False:
        raise ModelError(f"{name} asks for attention to what follows a token (is_causal is false)")
    if dropout:
        raise ModelError("attention dropout must be 0: PPO's ratios need log-probs without noise")
    window = _window(name, attention_mask, sliding_window)
    if query.dtype != value.dtype:  # under autocast the rotary embedding leaves queries and keys in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    dim, value_dim = query.shape[-1], value.shape[-1]
    if value_dim < dim:
        value = pad(value, (0, dim - value_dim))
    elif value_dim > dim:
        query, key = pad(query, (0, value_dim - dim)), pad(key, (0, value_dim - dim))
    layer: int = module.layer_idx  # type: ignore[assignment]
    rule: LayerRule = {"scale": scaling if scaling is not None else dim**-0.5, "window": window}
    if softcap is not None:
        rule["softcap"] = softcap
    if s_aux is not None:
        rule["sinks_N"] = s_aux
    q_TND, k_TMD, v_TMD = (x[0].transpose(0, 1) for x in (query, key, value))
    out_TND = attention_context.attend(layer, q_TND, k_TMD, v_TMD, rule)
    if value_dim < dim:
        out_TND = out_TND[..., :value_dim]
    return out_TND.unsqueeze(0), None


def _window(name: str, mask: Any, asked: int | None) -> int | None:
    """The window that a layer's mask and its keyword agree on."""
    if mask is None:
        return asked
    if not isinstance(mask, CausalMask):
        raise ModelError(f"{name} computes an attention mask of its own, which Lodestar's attention does not apply")
    if mask.problem:
        raise ModelError(f"{name}: {mask.problem}")
    if asked is not None and asked != mask.window:
        raise ModelError(f"{name} asks for a window of {asked} tokens, and its mask has {mask.window or 'none'}")
    return mask.window


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, describe_mask)
