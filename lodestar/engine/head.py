"""The LM head as the engine runs it: logits in float32 whatever the model's dtype, of ids that may be sampled alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lodestar.engine.linear import PackedLinear
from lodestar.model.logits import ids_without_text, lm_head, logit_rule, sampled_ids


class Head:
    """Hidden states [B, H] to float32 logits [B, V], capped and scaled as the architecture does it.

    On a GPU 16-bit operands are multiplied as they are and summed in float32, which is exact and half the bytes; a CPU
    has no such product and keeps a 16-bit weight in float32 as well.
    """

    def __init__(self, model: Any) -> None:
        self._rule = logit_rule(model.config)
        self._module = _sampled_rows(lm_head(model), sampled_ids(model))
        holes = ids_without_text(model)
        self._holes = torch.tensor(holes, device=self._module.weight.device) if holes else None
        on_cpu = self._module.weight.device.type == "cpu" and self._module.weight.dtype == torch.float32
        self._packed = PackedLinear(self._module) if on_cpu else None
        self._weight_VH: Tensor
        self._bias_V: Tensor | None
        self.refresh()

    def refresh(self) -> None:
        """The module's weights have changed in place."""
        if self._packed is not None:
            self._packed.refresh()
            return
        weight_VH, bias_V = self._module.weight.detach(), self._module.bias
        self._weight_VH = weight_VH if weight_VH.is_cuda else weight_VH.float()
        self._bias_V = None if bias_V is None else bias_V.detach()

    def __call__(self, hidden_BH: Tensor) -> Tensor:
        logits_BV = self._rule(self._product(hidden_BH))
        return logits_BV if self._holes is None else logits_BV.index_fill_(1, self._holes, -torch.inf)

    def _product(self, hidden_BH: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed(hidden_BH)
        bias_V = None if self._bias_V is None else self._bias_V.float()
        if self._weight_VH.dtype == torch.float32:
            return linear(hidden_BH.float(), self._weight_VH, bias_V)
        logits_BV = torch.mm(hidden_BH, self._weight_VH.t(), out_dtype=torch.float32)
        return logits_BV if bias_V is None else logits_BV.add_(bias_V)


def _sampled_rows(head: nn.Linear, ids: int) -> nn.Linear:
    """The head's first rows, as views of its parameters."""
    if ids == head.out_features:
        return head
    rows = nn.Linear(head.in_features, ids, bias=head.bias is not None, device="meta")
    rows.weight = nn.Parameter(head.weight.detach()[:ids], requires_grad=False)
    if head.bias is not None:
        rows.bias = nn.Parameter(head.bias.detach()[:ids], requires_grad=False)
    return rows
