"""One section per service; a service receives only its own, and the run's name, seed and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from lodestar.config.base import Section
from lodestar.config.rewards import SourceConfig, check_sources
from lodestar.queue.address import checked_url, password_from

WeightDeltas = Literal["16bit", "all"]


class ServerConfig(Section):
    """What every gRPC server shares."""

    replicas: int = Field(default=1, ge=1)
    """Processes on one machine."""
    threads: int = Field(default=1, ge=1)
    """Threads of the one model that computes in the process, at most: fewer where others keep the cores busy."""
    max_message_bytes: int = Field(default=4 * 2**20, ge=2**16)
    """Largest message accepted or sent."""
    drain_seconds: float = Field(default=20.0, ge=0)
    """After SIGTERM, calls in flight may take this long."""


class PolicyConfig(ServerConfig):
    """The generation engine and its server."""

    training_share: float = Field(default=0.5, gt=0, lt=1)
    """Training's part of the server while outside callers want the rest; what one side does not use, the other gets."""
    max_sequences: int = Field(default=256, ge=1)
    """Sequences decoded at once."""
    max_waiting: int = Field(default=4096, ge=1)
    """Sequences queued before RESOURCE_EXHAUSTED, of training and of all outside callers each."""
    kv_cache_tokens: int = Field(default=65_536, ge=16)
    """Tokens whose keys and values are held."""
    block_tokens: int = Field(default=16, ge=1)
    """Tokens per block."""
    prefill_tokens: int = Field(default=2048, ge=16)
    """Prompt tokens computed per step at most (chunked prefill)."""
    prefix_cache: bool = True
    """Share the blocks of equal prefixes, between samples and between prompts."""
    swap: Literal["drain", "continue"] = "drain"
    """New weights wait for running sequences, or sequences go on and each token is stamped with its version."""
    best_of: int = Field(default=1, ge=1)
    """Samples drawn for each one that a caller gets: the best by the reward servers. Rollouts of training get the
    policy's own samples always. In a run it holds for the policy that an evaluation judges, not for its rivals."""

    @model_validator(mode="after")
    def _draws_what_it_may(self) -> PolicyConfig:
        if self.best_of > self.max_waiting:
            raise ValueError(
                f"best_of {self.best_of} is beyond max_waiting {self.max_waiting}, the most samples that one request "
                "may draw: lower the one, or raise the other"
            )
        return self


class BatchedConfig(ServerConfig):
    """A server that scores: requests are batched by tokens."""

    training_share: float = Field(default=0.5, gt=0, lt=1)
    """Training's part of the server while outside callers want the rest; what one side does not use, the other gets."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens per forward pass at most."""
    batch_wait_ms: float = Field(default=2.0, ge=0)
    """How long a request waits for company."""
    max_queued_tokens: int = Field(default=2**20, ge=1)
    """Tokens queued before RESOURCE_EXHAUSTED, of training and of all outside callers each."""


class RewardConfig(BatchedConfig):
    """The reward server."""

    sources: tuple[SourceConfig, ...] = ()
    """What the score is made of; empty is the run's own reward model, with the synthetic world's gold watched."""

    @model_validator(mode="after")
    def _sources_fit_together(self) -> RewardConfig:
        check_sources(self.sources)
        return self


class ReferenceConfig(BatchedConfig):
    """The reference server."""


class LearnerConfig(ServerConfig):
    """The learner's process; the mathematics is in the ppo section."""

    replicas: Literal[1] = 1
    """One learner drives a run."""
    drain_seconds: float = Field(default=600.0, ge=0)
    """After SIGTERM or Ctrl-C, the step in progress and its checkpoint may take this long; a step that only waits for
    rollouts is given up at once."""
    threads: int = Field(default=2, ge=1)
    """Threads of the update, and of every training: at most, as above; exactly these where ``deterministic``."""
    checkpoint_every: int = Field(default=10, ge=1)
    """PPO steps between checkpoints; one is written at the end always."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Older ones are deleted."""
    weight_versions: int = Field(default=3, ge=1)
    """Published versions kept on disk, besides all since the last full one."""
    full_weights_every: int = Field(default=16, ge=1)
    """Versions from one full publication to the next; between them what changed is sent, unless that is more than half
    as much. 1: every version is full."""
    weight_deltas: WeightDeltas = "16bit"
    """Weights of which a copy is kept in the learner, so that what changed can be sent: bfloat16 and float16 (at a
    learning rate of 1e-6 2% of the bytes), or float32 too (40%)."""


class RolloutConfig(Section):
    """The rollout workers."""

    replicas: int = Field(default=1, ge=1)
    """Worker processes on one machine."""
    in_flight: int = Field(default=64, ge=1)
    """Tickets one worker holds at once."""
    version_wait_seconds: float = Field(default=5.0, gt=0)
    """How long a policy server may wait for the wanted weights before the worker asks another."""
    deadline_seconds: float = Field(default=120.0, gt=0)
    """Of each call."""
    max_attempts: int = Field(default=3, ge=1)
    """Errors of a ticket's own before it becomes a dead letter."""
    max_deliveries: int = Field(default=20, ge=1)
    """Deliveries before a ticket that kills workers becomes a dead letter."""


