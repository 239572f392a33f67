"""Decoder layers of Llama's family in two autograd Functions each, for float32 training.

On a CPU the small operations of an unmodified layer (two norms, rotary embedding, SwiGLU, residuals: some forty passes
over memory forward and eighty backward) cost more than its matrix products. Here a layer is

    NormQkvRotary    q, k, v = rotary(norm(x) · [Wq, Wk, Wv]ᵀ)
    attention        through the attention context, as always
    OutputMlp        h = x + attention · Woᵀ;   y = h + (silu(n · Wgᵀ) ⊙ n · Wuᵀ) · Wdᵀ with n = norm(h)

with backward passes written out, in place where nobody looks, and residual sums folded into the matrix products. The
last layer computes OutputMlp only for the rows that the caller needs: with logits and values for response tokens alone
a prompt's last-layer output is never used.

The modules, their parameters and their names stay; only ``forward`` of each layer is replaced.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lodestar.cores import follow
from lodestar.model.attention import LayerRule
from lodestar.model.lora import plain

FAMILY = ("llama", "mistral", "qwen2")


def fuse(model: Any) -> bool:
    """Replace the layers' forward where this file knows how; returns whether it did.

    False, and nothing changed, for other architectures, adapters, dtypes than float32 and activations than SiLU.
    Results agree with the plain modules to rounding.
    """
    trunk: Any = plain(model).base_model
    config = trunk.config
    if config.model_type not in FAMILY or config.hidden_act != "silu" or trunk.dtype != torch.float32:
        return False
    for layer in trunk.layers:
        projections = projections_of(layer)
        if any(type(projection) is not nn.Linear for projection in projections):
            return False
        if any(projection.bias is not None for projection in projections[3:]):
            return False
    for layer in trunk.layers:
        layer.forward = types.MethodType(_layer_forward, layer)
    trunk.layers[-1].selects_rows = True
    return True


def selects_rows(model: Any) -> bool:
    """Whether the model's last layer computes only the ``rows`` of the attention context."""
    layers: Any = getattr(plain(model).base_model, "layers", None)
    return layers is not None and getattr(layers[-1], "selects_rows", False)


def sliding_window(attention: Any) -> int | None:
    """Qwen decides per layer, Mistral in its configuration, Llama not at all."""
    if attention.config.model_type == "mistral":
        return attention.config.sliding_window  # type: ignore[no-any-return]
    return getattr(attention, "sliding_window", None)


def projections_of(layer: Any) -> tuple[nn.Linear, ...]:
    """Of queries, keys, values, attention output, gate, up, down."""
    a, m = layer.self_attn, layer.mlp
    return a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj


def _layer_forward(
    layer: Any, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], attention_context: Any, **_: Any
) -> Tensor:
    """Stands in for the decoder layer's forward: hidden_states [1, T, H] to the same, or to [1, rows, H]."""
    follow()
    attention, norm = layer.self_attn, layer.input_layernorm
    x_TH = hidden_states[0]
    cos_TD, sin_TD = position_embeddings[0][0], position_embeddings[1][0]
    projections = projections_of(layer)
    q_TND, k_TMD, v_TMD, x_TH = NormQkvRotary.apply(  # type: ignore[no-untyped-call]
        x_TH,
        norm.weight,
        norm.variance_epsilon,
        *(parameter for projection in projections[:3] for parameter in (projection.weight, projection.bias)),
        cos_TD,
        sin_TD,
        attention.head_dim,
    )
    rule: LayerRule = {"scale": attention.scaling, "window": sliding_window(attention)}
    out_TND = attention_context.attend(attention.layer_idx, q_TND, k_TMD, v_TMD, rule)
    out_TF = out_TND.flatten(1)
    rows = getattr(attention_context, "rows", None)
    if rows is not None and getattr(layer, "selects_rows", False):
        out_TF, x_TH = out_TF.index_select(0, rows), x_TH.index_select(0, rows)
    norm = layer.post_attention_layernorm
    weights = (projection.weight for projection in projections[3:])
    y_1TH: Tensor = OutputMlp.apply(  # type: ignore[no-untyped-call]
        out_TF, x_TH, norm.weight, norm.variance_epsilon, *weights
    )
    return y_1TH


