"""Linear maps of a CPU step, their weights laid out for oneDNN once per swap instead of once per call."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from torch import Tensor

USUAL_ROWS = 64
"""Rows that the layout is chosen for; others work as well."""
MOST_ROWS = 256
"""Of one product. Larger ones are no faster, and see padded_rows."""


def padded_rows(rows: int, multiple: int = 1) -> int:
    """``rows`` rounded up to one of few counts, at most a quarter more from 16 rows on, multiples of ``multiple``.

    oneDNN keeps code for every shape that it meets, about half a megabyte each (measured: 2,600 shapes 800 MB), so the
    rows of a step must not take every value.
    """
    whole, rest = divmod(rows, MOST_ROWS)
    step = max(multiple, 4 if rest <= 32 else 8 if rest <= 64 else 16 if rest <= 128 else 32)
    return whole * MOST_ROWS + -(-rest // step) * step


class PackedLinear:
    """x · Wᵀ + b in float32 for modules of one input, their outputs side by side.

    The layout is a second copy of the weights: half as much time per product for tens of rows (measured: 195–218
    GFLOP/s at 64 rows on two AMD cores, where torch.mm reaches 123–155). A row's bits do not depend on the number of
    rows as long as that is a multiple of 16. Without oneDNN the same is computed by torch.mm.
    """

    def __init__(self, *modules: Any) -> None:
        self._modules = modules
        self._packed: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self._bias: Tensor | None
        self.refresh()

    def refresh(self) -> None:
        """The modules' weights have changed."""
        weight = _joined([module.weight for module in self._modules])
        biases = [module.bias for module in self._modules if getattr(module, "bias", None) is not None]
        self._bias = _joined(biases) if biases else None
        self._outputs = len(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_ROWS) if self._packed else weight

    def __call__(self, x_TK: Tensor, add_TN: Tensor | None = None) -> Tensor:
        """The map of every row, [T, N], and ``add_TN`` added."""
        if not len(x_TK):
            return x_TK.new_empty(0, self._outputs)
        if len(x_TK) > MOST_ROWS:
            adds = torch.split(add_TN, MOST_ROWS) if add_TN is not None else repeat(None)
            return torch.cat([self(x, add) for x, add in zip(torch.split(x_TK, MOST_ROWS), adds, strict=False)])
        if not self._packed:
            y_TN = torch.nn.functional.linear(x_TK, self._weight, self._bias)
            return y_TN if add_TN is None else y_TN.add_(add_TN)
        one_dnn = torch.ops.mkldnn._linear_pointwise
        if add_TN is None:
            return one_dnn(x_TK, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]
        return one_dnn.binary(x_TK, add_TN, self._weight, self._bias, "add")  # type: ignore[no-any-return]


def _joined(parameters: list[Tensor]) -> Tensor:
    detached = [parameter.detach() for parameter in parameters]
    return torch.cat(detached) if len(detached) > 1 else detached[0]
