"""The served model's weights: replaced in place, so that what was captured or derived with their addresses stays valid,
or given to a second model of the same making, which then serves in the first one's stead."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lodestar.errors import ModelError
from lodestar.model.loading import named_tensors


class LiveWeights:
    """Parameters and buffers of a model that is being served."""

    def __init__(self, model: Any, *, apart: bool = False) -> None:
        """``apart``: :meth:`model_of` will be asked for; its models are made after this one as it is now."""
        self.model = model
        self._making = _without_weights(model) if apart else None

    def model_of(self, tensors: Mapping[str, Tensor]) -> Any:
        """A model like this one around checked tensors, which it shares; callable from any thread."""
        making = self._making
        assert making is not None
        given = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
        return _copied(making, {id(empty): given[name] for name, empty in making.named_parameters()})

    def copies(self) -> dict[str, Tensor]:
        """The weights held now, to come back to."""
        return {name: tensor.clone() for name, tensor in named_tensors(self.model).items()}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ModelError: names, shapes or dtypes are not the model's.
        """
        weights = named_tensors(self.model)
        missing, unknown = sorted(weights.keys() - tensors.keys()), sorted(tensors.keys() - weights.keys())
        if missing or unknown:
            raise ModelError(
                f"weights: tensors are missing ({missing[:3]}) or unknown ({unknown[:3]}); nothing was swapped"
            )
        for name, tensor in tensors.items():
            told, ours = ((list(one.shape), one.dtype) for one in (tensor, weights[name]))
            if told[0] != ours[0]:
                raise ModelError(f"weights: {name} has shape {told[0]}, the model's is {ours[0]}; nothing was swapped")
            if told[1] != ours[1]:
                raise ModelError(f"weights: {name} is {told[1]}, the model's is {ours[1]}; nothing was swapped")

    @torch.no_grad()
    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy checked tensors in."""
        weights = named_tensors(self.model)
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)


def _without_weights(model: Any) -> Any:
    """A copy of a model whose parameters hold nothing."""
    return _copied(model, {id(one): nn.Parameter(one.to("meta"), requires_grad=False) for one in model.parameters()})


def _copied(model: Any, parameters: dict[int, Any]) -> Any:
    """A copy with other parameters (by the identity of those they replace) and the very same configuration."""
    return deepcopy(model, {**parameters, id(model.config): model.config})
