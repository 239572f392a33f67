"""What one service process is told when it starts, on a laptop and on Kubernetes alike."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from lodestar.config.base import Section
from lodestar.config.run import RunConfig
from lodestar.layout import RunFolder
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

    @field_validator("redis")
    @classmethod
    def _is_a_url_without_a_password(cls, redis: str | None) -> str | None:
        return redis if redis is None else checked_url(redis)


class ServeOptions(Section):
    """One process of one role; ``lodestar serve ROLE CONFIG`` and the launcher both make it."""

    config: RunConfig
    """The run's configuration; the service takes its own section out of it and passes on nothing else."""
    run_dir: Path
    """The run's folder (lodestar.layout.RunFolder)."""
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
    replica: int = Field(default=0, ge=0)
    """Which of the role's processes this is."""
    model: str | None = None
    """Folder or hub id of the model to serve; unset takes the run's own."""
    tls: Path | None = None
    """Folder with ca.crt, tls.crt and tls.key; callers must show a certificate of that authority. Unset: plaintext."""
    tokens: Path | None = None
    """File of outside callers' tokens (lodestar certs token)."""
    insecure: bool = False
    """Allow a non-loopback address without TLS."""
    reflection: bool | None = None
    """gRPC reflection; unset means on loopback only."""
    resume: bool = False
    """learner: go on from the newest checkpoint."""
    linger_seconds: float = Field(default=2.5, ge=0)
    """learner: how long it stays after the last step, so that whoever scrapes or watches sees how the run ended."""
    endpoints: Endpoints = Endpoints()
    """The rest of the fleet."""

    @property
    def start_model(self) -> str:
        """What the policy starts from and the reference is: ``model``, else the last supervised stage's output, else
        the model that the run brings along."""
        folder = RunFolder(self.run_dir)
        stages = ((self.config.sft, folder.sft), (self.config.pretrain, folder.pretrained))
        made = next((str(output) for stage, output in stages if stage is not None), None)
        return self.model or made or self.config.model.path or str(folder.sft)
