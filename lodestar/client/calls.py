"""Every call of every client, once: its signature, its request and how its reply is read. Clients only wait.

A function here becomes a method of lodestar.client.blocking's and of lodestar.client.asynchronous's client.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lodestar.client.arguments import (
    ItemLike,
    PromptLike,
    SequenceLike,
    ids_of,
    items_of,
    messages_of,
    prompt_of,
    real_of,
    record_of,
    sampling_of,
    sequences_of,
    text_of,
    version_of,
)
from lodestar.client.base import Call
from lodestar.crew import progress
from lodestar.errors import InvalidArgument, LodestarError, Unavailable
from lodestar.local.board import Board
from lodestar.records import (
    ChatMessage,
    Completion,
    Datum,
    Detokenized,
    FinishReason,
    Generation,
    GenerationChunk,
    LogProbs,
    Lora,
    LossResult,
    ModelDescription,
    ModelInfo,
    OptimParams,
    PolicyStatus,
    Purpose,
    RunStatus,
    Sampled,
    SamplingParams,
    Scores,
    TrainingModel,
    WeightManifest,
    WeightVersion,
)
from lodestar.rpc import convert
from lodestar.v1 import (
    common_pb2,
    learner_pb2,
    policy_control_pb2,
    policy_pb2,
    reference_pb2,
    reward_pb2,
    run_pb2,
    training_pb2,
    weights_pb2,
)


# --- policy --------------------------------------------------------------------------------------------------------
def generate(
    prompt: PromptLike,
    sampling: SamplingParams | Mapping[str, Any] | None = None,
    *,
    timeout: float | None = None,
    min_version: WeightVersion | None = None,
    wait_seconds: float = 0.0,
    purpose: Literal["serving", "training"] = "serving",
    tokenizer_hash: str = "",
    **options: Any,
) -> Call[GenerationChunk]:
    """All samples of one prompt, finished, or with ``stream`` chunk by chunk; closing that generator cancels the rest.

    Args:
        prompt: text, token ids, or a chat for the model's template: ChatMessages or ``{"role", "content"}``.
        sampling: a record, a mapping of its fields, or these as keyword arguments (``max_tokens=20``).
        timeout: seconds; the client's unless given.
        min_version: oldest weights that will do.
        wait_seconds: how long a server with older ones may wait for them; then VersionUnavailable.
        purpose: training is held to the temperature-only distribution that PPO assumes.
        tokenizer_hash: the caller's tokenizer; another one than the server's is TokenizerMismatch.
        options: fields of lodestar.records.SamplingParams, in place of a record.

    Raises:
        InvalidArgument: an argument of another type than the one that is wanted; names both.
        LodestarError: what the server refuses (InvalidArgument, VersionUnavailable, …), and DeadlineExceeded.
    """
    if purpose not in list(Purpose):
        raise InvalidArgument("purpose", f"{purpose!r} is none of {', '.join(Purpose)}")
    request = policy_pb2.GenerateRequest(
        sampling=convert.sampling_to_proto(sampling_of(sampling, options)),
        min_version=None if min_version is None else _version("min_version", min_version),
        wait_seconds=real_of("wait_seconds", wait_seconds),
        purpose=convert.purpose_to_proto(Purpose(purpose)),
        tokenizer_hash=text_of("tokenizer_hash", tokenizer_hash),
    )
    asked = prompt_of(prompt)
    if isinstance(asked, str):
        request.text = asked
    elif isinstance(asked[0], ChatMessage):
        request.chat.CopyFrom(convert.chat_to_proto(asked))
    else:
        request.tokens.CopyFrom(common_pb2.Tokens(ids=asked))
    return Call("Generate", request, convert.chunk_from_proto, timeout)


def _version(field: str, version: WeightVersion) -> common_pb2.WeightVersion:
    return convert.weight_version_to_proto(version_of(field, version))


class Assembly:
    """Puts the interleaved chunks of n samples together."""

    def __init__(self) -> None:
        self._chunks: defaultdict[int, list[GenerationChunk]] = defaultdict(list)

    def add(self, chunk: GenerationChunk) -> None:
        """Takes the next chunk of the stream."""
        self._chunks[chunk.sample_index].append(chunk)

    def finish(self) -> Generation:
        """The generation; its version is the one that sampling began with.

        Raises:
            LodestarError: the stream ended before every sample had.
        """
        samples = [chunks for _, chunks in sorted(self._chunks.items())]
        if not samples or any(chunks[-1].finish_reason is None for chunks in samples):
            raise LodestarError("the server ended the stream before every sample was finished")
        first = samples[0][0]
        return Generation(first.model, first.prompt_tokens, tuple(map(_completion, samples)))


def _completion(chunks: Sequence[GenerationChunk]) -> Completion:
    return Completion(
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        text="".join(chunk.text for chunk in chunks),
        finish_reason=chunks[-1].finish_reason or FinishReason.ERROR,
        logprobs=tuple(value for chunk in chunks for value in chunk.logprobs),
        processed_logprobs=tuple(value for chunk in chunks for value in chunk.processed_logprobs),
        error=chunks[-1].error,
    )


def policy_logprobs(
    sequences: Iterable[SequenceLike],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    top_logprobs: int = 0,
    tokenizer_hash: str = "",
    timeout: float | None = None,
) -> Call[LogProbs]:
    """Log-probs of completions under the present weights; one answer per sequence, for the tokens after its prompt.

    ``sequences``: Scored records, or pairs of ids (prompt, completion). With ``top_logprobs`` also the k most likely
    tokens at each position.
    """
    request = policy_pb2.PolicyServiceLogProbsRequest(
        sequences=map(convert.scored_to_proto, sequences_of(sequences)),
        temperature=real_of("temperature", temperature),
        entropy=entropy,
        top_logprobs=top_logprobs,
        tokenizer_hash=tokenizer_hash,
    )
    return Call("LogProbs", request, _logprobs, timeout)


def _logprobs(
    reply: policy_pb2.PolicyServiceLogProbsResponse | reference_pb2.ReferenceServiceLogProbsResponse,
) -> LogProbs:
    return LogProbs(
        convert.model_info_from_proto(reply.model), tuple(map(convert.token_logprobs_from_proto, reply.sequences))
    )


def tokenize(
    text: str | Sequence[ChatMessage | Mapping[str, str]],
    *,
    add_special_tokens: bool = False,
    as_prompt: bool = False,
) -> Call[tuple[int, ...]]:
    """Token ids of text or of a rendered chat; text ``as_prompt`` as generate encodes it."""
    request = policy_pb2.TokenizeRequest(add_special_tokens=add_special_tokens, as_prompt=as_prompt)
    if isinstance(text, str):
        request.text = text
    else:
        request.chat.CopyFrom(convert.chat_to_proto(messages_of("text", text, "text or a chat")))
    return Call("Tokenize", request, lambda reply: tuple(reply.token_ids))


def detokenize(token_ids: Sequence[int], *, tokenizer_hash: str = "") -> Call[Detokenized]:
    """Text of token ids, and what each of them is by itself."""
    request = policy_pb2.DetokenizeRequest(token_ids=token_ids, tokenizer_hash=tokenizer_hash)
    return Call("Detokenize", request, convert.detokenized_from_proto)


def describe_policy(*, timeout: float | None = None) -> Call[ModelDescription]:
    """What is served."""
    return Call("GetModel", policy_pb2.PolicyServiceGetModelRequest(), convert.description_from_policy, timeout)


# --- policy control ------------------------------------------------------------------------------------------------
def load_version(version: WeightVersion, *, timeout: float | None = None) -> Call[ModelInfo]:
    """Makes the server fetch and serve a version of its run's learner; returns when it does."""
    request = policy_control_pb2.LoadVersionRequest(version=_version("version", version))
    return Call("LoadVersion", request, _model, timeout)


