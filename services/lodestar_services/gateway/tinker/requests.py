"""Tinker's JSON bodies as checked models: what this server does not honour is refused by name.

Fields that only describe the message (``type``) are let be.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lodestar.records import Lora, OptimParams, SamplingParams
from lodestar_services.gateway.errors import ApiError, unsupported

Nothing = Annotated[Any, Field(default=None)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
    type: str | None = None


class Session(_Body):
    """POST create_session."""

    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None

    @property
    def not_kept(self) -> list[str]:
        """Names of what was sent and means nothing here."""
        return [name for name in ("tags", "user_metadata", "project_id", "display_name") if getattr(self, name)]


class Heartbeat(_Body):
    """POST session_heartbeat."""

    session_id: str


class Adapters(_Body):
    """A LoRA configuration; rank 0 trains all weights."""

    rank: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True

    def lora(self, seed: int) -> Lora | None:
        """As the training service takes it; ``seed`` where none was sent."""
        if not self.rank:
            return None
        return Lora(
            self.rank,
            attention=self.train_attn,
            mlp=self.train_mlp,
            head=self.train_unembed,
            seed=seed if self.seed is None else self.seed,
        )


class Optimizer(_Body):
    """Fixed when a model is made."""

    type: Literal["adamw"] = "adamw"


class CreateModel(_Body):
    """POST create_model."""

    session_id: str
    model_seq_id: Annotated[int, Field(ge=0)]
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: Adapters | None = None
    optimizer_config: Optimizer = Optimizer()


class GetInfo(_Body):
    """POST get_info."""

    model_id: str


class Adam(_Body):
    """Of one step."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    @property
    def params(self) -> OptimParams:
        """As the training service takes them."""
        return OptimParams(
            self.learning_rate, self.beta1, self.beta2, self.eps, self.weight_decay, max(0.0, self.grad_clip_norm)
        )


class OptimStep(_Body):
    """POST optim_step."""

    model_id: str
    seq_id: int
    adam_params: Adam


class Save(_Body):
    """POST save_weights and save_weights_for_sampler."""

    model_id: str
    seq_id: int
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: Literal["snapshot"] = "snapshot"
    overwrite: bool = False
    ttl_seconds: int | None = None
    user_metadata: dict[str, Any] | None = None


class Load(_Body):
    """POST load_weights: into a model, or as a new one of a session."""

    path: str
    optimizer: bool
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    optimizer_config: Optimizer | None = None
    user_metadata: dict[str, Any] | None = None
    weights_access_token: str | None = None

    @model_validator(mode="after")
    def _says_where(self) -> Load:
        old, new = (self.model_id, self.seq_id), (self.session_id, self.model_seq_id)
        if (None in old) == (None in new):
            raise ValueError("model_id: send it with seq_id, or session_id with model_seq_id")
        return self


class CreateSampler(_Body):
    """POST create_sampling_session."""

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class Chunk(_Body):
    """Of a prompt."""

    type: Literal["encoded_text"]
    tokens: list[int]


class Prompt(_Body):
    """Tokens in chunks."""

    chunks: list[Chunk]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(token for chunk in self.chunks for token in chunk.tokens)


class Sampling(_Body):
    """How to sample."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | list[int] | list[str] | None = None
    """None: the model's end of text; an empty list: nothing ends it but max_tokens."""
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class Sample(_Body):
    """POST asample."""

    sampling_session_id: str
    seq_id: int
    prompt: Prompt
    sampling_params: Sampling
    num_samples: Annotated[int, Field(ge=1)] = 1
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Annotated[int, Field(ge=0)] = 0
    topk_sample_logprobs: Annotated[int, Field(ge=0)] = 0
    base_model: None = None
    model_path: None = None
    target_prompt_logprobs: None = None
    prompt_alt_tokens_k: Literal[0] = 0
    prompt_logprobs_last_n: None = None
    record_stability_info: Literal[False] | None = None

    def sampling(self, context_tokens: int) -> SamplingParams:
        """As the training service takes it; without max_tokens what is left of the context."""
        asked = self.sampling_params
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        left = max(1, context_tokens - len(self.prompt.token_ids))
        return SamplingParams(
            max_tokens=left if asked.max_tokens is None else asked.max_tokens,
            n=self.num_samples,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=max(0, asked.top_k),
            seed=None if asked.seed is None else asked.seed % 2**64,
            stop=tuple(stop for stop in stops if isinstance(stop, str)),
            stop_token_ids=tuple(stop for stop in stops if isinstance(stop, int)),
            logprobs=True,
            top_logprobs=self.topk_sample_logprobs,
            ignore_eos=asked.stop == [],
        )


class Retrieve(_Body):
    """POST retrieve_future."""

    request_id: str
    allow_metadata_only: bool = False


class Cancel(_Body):
    """POST cancel_future."""

    request_id: str


B = TypeVar("B", bound=_Body)


def read(kind: type[B], body: Any) -> B:
    """The request that a JSON body holds.

    Raises:
        ApiError: it cannot be used; ``param`` names what is wrong.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("extra_forbidden", "none_required", "literal_error"):
            raise unsupported(place, f"{first['input']!r} is not honoured by this server") from None
        raise ApiError(400, f"{place}: {message}" if place else message, param=place or None) from None


def refuse(**given: Any) -> None:
    """Raises ApiError for the first thing that was sent and that nobody would keep."""
    for name, value in given.items():
        if value:
            raise unsupported(name, "is not kept by this server; leave it out")