class GatewayConfig(Section):
    """The HTTP gateway before a policy service."""

    name: str = Field(default="", pattern=r"^[^\x00-\x1f\x7f]{0,200}$")
    """The model's id in /v1/models and in requests. Empty: as the policy server names it."""
    max_body_bytes: int = Field(default=2**20, ge=2**10)
    """Largest request body."""
    max_requests: int = Field(default=1024, ge=1)
    """Requests answered at once; the next one is told 429."""
    max_prompts: int = Field(default=128, ge=1)
    """Prompts of one completions request."""
    deadline_seconds: float = Field(default=600.0, gt=0)
    """Of each request, until its last token."""
    session_seconds: float = Field(default=900.0, gt=0)
    """A tinker session that was silent so long is over, and its models are freed; the SDK is heard every 10 s."""
    drain_seconds: float = Field(default=20.0, ge=0)
    """After SIGTERM, requests in flight may take this long."""


class TrainingServiceConfig(ServerConfig):
    """The service that trains models for callers' own algorithms."""

    replicas: Literal[1] = 1
    """Models live in one process's memory."""
    max_message_bytes: int = Field(default=32 * 2**20, ge=2**16)
    """As above; a token takes some 20 bytes of a ForwardBackward call."""
    drain_seconds: float = Field(default=60.0, ge=0)
    """As above: what is asked for by then is done; models that were not saved are lost."""
    weights: Path = Path("runs/training")
    """Folder of what callers save; whoever starts the server on it again can load it."""
    max_models: int = Field(default=8, ge=1)
    """Models in memory at once; those with adapters share the start model's weights."""
    max_queued: int = Field(default=256, ge=1)
    """Calls that wait or are computed; the next one is told RESOURCE_EXHAUSTED."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per forward and backward pass; a longer sequence stands alone."""
    samplers: int = Field(default=2, ge=1)
    """Sets of weights that are sampled from at once; each is a copy of the model with a KV cache."""
    kept_samplers: int = Field(default=4, ge=1)
    """Nameless weights for sampling kept per model; older ones are deleted."""
    kv_cache_tokens: int = Field(default=65_536, ge=16)
    """Of each sampler."""


class FeedbackConfig(Section):
    """The page where people judge, and FeedbackService beside it."""

    database: str | None = None
    """postgresql://user@host/name, without a password; unset is the variable LODESTAR_FEEDBACK_DATABASE, which may hold
    one, else SQLite in the service's folder."""
    page_host: str | None = None
    """Address that the page binds; unset is gRPC's. Other than loopback needs page_tls, or --insecure behind a proxy
    that speaks TLS."""
    page_port: int = Field(default=0, ge=0, le=65_535)
    """Of the page; 0 takes the one that it had last, so that links go on working, or a free one."""
    link: str | None = Field(default=None, pattern=r"^https?://[^/\s]+$")
    """What people type: scheme, host and port, where a proxy or a name stands before the page. Unset: host and port."""
    page_tls: Path | None = None
    """Folder with tls.crt and tls.key for the page, signed by an authority that browsers know."""
    proxy: str | None = None
    """Addresses of proxies (commas between) whose X-Forwarded-For is believed."""
    lead: str | None = Field(default="lead", min_length=1)
    """Name of the lead who is invited when nobody is there yet; the link is in lead.link in the folder."""
    drain_seconds: float = Field(default=20.0, ge=0)
    """After SIGTERM, requests in flight may take this long."""

    @field_validator("database")
    @classmethod
    def _holds_no_password(cls, database: str | None) -> str | None:
        if database is not None and urlsplit(database).password is not None:
            raise ValueError(
                "holds a password, which would be written wherever this option is; put the URL into the variable "
                "LODESTAR_FEEDBACK_DATABASE, or the password into PGPASSWORD or ~/.pgpass"
            )
        return database

    @model_validator(mode="after")
    def _tls_and_link_agree(self) -> FeedbackConfig:
        if self.page_tls is not None and self.link is not None and not self.link.startswith("https://"):
            raise ValueError("link must begin with https:// when page_tls is given")
        return self


class QueueConfig(Section):
    """The Redis rollout queue."""

    url: str | None = None
    """Of a server (redis://, rediss://, unix://), of Sentinels (redis+sentinel://HOST:26379,HOST/SERVICE) or of a
    Cluster (redis+cluster://HOST,HOST), without a password; unset starts a Redis for the run."""
    password_file: Path | None = None
    """File whose first line is Redis's password. Unset is the variable LODESTAR_REDIS_PASSWORD, else none."""
    outage_seconds: float = Field(default=600.0, gt=0)
    """How long Redis may be away, full, or failing over before the run ends; meanwhile it waits and says why."""
    heartbeat_seconds: float = Field(default=2.0, gt=0)
    """A worker renews its claims this often."""
    claim_seconds: float = Field(default=10.0, gt=0)
    """A ticket silent this long is claimed by another worker; must exceed the heartbeat."""
    reconcile_seconds: float = Field(default=15.0, gt=0)
    """The learner re-issues what is unsettled when nothing settled this long."""

    @field_validator("url")
    @classmethod
    def _is_a_url_without_a_password(cls, url: str | None) -> str | None:
        return url if url is None else checked_url(url)

    def password(self) -> str:
        """Redis's password, "" for none.

        Raises:
            ConfigError: the file cannot be used.
        """
        return password_from(self.password_file)

    @model_validator(mode="after")
    def _claims_outlive_heartbeats(self) -> QueueConfig:
        if self.claim_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                "claim_seconds must be at least twice heartbeat_seconds, or honest workers lose their tickets"
            )
        return self
