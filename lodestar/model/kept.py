"""What a model's layers keep of a token: read off the model before it serves."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lodestar.errors import ModelError
from lodestar.model.attention import LayerRule, attending, scores_plainly


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Size of one token's keys and values: ``CacheShape(layers=4, kv_heads=4, head_dim=64, dtype=torch.float32)``."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    plain_scores: bool = True
    """Whether no layer caps its scores or has sinks, which the fast paths do not compute."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @classmethod
    def of(cls, model: Any) -> CacheShape:
        """As one forward call of one token shows it.

        Raises:
            ModelError: layers that keep something other than keys and values of one size, or attend over chunks.
        """
        config = model.config.get_text_config()
        name = type(model).__name__
        unknown = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ModelError(f"{name} has layers of kind {', '.join(unknown)}, which the KV cache cannot hold")
        seen = _SeenAttention()
        ids = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
        # Where there are no numbers, transformers is not to look whether positions are those of packed sequences.
        numberless = FakeTensorMode(allow_non_fake_inputs=True) if ids.is_meta else contextlib.nullcontext()
        with torch.no_grad(), numberless, attending(seen) as options:
            model.base_model(input_ids=ids, position_ids=ids, **options)
        if len(seen.kept) != config.num_hidden_layers:
            raise ModelError(
                f"{len(seen.kept)} of {config.num_hidden_layers} layers of {name} run on Lodestar's attention; "
                "the others keep what the KV cache cannot hold"
            )
        sizes = {shape for shapes in seen.kept.values() for shape in shapes[:2]}
        dtypes = {shapes[2] for shapes in seen.kept.values()}
        if len(sizes) > 1 or len(dtypes) > 1:
            raise ModelError(
                f"{name} keeps keys and values of several sizes ({', '.join(map(str, sorted(sizes)))}), "
                "and the KV cache holds one"
            )
        ((kv_heads, head_dim),) = sizes
        return cls(config.num_hidden_layers, kv_heads, head_dim, dtypes.pop(), seen.plain_scores)


class _SeenAttention:
    """Attends to nothing and notes what came."""

    def __init__(self) -> None:
        self.plain_scores = True
        self.kept: dict[int, tuple[tuple[int, ...], tuple[int, ...], torch.dtype]] = {}

    def attend(self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rule: LayerRule) -> Tensor:
        self.plain_scores &= scores_plainly(rule)
        self.kept[layer] = (tuple(k_TMD.shape[1:]), tuple(v_TMD.shape[1:]), v_TMD.dtype)
        return v_TMD.new_zeros(*q_TND.shape[:2], v_TMD.shape[2])
