"""The whole configuration of a run: its name, what it starts from, its stages, and the services beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lodestar.config.base import Section
from lodestar.config.data import ModelConfig
from lodestar.config.services import (
    FeedbackConfig,
    LearnerConfig,
    PolicyConfig,
    QueueConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
)


class ServicesConfig(Section):
    """The services that stages call, whichever stage calls them."""

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
    feedback: FeedbackConfig = FeedbackConfig()
    """The page where people judge."""
    hang_seconds: float = Field(default=60.0, gt=0)
    """A process that could have given a sign of life and did not for so long is killed and started again. Seconds in
    which it waited for a core, a disk or a debugger do not count, so that a slow one is let be (lodestar.liveness)."""


class RunConfig(Section):
    """One run. ``lodestar config check`` prints its stages as a table; lodestar.recipe.plan makes that plan."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$")
    """Lower-case letters, digits and dashes: also a Kubernetes name and the folder below runs_dir."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of everything random."""
    runs_dir: str = "runs"
    """Folder that holds the run's folder."""
    deterministic: bool = False
    """Bit-equal tokens, log-probs, curves and weights between runs on one machine, at some cost in speed."""
    recipe: str | None = None
    """A recipe that ships (lodestar/recipes), whose stages this file's own options go over. Unset and without
    ``stages``: instruct-gpt."""
    model: ModelConfig = ModelConfig()
    """The start model."""
    given: dict[str, str] = Field(default_factory=dict)
    """Artifacts that the run brings along, by kind: ``{reward_model: other/reward/reward}``; models by model.path."""
    stages: dict[str, Any] = Field(default_factory=dict)
    """Stage → its options, in order; ``rounds: {n, stages}`` repeats some as r1.…, r2.…; null leaves one out."""
    services: ServicesConfig = ServicesConfig()
    """Services."""
    tracking: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that get the run's figures, samples, options and report, below the run's folder (docs/operations.md)."""
    compare: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Methods of one's own for ``lodestar compare``: name → options over this file's, ``recipe`` among them."""

    @model_validator(mode="before")
    @classmethod
    def _written_as_before(cls, tree: Any) -> Any:
        """Takes the keys of before recipes, and the stages of the recipe that is named."""
        from lodestar.recipe.written import whole, with_recipe

        return with_recipe(whole(tree)) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.deterministic and self.services.policy.swap == "continue":
            raise ValueError(
                "deterministic needs services.policy.swap drain: where new weights come in depends on timing"
            )
        return self
