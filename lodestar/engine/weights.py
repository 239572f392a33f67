"""The served model's weights, replaced in place: what was captured or derived with their addresses stays valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lodestar.errors import ModelError
from lodestar.model.loading import named_tensors


class LiveWeights:
    """Parameters and buffers of a model that is being served."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def copies(self) -> dict[str, Tensor]:
        """The weights held now, to come back to."""
        return {name: tensor.clone() for name, tensor in named_tensors(self._model).items()}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ModelError: names or shapes are not the model's.
        """
        weights = named_tensors(self._model)
        missing, unknown = sorted(weights.keys() - tensors.keys()), sorted(tensors.keys() - weights.keys())
        if missing or unknown:
            raise ModelError(
                f"weights: tensors are missing ({missing[:3]}) or unknown ({unknown[:3]}); nothing was swapped"
            )
        for name, tensor in tensors.items():
            if tensor.shape != weights[name].shape:
                raise ModelError(
                    f"weights: {name} has shape {list(tensor.shape)}, the model's is {list(weights[name].shape)}; "
                    "nothing was swapped"
                )

    @torch.no_grad()
    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy checked tensors in."""
        weights = named_tensors(self._model)
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)
