"""The whole configuration of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lodestar.config.base import Section
from lodestar.config.data import DataConfig, ModelConfig
from lodestar.config.ppo import PpoConfig
from lodestar.config.services import (
    LearnerConfig,
    PolicyConfig,
    QueueConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
)
from lodestar.config.training import RewardTrainingConfig, TrainingConfig


class EvaluationConfig(Section):
    """Whether the model became better."""

    prompts: int = Field(default=512, ge=1)
    """Held-out prompts, seen by no stage."""
    best_of: tuple[int, ...] = (2, 4, 8)
    """n of best-of-n sampling from the SFT model, ranked by the reward model."""
    judge: Literal["gold", "reward"] = "gold"
    """gold: the synthetic world's hidden reward; reward: the reward model (how far PPO got, not if it is better)."""
    watch_every: int = Field(default=5, ge=0)
    """PPO steps between the running win rates of the live view; 0 takes none."""
    watch_prompts: int = Field(default=64, ge=1)
    """Held-out prompts of the running win rate."""


class RunConfig(Section):
    """One run: data, models, PPO, services."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$")
    """Lower-case letters, digits and dashes: also a Kubernetes name and the folder below runs_dir."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of everything random."""
    runs_dir: str = "runs"
    """Folder that holds the run's folder."""
    deterministic: bool = False
    """Bit-equal tokens, log-probs, curves and weights between runs on one machine, at some cost in speed."""
    data: DataConfig = DataConfig()
    """Demonstrations, comparisons, prompts."""
    model: ModelConfig = ModelConfig()
    """The start model."""
    pretrain: TrainingConfig | None = None
    """Language modelling on plain text first; unset skips it."""
    sft: TrainingConfig | None = TrainingConfig()
    """Supervised fine-tuning; null skips it and model.path is the SFT model."""
    reward_model: RewardTrainingConfig = RewardTrainingConfig()
    """The reward model."""
    ppo: PpoConfig = PpoConfig()
    """PPO."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    policy: PolicyConfig = PolicyConfig()
    """Policy service."""
    reward: RewardConfig = RewardConfig()
    """Reward service."""
    reference: ReferenceConfig = ReferenceConfig()
    """Reference service."""
    learner: LearnerConfig = LearnerConfig()
    """Learner service."""
    rollout: RolloutConfig = RolloutConfig()
    """Rollout workers."""
    queue: QueueConfig = QueueConfig()
    """Rollout queue."""

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.deterministic and self.ppo.max_staleness > 0:
            raise ValueError(
                "deterministic needs ppo.max_staleness 0: which weights a stale rollout sees depends on timing"
            )
        if self.sft is None and self.model.path is None:
            raise ValueError("sft is null, so model.path must name a trained model")
        if self.evaluation.judge == "gold" and self.data.kind != "synthetic":
            raise ValueError("evaluation.judge gold exists for data.kind synthetic only; set evaluation.judge: reward")
        if self.model.path is None:
            longest = self.data.max_prompt_tokens + self.ppo.max_tokens
            if longest > self.model.architecture.context_tokens:
                raise ValueError(
                    f"data.max_prompt_tokens + ppo.max_tokens is {longest}, beyond "
                    f"model.architecture.context_tokens {self.model.architecture.context_tokens}"
                )
        return self