def pause_policy() -> Call[ModelInfo]:
    """Stops decoding between two steps; requests wait."""
    return Call("Pause", policy_control_pb2.PolicyControlServicePauseRequest(), _model)


def resume_policy() -> Call[ModelInfo]:
    """Goes on."""
    return Call("Resume", policy_control_pb2.PolicyControlServiceResumeRequest(), _model)


def policy_status() -> Call[PolicyStatus]:
    """Load, cache use, and why the last offered weights were refused."""
    request = policy_control_pb2.PolicyControlServiceGetStatusRequest()
    return Call("GetStatus", request, convert.policy_status_from_proto)


def _model(reply: Any) -> ModelInfo:
    return convert.model_info_from_proto(reply.model)


# --- reward and reference ------------------------------------------------------------------------------------------
def score(items: Iterable[ItemLike], *, tokenizer_hash: str = "", timeout: float | None = None) -> Call[Scores]:
    """One score per item, in order: ScoreItems, (prompt, completion) pairs or ``{"prompt", "completion"}``.

    Items of token ids need the ``tokenizer_hash`` they were made with.
    """
    request = reward_pb2.ScoreRequest(
        items=map(convert.score_item_to_proto, items_of(items)),
        tokenizer_hash=text_of("tokenizer_hash", tokenizer_hash),
    )
    return Call("Score", request, _scores, timeout)


