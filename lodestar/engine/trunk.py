"""The layers below the head as the runner calls them: the plain module, or Llama's family in fewer, larger operations.

On a CPU a decode step of an unmodified module is some fifty small operations per layer. FusedTrunk computes the same
from the same parameters in twenty: one product for queries, keys and values, one for gate and up, residual sums inside
the products, and in the last layer nothing but keys and values for rows of whose output nobody asks.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lodestar.engine.linear import MOST_ROWS, PackedLinear
from lodestar.model.attention import AttentionContext, attending
from lodestar.model.fused import FAMILY, projections_of, sliding_window


class Trunk(Protocol):
    """From token ids to the hidden states that the head reads."""

    def __call__(self, tokens_T: Tensor, positions_T: Tensor, context: AttentionContext, rows: int) -> Tensor:
        """Hidden states [rows, H] of the first ``rows`` rows; keys and values of all T are written."""

    def refresh(self) -> None:
        """The model's weights have changed in place."""


def make_trunk(model: Any, *, paged: bool, positions: int) -> Trunk:
    """FusedTrunk where it serves, over slabs; else the plain module. A sequence has at most so many positions."""
    module = model.base_model
    return FusedTrunk(module, positions) if not paged and _fusible(module) else PlainTrunk(module)


class PlainTrunk:
    """Any Hugging Face decoder."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, tokens_T: Tensor, positions_T: Tensor, context: AttentionContext, rows: int) -> Tensor:
        with attending(context) as options:
            output = self._module(input_ids=tokens_T[None], position_ids=positions_T[None], **options)
        return output.last_hidden_state[0, :rows]  # type: ignore[no-any-return]

    def refresh(self) -> None:
        """Nothing is derived from the weights."""


class FusedTrunk:
    """Decoders of Llama's family in float32 on a CPU, with the module's parameters."""

    def __init__(self, module: Any, positions: int) -> None:
        self._embed = module.embed_tokens.weight
        self._norm = module.norm
        self._layers = [_Layer(layer) for layer in module.layers]
        with torch.no_grad():
            cos_1PD, sin_1PD = module.rotary_emb(self._embed, torch.arange(positions)[None])
        self._cos_P1D, self._sin_P1D = cos_1PD[0, :, None], sin_1PD[0, :, None]

    def __call__(self, tokens_T: Tensor, positions_T: Tensor, context: AttentionContext, rows: int) -> Tensor:
        x_TH = self._embed.index_select(0, tokens_T)
        cos_T1D, sin_T1D = (table.index_select(0, positions_T) for table in (self._cos_P1D, self._sin_P1D))
        last = len(self._layers) - 1
        for i, layer in enumerate(self._layers):
            x_TH = layer(x_TH, cos_T1D, sin_T1D, context, rows if i == last else len(x_TH))
        return _normalised(x_TH, self._norm)

    def refresh(self) -> None:
        """Lay the weights out anew."""
        for layer in self._layers:
            layer.refresh()


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = attention.layer_idx
        self._scale = attention.scaling
        self._window = sliding_window(attention)
        self._head_dim = attention.head_dim
        self._queries = attention.q_proj.out_features // attention.head_dim
        self._rotated = self._queries + attention.k_proj.out_features // attention.head_dim
        self._head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self._attention_norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._qkv = PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = PackedLinear(attention.o_proj)
        self._gate_up = PackedLinear(mlp.gate_proj, mlp.up_proj)
        self._down = PackedLinear(mlp.down_proj)

    def __call__(self, x_TH: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, context: AttentionContext, rows: int) -> Tensor:
        """x_TH to the first ``rows`` rows of the layer's output."""
        n_TH = _normalised(x_TH, self._attention_norm)
        qkv_TXD = self._qkv(n_TH).view(len(x_TH), -1, self._head_dim)
        qk_TXD = qkv_TXD[:, : self._rotated]
        if self._head_norms is not None:
            heads = qk_TXD.tensor_split([self._queries], dim=1)
            qk_TXD = torch.cat([_normalised(x, norm) for x, norm in zip(heads, self._head_norms, strict=True)], 1)
        qk_TXD = _rotated(qk_TXD, cos_T1D, sin_T1D)
        out_TND = context.attend(
            self._index,
            qk_TXD[:rows, : self._queries],
            qk_TXD[:, self._queries :],
            qkv_TXD[:, self._rotated :],
            {"scale": self._scale, "window": self._window},
        )
        # In pieces, so that what lies between two products is still in the processor's cache.
        pieces = zip(torch.split(out_TND.flatten(1), MOST_ROWS), torch.split(x_TH[:rows], MOST_ROWS), strict=True)
        outputs = [self._after_attention(out_TF, residual_TH) for out_TF, residual_TH in pieces]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _after_attention(self, out_TF: Tensor, residual_TH: Tensor) -> Tensor:
        h_TH = self._out(out_TF, add_TN=residual_TH)
        gate_TI, up_TI = self._gate_up(_normalised(h_TH, self._mlp_norm)).chunk(2, 1)
        return self._down(F.silu(gate_TI).mul_(up_TI), add_TN=h_TH)

    def refresh(self) -> None:
        for linear in (self._qkv, self._out, self._gate_up, self._down):
            linear.refresh()


def _fusible(module: Any) -> bool:
    config = module.config
    if config.model_type not in (*FAMILY, "qwen3") or config.hidden_act != "silu":
        return False
    if module.dtype != torch.float32 or module.device.type != "cpu":
        return False
    return all(type(projection) is nn.Linear for layer in module.layers for projection in projections_of(layer))


def _normalised(x: Tensor, norm: Any) -> Tensor:
    rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    normalised: Tensor = (x * rstd.add_(norm.variance_epsilon).rsqrt_()).mul_(norm.weight)
    return normalised


def _rotated(x_TXD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotary embedding."""
    half = x_TXD.shape[-1] // 2
    out_TXD = x_TXD * cos_T1D
    out_TXD[..., :half].addcmul_(x_TXD[..., half:], sin_T1D[..., :half], value=-1)
    out_TXD[..., half:].addcmul_(x_TXD[..., :half], sin_T1D[..., half:])
    return out_TXD
