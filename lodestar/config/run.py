"""The whole configuration of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lodestar.config.base import Section
from lodestar.config.data import DataConfig, ModelConfig
from lodestar.config.ppo import PpoConfig
from lodestar.config.rewards import SourceConfig
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
        if self.deterministic and self.policy.swap == "continue":
            raise ValueError("deterministic needs policy.swap drain: where new weights come in depends on timing")
        if self.sft is None and self.model.path is None:
            raise ValueError("sft is null, so model.path must name a trained model")
        if self.evaluation.judge == "gold" and self.data.kind != "synthetic":
            raise ValueError("evaluation.judge gold exists for data.kind synthetic only; set evaluation.judge: reward")
        if self.data.kind != "synthetic" and any(source.kind == "gold" for source in self.reward.sources):
            raise ValueError("reward.sources: kind gold exists for data.kind synthetic only")
        if self.ppo.critic.init == "reward" and self.critic_source is None:
            raise ValueError(
                "ppo.critic.init reward needs reward.sources to be one single model of one label, with weight 1 and no "
                "offset of its own; functions, rules, ensembles and weighted sums have no value head to start from: "
                "set ppo.critic.init: policy"
            )
        if self.model.path is None:
            longest = self.data.max_prompt_tokens + self.ppo.max_tokens
            if longest > self.model.architecture.context_tokens:
                raise ValueError(
                    f"data.max_prompt_tokens + ppo.max_tokens is {longest}, beyond "
                    f"model.architecture.context_tokens {self.model.architecture.context_tokens}"
                )
        return self

    @property
    def reward_sources(self) -> tuple[SourceConfig, ...]:
        """reward.sources as they are served: without any, the run's own reward model; the world's gold is watched
        in every synthetic run that does not watch something else."""
        sources = self.reward.sources or (SourceConfig(name="reward"),)
        if self.data.kind == "synthetic" and not any(source.watched for source in sources):
            gold = "gold" if all(source.name != "gold" for source in sources) else "world-gold"
            sources = (*sources, SourceConfig(name=gold, kind="gold", watched=True))
        return sources

    @property
    def critic_source(self) -> SourceConfig | None:
        """The one model that the score is, which a critic can start from; None where there is none."""
        scoring = [source for source in self.reward_sources if not source.watched]
        if len(scoring) != 1 or scoring[0].kind != "model" or len(scoring[0].paths) > 1:
            return None
        (source,) = scoring
        return source if source.weight == 1 and source.offset == 0 and source.heads is None else None

    @property
    def watched_source(self) -> str | None:
        """Name of the source that is watched."""
        return next((source.name for source in self.reward_sources if source.watched), None)

    @property
    def trains_reward_model(self) -> bool:
        """Whether a source is the run's own reward model."""
        return any(source.kind == "model" and not source.paths for source in self.reward_sources)
