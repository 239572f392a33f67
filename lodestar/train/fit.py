"""The loop of every supervised stage: steps, evaluations, the held-out loss's minimum, and going on after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lodestar.config import TrainingConfig
from lodestar.errors import NonFinite
from lodestar.files import write_atomically
from lodestar.train.batches import plan
from lodestar.train.clock import Clock
from lodestar.train.progress import Progress
from lodestar.train.saved import Saved, load_saved, save
from lodestar.train.schedule import adamw, warmup_cosine


class Objective(Protocol):
    """What a stage minimises."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each training row."""

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """Scalar loss of some training rows."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out figures, ``held_out_loss`` among them; called without gradients."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a stage went. The model holds the weights of the best evaluation."""

    steps: int
    """Optimizer steps taken."""
    planned: int
    """Optimizer steps of all epochs."""
    best_step: int
    """Steps behind the weights that were kept; 0 is the start model."""
    best: dict[str, float]
    """Held-out figures of those weights."""
    history: list[dict[str, float]]
    """``step``, ``seconds``, ``loss`` (mean since the last evaluation) and the held-out figures of every evaluation."""
    seconds: float
    stopped: str
    """epochs, patience or max_seconds."""

    @property
    def cut_short(self) -> dict[str, int] | None:
        """``{"done": 320, "total": 960}`` steps where max_seconds ended the stage before its epochs or its patience."""
        return {"done": self.steps, "total": self.planned} if self.stopped == "max_seconds" else None

    def figures(self) -> dict[str, Any]:
        """What a card or a summary keeps of it, in plain numbers."""
        return {
            "steps": self.steps,
            "planned": self.planned,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "cut_short": self.cut_short,
            "history": self.history,
        }


def write_fit(folder: Path, fitted: Fit | None) -> None:
    """Writes how a training went to ``folder/fit.json``: what None trained, nothing."""
    write_atomically(
        folder / "fit.json", json.dumps(None if fitted is None else {**fitted.figures(), "best": fitted.best})
    )


def fit(
    name: str,
    model: nn.Module,
    objective: Objective,
    config: TrainingConfig,
    *,
    seed: int,
    state_file: Path,
    identity: dict[str, str],
    progress: Progress,
) -> Fit:
    """Minimise an objective and leave in ``model`` the weights with the least held-out loss.

    The state is written at every evaluation; if ``state_file`` is there, the stage goes on from it. ``max_seconds``
    holds for steps and evaluations together: one that would leave no time for another before the last is skipped. The
    learning rate then also falls with time, so that a stage cut short by the clock has decayed too; the last that its
    progress hears is ``cut_short``, the share of the planned steps that were done.

    Args:
        identity: digests of all that the state depends on, by the name a person knows it by.

    Raises:
        ResumeRefused: the saved state belongs to other settings or data, which the message names.
        NonFinite: a loss, held-out loss or gradient is NaN or infinite; the last good state stays on disk.
    """
    batches = plan(objective.lengths, config.batch_tokens, config.epochs, seed=f"{seed}/{name}")
    every = max(1, round(len(batches) / config.epochs / config.evaluations_per_epoch))
    optimizer = adamw(model.parameters(), config)
    progress.start(name, len(batches))
    state = load_saved(state_file, identity, model, optimizer)
    clock = Clock(config.max_seconds, *(state.seconds, state.evaluation_seconds) if state else (0.0, 0.0))
    if state is None:
        state = Saved(best=_weights(model))
        _evaluate(state, model, objective, progress, losses=[])
        clock.evaluated()
    progress.advance(state.step)
    losses: list[float] = []
    stopped = "epochs"
    while state.step < len(batches):
        done = max(state.step / len(batches), clock.share)
        losses.append(_step(model, objective, optimizer, batches[state.step], config, done))
        clock.stepped()
        state.step += 1
        progress.advance()
        late = not clock.allows(evaluations=1)
        due = state.step % every == 0 and clock.allows(evaluations=2)
        if not (due or late or state.step == len(batches)):
            continue
        state.seconds = clock.seconds
        _evaluate(state, model, objective, progress, losses)
        losses.clear()
        clock.evaluated()
        state.seconds, state.evaluation_seconds = clock.seconds, clock.evaluation
        save(state_file, identity, state, model, optimizer)
        if state.step < len(batches) and (late or state.since_best >= config.patience):
            stopped = "max_seconds" if late else "patience"
            break
    model.load_state_dict(state.best, strict=False)
    best = next(row for row in state.history if row["step"] == state.best_step)
    result = Fit(state.step, len(batches), state.best_step, best, state.history, state.seconds, stopped)
    if result.cut_short:
        progress.metrics({"cut_short": result.steps / result.planned})
    return result


def _step(
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.AdamW,
    rows: Sequence[int],
    config: TrainingConfig,
    done: float,
) -> float:
    """One optimizer step; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * warmup_cosine(done, config.warmup_fraction)
    loss = objective.loss(model, rows)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.max_grad_norm)
    value = float(loss.detach())
    if not math.isfinite(value + float(norm)):
        raise NonFinite(f"the loss is {value} and its gradient's norm {float(norm)}; lower learning_rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def _evaluate(state: Saved, model: nn.Module, objective: Objective, progress: Progress, losses: list[float]) -> None:
    """Takes the held-out figures, remembers them, and the weights if they are the best so far."""
    with torch.no_grad():
        figures = objective.evaluate(model)
    if not math.isfinite(figures["held_out_loss"]):
        raise NonFinite(f"the held-out loss is {figures['held_out_loss']} after step {state.step}; lower learning_rate")
    if losses:
        figures = {"loss": sum(losses) / len(losses), **figures}
    progress.metrics(figures)
    state.history.append({"step": state.step, "seconds": state.seconds, **figures})
    if figures["held_out_loss"] < state.best_loss:
        state.best_loss, state.best_step, state.since_best = figures["held_out_loss"], state.step, 0
        state.best = _weights(model)
    else:
        state.since_best += 1


def _weights(model: nn.Module) -> dict[str, Any]:
    """Copies of the trainable weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
