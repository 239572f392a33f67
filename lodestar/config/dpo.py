"""Direct preference optimisation and its kin: what is minimised, and how strongly the reference holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lodestar.config.training import TrainingConfig


class DpoConfig(TrainingConfig):
    """Training of a policy from feedback alone, without a reward model and without sampling."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data at most; more than a few overfit, as reward models do."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak of a linear warm-up and cosine decay. For the small models that a run makes from nothing; the paper's 1e-6
    is for billions of parameters."""
    loss: Literal["dpo", "ipo", "kto"] = "dpo"
    """dpo: Rafailov et al. 2023; ipo: a squared distance to a finite gap, which sure labels cannot drive to infinity
    (Azar et al. 2024); kto: liked and disliked completions one by one (Ethayarajh et al. 2024), for feedback without
    rivals."""
    beta: float = Field(default=0.1, gt=0)
    """β: what a nat of log π/π_ref is worth in reward. ipo: τ, whose gap in log π/π_ref is 1/(2τ)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is the wrong way round (cDPO, Mitchell 2023); dpo and ipo."""
    margin: float = Field(default=0.0, ge=0)
    """Implied reward demanded per unit of a choice's strength (Llama 2's margin; ODPO, Amini et al. 2024); dpo only."""
    ties: Literal["half", "davidson"] = "half"
    """half: a tie is half a win each way (right for votes that disagree); davidson: ties have a probability of their
    own, which is learned (right where people say "equal"; Chen et al. 2024); dpo only."""
    desirable: float = Field(default=1.0, gt=0)
    """kto: weight of liked completions. Bring desirable · liked ÷ disliked to 1 … 4/3."""
    share_prefix: bool = True
    """Compute a prompt once for all its completions; the log-probs are the same to rounding."""

    @model_validator(mode="after")
    def _belongs_to_the_loss(self) -> DpoConfig:
        given = {"label_smoothing": self.label_smoothing, "margin": self.margin, "ties": self.ties != "half"}
        allowed = {"dpo": {"label_smoothing", "margin", "ties"}, "ipo": {"label_smoothing"}, "kto": set()}[self.loss]
        if wrong := [name for name, value in given.items() if value and name not in allowed]:
            raise ValueError(f"{wrong[0]} has no meaning for loss {self.loss}; leave it out")
        if self.ties == "davidson" and (self.label_smoothing or self.margin):
            raise ValueError("ties: davidson has its own likelihood: label_smoothing and margin go with ties: half")
        if self.desirable != 1.0 and self.loss != "kto":
            raise ValueError(f"desirable has no meaning for loss {self.loss}; leave it out")
        return self
