"""What one service process is told when it starts, on a laptop and on Kubernetes alike: its role, its own section, the
artifacts that it works with and the addresses of others. Nothing of the rest of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from lodestar.config.base import Section
from lodestar.config.ppo import PpoConfig
from lodestar.config.services import (
    FeedbackConfig,
    GatewayConfig,
    LearnerConfig,
    PolicyConfig,
    QueueConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    TrainingServiceConfig,
)
from lodestar.queue.address import checked_url


class Endpoints(Section):
    """Where the other parts of the fleet are: gRPC targets such as ``127.0.0.1:50051`` or ``dns:///policy:50051``."""

    redis: str | None = None
    """Redis URL of the rollout queue, as queue.url: without a password."""
    policy: tuple[str, ...] = ()
    """Policy servers; one dns:/// target may stand for many."""
    reward: tuple[str, ...] = ()
    """Reward servers."""
    reference: tuple[str, ...] = ()
    """Reference servers."""
    weights: str | None = None
    """The learner host's WeightsService."""
    training: str | None = None
    """A server that trains models for callers' own algorithms."""

    @field_validator("redis")
    @classmethod
    def _is_a_url_without_a_password(cls, redis: str | None) -> str | None:
        return redis if redis is None else checked_url(redis)


class Listening(Section):
    """Where a process listens and whom it lets in."""

    host: str = "127.0.0.1"
    """Address to bind. Other than loopback needs tls, or insecure."""
    port: int = Field(default=0, ge=0, le=65_535)
    """gRPC port; 0 takes a free one, which the process writes to its log and its state file."""
    caller_port: int | None = Field(default=None, ge=0, le=65_535)
    """gRPC port for outside callers, who show a token instead of a certificate; needs tls and tokens. Unset: none."""
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    """Port that answers health and nothing else, in plaintext, for probes without a certificate. Unset: none."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Prometheus port; 0 takes a free one."""
    weights_port: int = Field(default=0, ge=0, le=65_535)
    """learner: port of the WeightsService process."""
    http_port: int = Field(default=0, ge=0, le=65_535)
    """gateway: port of its HTTP API; 0 takes a free one."""
    http_tls: Path | None = None
    """gateway: folder of its HTTP API's certificate, as tls; unset: tls."""
    replica: int = Field(default=0, ge=0)
    """Which of the role's processes this is."""
    tls: Path | None = None
    """Folder with ca.crt, tls.crt and tls.key; callers must show a certificate of that authority. Unset: plaintext."""
    tokens: Path | None = None
    """File of outside callers' tokens (lodestar certs token)."""
    insecure: bool = False
    """Allow a non-loopback address without TLS."""
    reflection: bool | None = None
    """gRPC reflection; unset means on loopback only."""
    linger_seconds: float = Field(default=2.5, ge=0)
    """learner: how long it stays after the last step, so that whoever scrapes or watches sees how the run ended."""


class Task(Section):
    """What every role is told."""

    run: str
    """Name of the run: of its queue's keys, and of the weights that it publishes."""
    fleet: str = ""
    """Name under which the process is known where the role's is not enough; empty: the role's."""
    folder: Path
    """Where the process may write: its state file (services/NAME.json) and what its role keeps."""
    deterministic: bool = False
    """Bit-equal results between runs on one machine."""
    device: str = "auto"
    """auto: cuda when there is one, else cpu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation; master weights are float32 always."""
    hang_seconds: float = Field(default=60.0, gt=0)
    """services.hang_seconds: a thread of it that sleeps this long in the middle of its work ends the process."""
    endpoints: Endpoints = Endpoints()
    """The rest of the fleet."""
    listening: Listening = Listening()
    """Where it listens."""

    @property
    def name(self) -> str:
        """The fleet's name, or the role's."""
        return self.fleet or str(getattr(self, "role", ""))


class PolicyTask(Task):
    """A policy server."""

    role: Literal["policy"] = "policy"
    section: PolicyConfig = PolicyConfig()
    """services.policy."""
    model: str
    """Folder or hub id to serve; with ``endpoints.weights`` the learner's versions after it."""
    tokenizer: str | None = None
    """Folder of the run's tokenizer; unset: the model's own."""
    cache: Path | None = None
    """Folder of the last verified weights, for a server that follows a learner."""

    @model_validator(mode="after")
    def _knows_who_chooses(self) -> PolicyTask:
        if self.section.best_of > 1 and not self.endpoints.reward:
            raise ValueError(
                f"best_of {self.section.best_of} needs reward servers that choose: give their address (--reward)"
            )
        return self