def _scores(reply: reward_pb2.ScoreResponse) -> Scores:
    return Scores(convert.model_info_from_proto(reply.model), tuple(map(convert.score_from_proto, reply.scores)))


def describe_reward() -> Call[ModelDescription]:
    """What is served."""
    return Call("GetModel", reward_pb2.RewardServiceGetModelRequest(), convert.description_from_reward)


def reference_logprobs(
    sequences: Iterable[SequenceLike],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    tokenizer_hash: str = "",
    timeout: float | None = None,
) -> Call[LogProbs]:
    """Log-probs under the reference model; one answer per sequence, for the tokens after its prompt."""
    request = reference_pb2.ReferenceServiceLogProbsRequest(
        sequences=map(convert.scored_to_proto, sequences_of(sequences)),
        temperature=real_of("temperature", temperature),
        entropy=entropy,
        tokenizer_hash=tokenizer_hash,
    )
    return Call("LogProbs", request, _logprobs, timeout)


def describe_reference() -> Call[ModelDescription]:
    """What is served."""
    return Call("GetModel", reference_pb2.ReferenceServiceGetModelRequest(), convert.description_from_reference)


# --- learner -------------------------------------------------------------------------------------------------------
def run_status() -> Call[RunStatus]:
    """Where the run is."""
    return Call("GetStatus", learner_pb2.LearnerServiceGetStatusRequest(), _status)


def watch_run() -> Call[RunStatus]:
    """The status now and after every change, until the server goes (Unavailable) or the loop is left."""
    return Call("WatchStatus", learner_pb2.WatchStatusRequest(), _status, endless=True)


def pause_run() -> Call[RunStatus]:
    """Holds the run after the step in progress."""
    return Call("Pause", learner_pb2.LearnerServicePauseRequest(), _status)


def resume_run() -> Call[RunStatus]:
    """Goes on."""
    return Call("Resume", learner_pb2.LearnerServiceResumeRequest(), _status)


def checkpoint(*, timeout: float = 600.0) -> Call[str]:
    """Writes a checkpoint after the step in progress; its path on the learner's machine."""
    return Call("Checkpoint", learner_pb2.CheckpointRequest(), lambda reply: str(reply.path), timeout)


def stop_run() -> Call[RunStatus]:
    """Checkpoints and ends the run."""
    return Call("Stop", learner_pb2.StopRequest(), _status)


def _status(reply: Any) -> RunStatus:
    return convert.run_status_from_proto(reply.status)


# --- the whole run -------------------------------------------------------------------------------------------------
def progress_of_run() -> Call[Board]:
    """Where the run is: its stages, services and messages."""
    request = run_pb2.RunServiceGetStatusRequest()
    return Call("GetStatus", request, lambda reply: progress.from_proto(reply.progress))


def watch_progress(board: Board) -> Call[Board]:
    """Keeps a board true, and yields it after every change, until the conductor goes (Unavailable)."""

    def told(reply: run_pb2.RunServiceWatchResponse) -> Board:
        progress.take(board, reply.progress)
        return board

    return Call("Watch", run_pb2.RunServiceWatchRequest(), told, endless=True)


