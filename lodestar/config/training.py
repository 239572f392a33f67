"""Supervised stages: language-model pretraining and SFT, and reward-model training."""

from __future__ import annotations

from pydantic import Field

from lodestar.config.base import Section


class TrainingConfig(Section):
    """Optimisation of one supervised stage. Stops at the minimum of the held-out loss."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the data at most."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop after this long, at an evaluation; unset has no limit."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per optimizer step, packed."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak of a linear warm-up and cosine decay."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps spent warming up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's, on matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient-norm clip."""
    evaluations_per_epoch: int = Field(default=4, ge=1)
    """How often the held-out loss is taken."""
    patience: int = Field(default=3, ge=1)
    """Evaluations without a new minimum before the stage stops; the minimum's weights are kept."""


class RewardTrainingConfig(TrainingConfig):
    """Training of the reward model from comparisons."""

    epochs: float = Field(default=2.0, gt=0)
    """Passes over the data at most; more than one overfits quickly (InstructGPT)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak of a linear warm-up and cosine decay."""
    path: str | None = None
    """A trained AutoModelForSequenceClassification to use instead of training one."""
    centering: float = Field(default=0.01, ge=0)
    """Weight of the mean squared score of a pair, which keeps scores near zero."""