class RewardTask(Task):
    """A reward server."""

    role: Literal["reward"] = "reward"
    section: RewardConfig = RewardConfig()
    """services.reward; its sources are what is served."""
    model: str | None = None
    """The run's own reward model; None where no source is it."""


class ReferenceTask(Task):
    """A reference server."""

    role: Literal["reference"] = "reference"
    section: ReferenceConfig = ReferenceConfig()
    """services.reference."""
    model: str
    """Folder or hub id of the frozen model."""
    tokenizer: str | None = None
    """Folder of the run's tokenizer; unset: the model's own."""


class RolloutTask(Task):
    """A rollout worker. Without reward or reference servers its samples carry no scores or reference log-probs."""

    role: Literal["rollout"] = "rollout"
    section: RolloutConfig = RolloutConfig()
    """services.rollout."""
    queue: QueueConfig = QueueConfig()
    """services.queue."""
    call_tokens: int = Field(default=16_384, ge=1)
    """Tokens of several tickets that one call to a scorer may hold."""


class LearnerTask(Task):
    """A learner, from its start to the trained policy."""

    role: Literal["learner"] = "learner"
    section: LearnerConfig = LearnerConfig()
    """services.learner."""
    queue: QueueConfig = QueueConfig()
    """services.queue."""
    ppo: PpoConfig
    """The method."""
    seed: int = 0
    """Of tickets, shuffles and new heads."""
    policy: str
    """Folder or hub id of the start model."""
    tokenizer: str | None = None
    """Folder of the run's tokenizer; unset: the start model's own."""
    reference: str
    """Folder or hub id of the reference model; read for the exact KL alone."""
    critic: str | None = None
    """The one reward model that is the score, for ``critic.init: reward``; None where there is no such model."""
    watched: str | None = None
    """Name of the reward source that is watched and never trained on."""
    sources: dict[str, str] = Field(default_factory=dict)
    """What the reward is made of, by name and digest: a resumed run must find the same."""
    prompts: Path
    """File of prompts to train on."""
    demonstrations: Path | None = None
    """File of demonstrations, where ``score.offset`` asks for their mean score."""
    text: Path | None = None
    """File of documents, where ``ptx.coefficient`` asks for them."""
    state: Path
    """Folder of checkpoints, published weights and batches that failed."""
    figures: Path
    """Folder of metrics.jsonl and ledger.jsonl."""
    output: Path
    """Folder of the trained policy."""


class FeedbackTask(Task):
    """The page where people judge."""

    role: Literal["feedback"] = "feedback"
    section: FeedbackConfig = FeedbackConfig()
    """services.feedback."""
    kept: Path | None = None
    """Folder of what must not be lost: feedback.sqlite, page.json and lead.link; unset: the process's own."""

    @property
    def place(self) -> Path:
        """Where that is."""
        return self.kept or self.folder


class GatewayTask(Task):
    """A gateway: OpenAI's HTTP API over ``endpoints.policy``, tinker's over ``endpoints.training``."""

    role: Literal["gateway"] = "gateway"
    section: GatewayConfig = GatewayConfig()
    """Its bounds."""

    @model_validator(mode="after")
    def _stands_before_something(self) -> GatewayTask:
        if not self.endpoints.policy and self.endpoints.training is None:
            raise ValueError("endpoints.policy: the gateway needs a policy server's address, or a --training server's")
        return self


class TrainingTask(Task):
    """A server that trains models for callers' own algorithms."""

    role: Literal["training"] = "training"
    section: TrainingServiceConfig = TrainingServiceConfig()
    """Its bounds."""
    model: str
    """Folder or hub id that every model begins as."""


ServiceTask = Annotated[
    PolicyTask | RewardTask | ReferenceTask | RolloutTask | LearnerTask | FeedbackTask | GatewayTask | TrainingTask,
    Field(discriminator="role"),
]
TASK: TypeAdapter[
    PolicyTask | RewardTask | ReferenceTask | RolloutTask | LearnerTask | FeedbackTask | GatewayTask | TrainingTask
] = TypeAdapter(ServiceTask)
"""``TASK.validate_json(text)`` is the task that a file or the fork server's request holds."""
