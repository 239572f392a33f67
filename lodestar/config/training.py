"""Supervised stages: language-model pretraining and SFT, and reward-model training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lodestar.config.base import Section


class TrainingConfig(Section):
    """Optimisation of one supervised stage. Stops at the minimum of the held-out loss."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the data at most."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Time for steps and held-out evaluations, the last one included; unset has no limit."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per optimizer step, packed; a prompt that several completions share is counted with each."""
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
    start: str | None = None
    """A reward model to go on training, with the run's tokenizer: one pretrained on other comparisons (Askell et al.
    2021; ``lodestar data contrast`` makes some from demonstrations). Unset: the SFT model under a new head. A start's
    scores keep their scale: ``centering`` would flatten wide ones before anything else is learned; set it to 0."""
    centering: float = Field(default=0.01, ge=0)
    """Weight of the mean squared score of a pair, which keeps scores near zero."""
    loss: Literal["bradley_terry", "davidson", "plackett_luce"] = "bradley_terry"
    """bradley_terry: a tie is half a win each way (right for votes that disagree); davidson: ties have a probability of
    their own (right where people say "equal"); plackett_luce: rankings whole, other feedback by Bradley–Terry."""
    margin: float = Field(default=0.0, ge=0)
    """Score difference demanded per unit of a choice's strength (Llama 2); bradley_terry only."""
    score_tokens: Literal["last", "all"] = "last"
    """last: the score is read at the last token; all: it is the sum of a reward per completion token (Christiano)."""
    aspects: tuple[str, ...] = ()
    """Likert aspects that get a head of their own beside the reward's; their ratings must be in the data."""
    rating_loss: Literal["ordinal", "regression"] = "ordinal"
    """Of the aspects' heads. ordinal: cumulative link with learned cutpoints; regression: squared error on −1 … 1."""
    rating_weight: float = Field(default=1.0, ge=0)
    """Weight of the aspects' loss beside the comparisons'."""
    annotators: dict[str, float] | Literal["equal", "agreement"] = "equal"
    """Weight of each annotator's feedback. agreement: by how far each agrees with the others; a name that the mapping
    lacks weighs 1."""
    ensemble: int = Field(default=1, ge=1, le=32)
    """Members; their mean is the reward, their spread its uncertainty."""
    ensemble_of: Literal["heads", "models"] = "heads"
    """heads: one trunk, each head on its own bootstrap of the data; models: whole models from different seeds, in
    the reward model's folder and its member-2 …"""
    share_prefix: bool = True
    """Compute a prompt once for all its completions; the scores are the same to rounding."""
    learning_curve: tuple[float, ...] = ()
    """Shares of the training data on which to train once more, for the card: [0.25, 0.5]."""

    @model_validator(mode="after")
    def _fits_together(self) -> RewardTrainingConfig:
        if self.margin and self.loss != "bradley_terry":
            raise ValueError(f"margin is for loss bradley_terry, not {self.loss}")
        if len(set(self.aspects)) < len(self.aspects) or any(name.startswith("reward") for name in self.aspects):
            raise ValueError("aspects must have different names, none of which begins with reward")
        if self.start is not None and self.path is not None:
            raise ValueError("path uses a model as it is, start trains one further: set one of them")
        if self.start is not None and len(self.heads) > 1:
            raise ValueError("start has one head: use ensemble_of models, and no aspects")
        if any(not 0 < share < 1 for share in self.learning_curve):
            raise ValueError("learning_curve holds shares between 0 and 1; the whole is the model itself")
        if isinstance(self.annotators, dict) and any(weight < 0 for weight in self.annotators.values()):
            raise ValueError("annotators' weights must be 0 or more")
        return self

    @property
    def heads(self) -> tuple[str, ...]:
        """The model's labels: the reward, or the ensemble's members, and then the aspects."""
        members = self.ensemble if self.ensemble_of == "heads" else 1
        rewards = ("reward",) if members == 1 else tuple(f"reward-{i + 1}" for i in range(members))
        return (*rewards, *self.aspects)