def _normalise(x_TH: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm, and 1/rms of each row."""
    rstd_T1 = torch.linalg.vector_norm(x_TH, dim=-1, keepdim=True).square_().div_(x_TH.shape[1]).add_(eps).rsqrt_()
    return (x_TH * rstd_T1).mul_(weight_H), rstd_T1


def _normalise_backward(
    grad_TH: Tensor, residual_TH: Tensor, x_TH: Tensor, rstd_T1: Tensor, weight_H: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x (that of the residual stream added) and of the weight. Overwrites grad_TH.

    With y = x·r·w and g = ∂L/∂y:  ∂L/∂x = r·g·w − x·r³·⟨g·w, x⟩/H,  ∂L/∂w = Σ_t g·x·r.
    """
    product_TH = grad_TH * x_TH
    grad_weight_H = product_TH.t().mv(rstd_T1[:, 0])
    pull_T1 = product_TH.mv(weight_H)[:, None].mul_(rstd_T1.pow(3)).div_(-x_TH.shape[1])
    grad_x_TH = torch.addcmul(residual_TH, x_TH, pull_T1, out=product_TH)
    return grad_x_TH.addcmul_(grad_TH.mul_(weight_H), rstd_T1), grad_weight_H


def _rotate(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotary embedding; its transpose, by which gradients go back, turns the other way. Allocates its result."""
    half = x_TND.shape[-1] // 2
    sign = -1.0 if inverse else 1.0
    out_TND = x_TND * cos_T1D
    out_TND[..., :half].addcmul_(x_TND[..., half:], sin_T1D[..., :half], value=-sign)
    out_TND[..., half:].addcmul_(x_TND[..., :half], sin_T1D[..., half:], value=sign)
    return out_TND


def _project(n_TH: Tensor, weight_FH: Tensor, bias_F: Tensor | None) -> Tensor:
    return n_TH @ weight_FH.t() if bias_F is None else torch.addmm(bias_F, n_TH, weight_FH.t())


class NormQkvRotary(torch.autograd.Function):
    """x_TH → q_TND, k_TMD (rotated), v_TMD, and x_TH again: the residual's gradient then arrives in our backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TH: Tensor,
        norm_H: Tensor,
        eps: float,
        wq: Tensor,
        bq: Tensor | None,
        wk: Tensor,
        bk: Tensor | None,
        wv: Tensor,
        bv: Tensor | None,
        cos_TD: Tensor,
        sin_TD: Tensor,
        head_dim: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n_TH, rstd_T1 = _normalise(x_TH, norm_H, eps)
        cos_T1D, sin_T1D = cos_TD[:, None], sin_TD[:, None]
        q_TND, k_TMD, v_TMD = (
            _project(n_TH, weight, bias).view(len(x_TH), -1, head_dim)
            for weight, bias in ((wq, bq), (wk, bk), (wv, bv))
        )
        ctx.save_for_backward(x_TH, norm_H, rstd_T1, n_TH, wq, wk, wv, cos_T1D, sin_T1D)
        ctx.biases = [bias is not None for bias in (bq, bk, bv)]
        return _rotate(q_TND, cos_T1D, sin_T1D), _rotate(k_TMD, cos_T1D, sin_T1D), v_TMD, x_TH.view_as(x_TH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TH, norm_H, rstd_T1, n_TH, wq, wk, wv, cos_T1D, sin_T1D = ctx.saved_tensors
        grad_q, grad_k, grad_v, residual_TH = grads
        gq, gk = (_rotate(g, cos_T1D, sin_T1D, inverse=True).flatten(1) for g in (grad_q, grad_k))
        gv = grad_v.flatten(1)
        grad_n_TH = torch.mm(gq, wq).addmm_(gk, wk).addmm_(gv, wv)
        grad_x_TH, grad_norm_H = _normalise_backward(grad_n_TH, residual_TH, x_TH, rstd_T1, norm_H)
        weights: list[Tensor | None] = []
        for gradient, biased in zip((gq, gk, gv), ctx.biases, strict=True):
            weights += [gradient.t() @ n_TH, gradient.sum(0) if biased else None]
        return grad_x_TH, grad_norm_H, None, *weights, None, None, None


class OutputMlp(torch.autograd.Function):
    """attention_TF, x_TH → y_1TH: output projection, residual, norm, SwiGLU, residual."""

    @staticmethod
    def forward(
        ctx: Any,
        attention_TF: Tensor,
        x_TH: Tensor,
        norm_H: Tensor,
        eps: float,
        wo: Tensor,
        wg: Tensor,
        wu: Tensor,
        wd: Tensor,
    ) -> Tensor:
        h_TH = torch.addmm(x_TH, attention_TF, wo.t())
        n_TH, rstd_T1 = _normalise(h_TH, norm_H, eps)
        gate_TI, up_TI = n_TH @ wg.t(), n_TH @ wu.t()
        inner_TI = F.silu(gate_TI).mul_(up_TI)
        ctx.save_for_backward(attention_TF, h_TH, rstd_T1, norm_H, n_TH, gate_TI, up_TI, inner_TI, wo, wg, wu, wd)
        y_1TH = h_TH.new_empty(1, *h_TH.shape)  # FSDP hooks into layers' outputs and minds views
        torch.addmm(h_TH, inner_TI, wd.t(), out=y_1TH[0])
        return y_1TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_1TH: Tensor) -> tuple[Tensor | None, ...]:
        grad_y_TH = grad_y_1TH[0]
        attention_TF, h_TH, rstd_T1, norm_H, n_TH, gate_TI, up_TI, inner_TI, wo, wg, wu, wd = ctx.saved_tensors
        grad_wd = grad_y_TH.t() @ inner_TI
        grad_TI = grad_y_TH @ wd
        grad_gate_TI = torch.ops.aten.silu_backward(grad_TI * up_TI, gate_TI)
        grad_up_TI = grad_TI.mul_(F.silu(gate_TI))
        grad_wg, grad_wu = grad_gate_TI.t() @ n_TH, grad_up_TI.t() @ n_TH
        grad_n_TH = torch.mm(grad_gate_TI, wg).addmm_(grad_up_TI, wu)
        grad_h_TH, grad_norm_H = _normalise_backward(grad_n_TH, grad_y_TH, h_TH, rstd_T1, norm_H)
        grad_wo, grad_attention_TF = grad_h_TH.t() @ attention_TF, grad_h_TH @ wo
        return grad_attention_TF, grad_h_TH, grad_norm_H, None, grad_wo, grad_wg, grad_wu, grad_wd