def pause_conductor() -> Call[str]:
    """Holds the learner, or ends the run after the stage in progress; which of them, in words."""
    return Call("Pause", run_pb2.RunServicePauseRequest(), lambda reply: str(reply.effect))


def stop_conductor() -> Call[str]:
    """Ends the learner's stage, or the run after the stage in progress; which of them, in words."""
    return Call("Stop", run_pb2.RunServiceStopRequest(), lambda reply: str(reply.effect))


# --- training ------------------------------------------------------------------------------------------------------
def create_model(
    model_id: str = "",
    *,
    lora: Lora | Mapping[str, Any] | None = None,
    path: str = "",
    optimizer: bool = False,
    timeout: float = 600.0,
) -> Call[TrainingModel]:
    """A new model that begins as the server's, or as a saved state; without ``lora`` all of its weights are trained.

    Args:
        model_id: its name; unset: the server makes one (``.model.name``).
        lora: a record, or a mapping of its fields.
        path: of a state that save_weights wrote; ``optimizer``: with its moments.
    """
    request = training_pb2.CreateModelRequest(
        model_id=text_of("model_id", model_id),
        lora=None if lora is None else convert.lora_to_proto(record_of("lora", lora, Lora)),
        path=text_of("path", path),
        optimizer=optimizer,
    )
    return Call("CreateModel", request, _training_model, timeout)


def describe_model(model_id: str = "") -> Call[TrainingModel]:
    """A model in training; unset: the one that all begin as."""
    request = training_pb2.TrainingServiceGetModelRequest(model_id=text_of("model_id", model_id))
    return Call("GetModel", request, _training_model)


def delete_model(model_id: str) -> Call[None]:
    """Frees its memory; what it saved stays."""
    request = training_pb2.DeleteModelRequest(model_id=text_of("model_id", model_id))
    return Call("DeleteModel", request, lambda reply: None)


def forward_backward(
    model_id: str,
    data: Iterable[Datum | Mapping[str, Any]],
    loss: str,
    options: Mapping[str, float] | None = None,
    *,
    forward_only: bool = False,
    tokenizer_hash: str = "",
    timeout: float = 600.0,
) -> Call[LossResult]:
    """Adds the gradient of a loss, summed over ``data``, to the model's.

    Args:
        data: records, or mappings of their fields.
        loss: cross_entropy, importance_sampling, ppo or dpo (data in pairs, the preferred one first).
        options: of the loss: ``{"clip_low": 0.2}``.
        forward_only: the loss and log-probs, and no gradient.
    """
    request = training_pb2.ForwardBackwardRequest(
        model_id=text_of("model_id", model_id),
        data=[convert.datum_to_proto(record_of(f"data[{i}]", one, Datum)) for i, one in enumerate(data)],
        loss=text_of("loss", loss),
        options=options or {},
        forward_only=forward_only,
        tokenizer_hash=tokenizer_hash,
    )
    return Call("ForwardBackward", request, convert.loss_result_from_proto, timeout)


def optim_step(
    model_id: str, params: OptimParams | Mapping[str, Any] | float, *, timeout: float = 600.0
) -> Call[tuple[ModelInfo, float]]:
    """One step of AdamW: the model after it, and the norm of the gradient; a number is the learning rate."""
    if isinstance(params, int | float):
        params = OptimParams(real_of("params", params))
    request = convert.optim_params_to_proto(record_of("params", params, OptimParams))
    request.model_id = text_of("model_id", model_id)
    return Call("OptimStep", request, lambda reply: (_model(reply), float(reply.gradient_norm)), timeout)


