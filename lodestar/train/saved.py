"""A supervised stage's state on disk, so that a killed stage loses no more than the steps since an evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lodestar.errors import ResumeRefused
from lodestar.files import remove_leftovers, replacing


@dataclass(slots=True)
class Saved:
    """Where a stage is."""

    best: dict[str, Any]
    """Trainable weights with the least held-out loss so far, by name."""
    best_loss: float = math.inf
    best_step: int = 0
    since_best: int = 0
    """Evaluations since then."""
    step: int = 0
    seconds: float = 0.0
    """Time spent on steps and evaluations, over all starts."""
    evaluation_seconds: float = 0.0
    """Time that the last evaluation took."""
    history: list[dict[str, float]] = field(default_factory=list)


def save(
    path: Path, identity: dict[str, str], state: Saved, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes the state; the old one survives any failure."""
    present = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    whole = {
        "identity": identity,
        "present": present,
        "optimizer": optimizer.state_dict(),
        **{name: getattr(state, name) for name in Saved.__dataclass_fields__},
    }
    remove_leftovers(path.parent, path.name)
    with replacing(path) as temporary:
        torch.save(whole, temporary)


def load_saved(
    path: Path, identity: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer
) -> Saved | None:
    """The state of an interrupted stage, put into model and optimizer; None when there is none.

    Raises:
        ResumeRefused: it belongs to other settings, data or weights.
    """
    if not path.exists():
        return None
    device = next(model.parameters()).device
    whole = torch.load(path, map_location=device, weights_only=True)
    changed = [name for name, digest in identity.items() if whole["identity"].get(name) != digest]
    if changed:
        raise ResumeRefused(
            f"{path} is an interrupted stage with another {' and '.join(changed)}; "
            "restore what it was, or delete the file to start the stage again"
        )
    model.load_state_dict(whole["present"], strict=False)
    optimizer.load_state_dict(whole["optimizer"])
    return Saved(**{name: whole[name] for name in Saved.__dataclass_fields__})
