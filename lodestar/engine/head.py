"""The LM head as the engine runs it: logits in float32 whatever the model's dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from lodestar.engine.linear import PackedLinear


class Head:
    """Hidden states [B, H] to float32 logits [B, V].

    On a GPU 16-bit operands are multiplied as they are and summed in float32, which is exact and half the bytes; a CPU
    has no such product and keeps a 16-bit weight in float32 as well.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        on_cpu = module.weight.device.type == "cpu" and module.weight.dtype == torch.float32
        self._packed = PackedLinear(module) if on_cpu else None
        self._weight_VH: Tensor
        self._bias_V: Tensor | None
        self.refresh()

    def refresh(self) -> None:
        """The module's weights have changed in place."""
        if self._packed is not None:
            self._packed.refresh()
            return
        weight_VH, bias_V = self._module.weight.detach(), getattr(self._module, "bias", None)
        self._weight_VH = weight_VH if weight_VH.is_cuda else weight_VH.float()
        self._bias_V = None if bias_V is None else bias_V.detach()

    def __call__(self, hidden_BH: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed(hidden_BH)
        bias_V = None if self._bias_V is None else self._bias_V.float()
        if self._weight_VH.dtype == torch.float32:
            return linear(hidden_BH.float(), self._weight_VH, bias_V)
        logits_BV = torch.mm(hidden_BH, self._weight_VH.t(), out_dtype=torch.float32)
        return logits_BV if bias_V is None else logits_BV.add_(bias_V)