def sample(
    prompt: Sequence[int],
    sampling: SamplingParams | Mapping[str, Any] | None = None,
    *,
    model_id: str = "",
    path: str = "",
    prompt_logprobs: bool = False,
    top_prompt_logprobs: int = 0,
    tokenizer_hash: str = "",
    timeout: float = 600.0,
    **options: Any,
) -> Call[Sampled]:
    """Whole samples of token ids by a model as it stands, by weights saved for sampling, or by the start model.

    Args:
        sampling: as of PolicyClient.generate; ``max_tokens=0`` with ``prompt_logprobs`` samples nothing.
    """
    request = training_pb2.SampleRequest(
        model_id=text_of("model_id", model_id),
        path=text_of("path", path),
        prompt=common_pb2.Tokens(ids=ids_of("prompt", prompt)),
        sampling=convert.sampling_to_proto(sampling_of(sampling, options)),
        prompt_logprobs=prompt_logprobs,
        top_prompt_logprobs=top_prompt_logprobs,
        tokenizer_hash=tokenizer_hash,
    )
    return Call("Sample", request, convert.sampled_from_proto, timeout)


def save_weights(
    model_id: str,
    name: str = "",
    *,
    kind: Literal["state", "sampler"] = "state",
    overwrite: bool = False,
    timeout: float = 600.0,
) -> Call[str]:
    """Writes a model's weights below the server's folder; the path by which later calls name them.

    Args:
        name: needed for a state; a sampler without one is kept for a while.
        kind: state goes on with training (load_weights, create_model), sampler is a model folder for sample.
    """
    kinds = {"state": training_pb2.WEIGHTS_KIND_STATE, "sampler": training_pb2.WEIGHTS_KIND_SAMPLER}
    if kind not in kinds:
        raise InvalidArgument("kind", f"{kind!r} is none of {', '.join(kinds)}")
    request = training_pb2.SaveWeightsRequest(
        model_id=text_of("model_id", model_id), kind=kinds[kind], name=text_of("name", name), overwrite=overwrite
    )
    return Call("SaveWeights", request, lambda reply: str(reply.path), timeout)


def load_weights(model_id: str, path: str, *, optimizer: bool = True, timeout: float = 600.0) -> Call[ModelInfo]:
    """Puts a saved state into a model; without ``optimizer`` its moments begin anew."""
    request = training_pb2.LoadWeightsRequest(
        model_id=text_of("model_id", model_id), path=text_of("path", path), optimizer=optimizer
    )
    return Call("LoadWeights", request, _model, timeout)


def _training_model(reply: Any) -> TrainingModel:
    return convert.training_model_from_proto(reply.model)


# --- weights -------------------------------------------------------------------------------------------------------
def watch_weights(run: str, *, follower: str = "") -> Call[WeightManifest]:
    """The present version and then every announcement, until the server goes or the loop is left.

    Whoever names itself as a ``follower`` is to report on each of them.
    """
    request = weights_pb2.WatchRequest(run=text_of("run", run), follower=text_of("follower", follower))
    return Call("Watch", request, lambda reply: convert.weight_manifest_from_proto(reply.manifest), endless=True)


def report_weights(run: str, follower: str, version: WeightVersion, *, refusal: str = "") -> Call[WeightVersion]:
    """Tells the learner's host that a version is served, or why it is not; the version that is announced now."""
    request = weights_pb2.ReportRequest(
        run=text_of("run", run),
        follower=text_of("follower", follower),
        version=_version("version", version),
        refusal=text_of("refusal", refusal),
    )
    return Call("Report", request, lambda reply: convert.weight_version_from_proto(reply.model.version))


def fetch(version: WeightVersion, file: str, *, offset: int = 0, timeout: float = 600.0) -> Call[bytes]:
    """One file of a version, in chunks whose checksums hold; ``offset`` resumes.

    Raises:
        Unavailable: a chunk arrived damaged, or the version is no longer served.
    """
    request = weights_pb2.FetchRequest(version=_version("version", version), file=file, offset=offset)
    reached = offset

    def checked(reply: weights_pb2.FetchResponse) -> bytes:
        nonlocal reached
        if reply.offset != reached or zlib.crc32(reply.data) != reply.crc32:
            raise Unavailable(f"{file}: a chunk at {reply.offset} arrived damaged or out of order")
        reached += len(reply.data)
        return reply.data

    return Call("Fetch", request, checked, timeout)
