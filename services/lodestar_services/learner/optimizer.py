"""AdamW with float32 master weights and a gradient-norm clip of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lodestar.errors import NonFinite
from lodestar_services.learner.ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class MasterAdamW:
    """Optimises a model's trainable parameters; a bfloat16 model gets float32 masters, rounded into it after each step.

    Without masters bfloat16's rounding would swallow Adam's small steps. A float32 model is its own master.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        ranks: Ranks,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_norm: float,
    ) -> None:
        trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
        self._name = name
        self._ranks = ranks
        self._names = list(trainable)
        self.parameters = list(trainable.values())
        self._masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.parameters]
        self._rounded = [(m, p) for m, p in zip(self._masters, self.parameters, strict=True) if m is not p]
        groups = [{"params": [m for m in self._masters if (m.ndim >= 2) == matrix]} for matrix in (True, False)]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=True)
        self.configure(betas=betas, eps=eps, weight_decay=weight_decay, max_norm=max_norm)

    def configure(self, *, betas: tuple[float, float], eps: float, weight_decay: float, max_norm: float) -> None:
        """What holds from the next step on; an infinite ``max_norm`` clips nothing."""
        self._max_norm = max_norm
        for group in self._adam.param_groups:
            decay = weight_decay if group["params"][0].ndim >= 2 else 0.0
            group.update(betas=betas, eps=eps, weight_decay=decay)

    def norm(self) -> float:
        """Sum gradients over ranks; their norm.

        Raises:
            NonFinite: it is NaN or infinite.
        """
        self._ranks.total_gradients(self.parameters)
        norm = float(self._ranks.gradient_norm(self.parameters))
        if not norm < float("inf"):
            raise NonFinite(f"the gradient of the {self._name} is not finite (norm {norm})")
        return norm

    def step(self, learning_rate: float, norm: float) -> None:
        """Clip the gradient, whose :meth:`norm` is given, update and clear it."""
        if norm > self._max_norm:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self._max_norm / (norm + 1e-6))
        for master, parameter in self._rounded:
            master.grad = parameter.grad.float() if parameter.grad is not None else None
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        with torch.no_grad():
            for master, parameter in self._rounded:
                parameter.copy_(master)
        self.clear()

    def clear(self) -> None:
        """Drop gradients."""
        for parameter in (*self.parameters, *self._masters):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments by parameter name, and the masters of a bfloat16 model; live tensors, not copies."""
        moments = {
            name: {key: self._adam.state[master][key] for key in MOMENTS}
            for name, master in zip(self._names, self._masters, strict=True)
            if self._adam.state.get(master)
        }
        masters = {
            n: m.detach() for n, m, p in zip(self._names, self._masters, self.parameters, strict=True) if m is not p
        }
        return {"moments": moments, "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over copies of what state_dict() gave."""
        for name, master in zip(self._names, self._masters, strict=True):
            if name in state["masters"]:
                master.copy_(state["masters"][name])
            moments: Mapping[str, Tensor] | None = state["moments"].get(name)
            if moments is None:
                self._adam.state.pop(master, None)
                continue
            held = self._adam.state[master]
            for key in MOMENTS:
                if key in held:
                    held[key].copy_(moments[key])
                else:
                    held[key] = moments[key].detach().to(master.device, copy=True)
