"""PPO's options, with the defaults of the design's section 5 and their sources."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lodestar.config.base import Section


def _without(values: Any, names: tuple[str, ...], why: str) -> Any:
    """Refuses options that would have one legal value each, and says why."""
    for name in names:
        if isinstance(values, dict) and name in values:
            raise ValueError(f"{name} {values[name]!r} is no option, leave it out: {why}")
    return values


class KlConfig(Section):
    """The KL penalty to the reference model: k1 = log π_prox − log π_ref, the only unbiased choice in a reward."""

    controller: Literal["fixed", "adaptive"] = "fixed"
    """fixed β, or Ziegler et al. 2019's proportional controller."""
    coefficient: float = Field(default=0.05, ge=0)
    """β, or its start value under the adaptive controller."""
    target: float = Field(default=6.0, gt=0)
    """adaptive: nats per sequence."""
    horizon: int = Field(default=10_000, ge=1)
    """adaptive: sequences over which a full-size error doubles β."""
    loss_estimator: str | None = None
    """Adds a KL term to the loss: k2 or exact (over the vocabulary); unset adds none."""
    loss_coefficient: float = Field(default=0.0, ge=0)
    """Weight of that term."""

    @model_validator(mode="before")
    @classmethod
    def _k1_enters_the_reward(cls, values: Any) -> Any:
        return _without(
            values,
            ("reward_estimator",),
            "only k1 may enter the reward, because the policy gradient of k2 or k3 there is not that of the KL and "
            "moves the optimum; k3 is a metric, k2 and exact are loss terms (loss_estimator)",
        )

    @model_validator(mode="after")
    def _estimators_are_sound(self) -> KlConfig:
        if self.loss_estimator not in (None, "k2", "exact"):
            raise ValueError(
                f"loss_estimator {self.loss_estimator!r}: as a loss only k2 or exact has the KL's gradient; "
                "k1's is zero in expectation and k3's is that of the reverse divergence"
            )
        if (self.loss_estimator is None) != (self.loss_coefficient == 0):
            raise ValueError("loss_estimator and loss_coefficient go together: set both or neither")
        return self


class ScoreConfig(Section):
    """What happens to a reward model's score before it becomes a reward."""

    offset: Literal["none", "demonstrations", "samples"] | float = "demonstrations"
    """Subtracted from every score: the mean score of demonstrations, of the start model's samples, or a number."""
    clip: float | None = Field(default=None, gt=0)
    """Scores are clipped to ±this; unset clips nothing."""
    whiten: bool = False
    """Divide by the running standard deviation of scores."""
    missing_eos: float | None = None
    """Replaces the score of a response that was cut off; unset keeps the model's score."""


class CriticConfig(Section):
    """The value network: separate from the policy."""

    init: Literal["reward", "policy", "path"] = "reward"
    """reward: the reward model's weights, head shifted by the offset; policy: the policy's with a new head."""
    path: str | None = None
    """init: path — a folder with an AutoModelForSequenceClassification of one label."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak, decayed linearly to 0."""
    clip: float = Field(default=0.2, gt=0)
    """Value clip."""
    coefficient: float = Field(default=0.1, gt=0)
    """Weight of the value loss."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The critic's own gradient-norm clip."""

    @model_validator(mode="after")
    def _path_goes_with_init(self) -> CriticConfig:
        if (self.init == "path") != (self.path is not None):
            raise ValueError("critic.path must be set when critic.init is path, and only then")
        return self


class PtxConfig(Section):
    """PPO-ptx: γ × the language-model loss on pretraining text (InstructGPT, equation 2)."""

    coefficient: float = Field(default=0.0, ge=0)
    """γ; 0 is off. InstructGPT's 27.8 belongs to its own scales and is known to be unstable elsewhere."""
    batch_tokens: int = Field(default=2048, ge=1)
    """Pretraining tokens per optimizer step."""
    document_tokens: int = Field(default=512, ge=2)
    """Longer documents are cut into pieces of this many."""


class WatchConfig(Section):
    """The over-optimisation watch: does the score still mean what it should? (lodestar.ppo.watch has the rule.)"""

    window: int = Field(default=10, ge=6)
    """Shortest stretch of PPO steps whose trends are tested; twice and four times as long ones are tested too."""
    significance: float = Field(default=0.01, gt=0, lt=0.5)
    """Of each one-sided trend test, shared among the stretches."""
    disagreement: float = Field(default=1.5, gt=1)
    """Growth of the reward ensemble's disagreement, against the run's first steps, that counts as leaving its data."""
    stop: bool = False
    """End the run at the judge's alarm; an alarm by disagreement alone is said, logged and drawn, and ends nothing."""


class PpoConfig(Section):
    """Proximal policy optimisation against the reward model with a KL penalty."""

    steps: int = Field(default=40, ge=1)
    """PPO iterations; the learning rates decay to 0 over them. May be raised later: the run goes on from its last
    checkpoint, at the rate that the larger number has there."""
    batch: int = Field(default=64, ge=1)
    """Sequences per iteration."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """n of each ticket; must divide batch."""
    max_tokens: int = Field(default=64, ge=1)
    """Response tokens at most."""
    temperature: float = Field(default=1.0, gt=0)
    """τ: logits are divided by it wherever a log-prob is computed."""
    epochs: int = Field(default=4, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    micro_batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens computed at once; bounds memory, never changes the result."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The policy's peak, decayed linearly to 0."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's, policy and critic."""
    adam_eps: float = Field(default=1e-5, gt=0)
    """AdamW's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's, on matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The policy's gradient-norm clip."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """ε of the clipped ratio."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's λ."""
    whiten_advantages: bool = True
    """Over the response tokens of the whole batch."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Cap of w_t = π_prox / π_behaviour."""
    target_kl: float | None = Field(default=None, gt=0)
    """End an iteration's epochs early when the mean k3 of new against proximal policy passes this."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Entropy bonus."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the policy (InstructGPT: 0.992); unset is off."""
    max_staleness: int = Field(default=0, ge=0)
    """Steps a rollout's policy may lag behind; ≥ 1 generates while the learner optimises."""
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    """More failed tickets than this share of a step pause the run."""
    kl: KlConfig = KlConfig()
    """KL penalty."""
    score: ScoreConfig = ScoreConfig()
    """Score handling."""
    critic: CriticConfig = CriticConfig()
    """Value network."""
    ptx: PtxConfig = PtxConfig()
    """Pretraining mix."""
    watch: WatchConfig = WatchConfig()
    """Over-optimisation watch."""

    @model_validator(mode="before")
    @classmethod
    def _samples_the_whole_distribution(cls, values: Any) -> Any:
        return _without(
            values,
            ("top_p", "top_k"),
            "training samples the whole distribution: PPO's log-probs are of the temperature-only one, and sampling "
            "from another biases every ratio",
        )

    @model_validator(mode="after")
    def _fits_together(self) -> PpoConfig:
        if self.batch % self.samples_per_prompt:
            raise ValueError(f"samples_per_prompt {self.samples_per_prompt} must divide batch {self.batch}")
        if self.minibatches > self.batch:
            raise ValueError(f"minibatches {self.minibatches} cannot exceed batch {self.batch}")
        return self

    @property
    def tickets(self) -> int:
        """Tickets per iteration."""
        return self.batch // self.samples_per_prompt
