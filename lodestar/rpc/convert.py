"""Messages of proto/lodestar/v1 to and from lodestar.records; what the queue stores is in lodestar.queue.wire.

Pairs named ``thing_to_proto`` and ``thing_from_proto``. Fields of one name are one thing, so most pairs are made by
:func:`_pair`; the rest are written out. They translate and do not judge: a server checks ranges where it knows them.
Log-probs and scores are float32 on the wire.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor

from lodestar.errors import InvalidArgument
from lodestar.records import (
    ChatMessage,
    Datum,
    Detokenized,
    FinishReason,
    GenerationChunk,
    Lora,
    LossResult,
    ModelDescription,
    ModelInfo,
    OptimParams,
    PolicyStatus,
    Probe,
    Purpose,
    RunState,
    RunStatus,
    Sampled,
    SamplingParams,
    Score,
    Scored,
    ScoreItem,
    TensorFile,
    TokenCandidate,
    TokenLogProbs,
    TokenPiece,
    TrainingModel,
    WeightFiles,
    WeightManifest,
    WeightVersion,
)
from lodestar.v1 import (
    common_pb2,
    learner_pb2,
    policy_control_pb2,
    policy_pb2,
    reference_pb2,
    reward_pb2,
    training_pb2,
    weights_pb2,
)

Record = TypeVar("Record")
Message = TypeVar("Message")
Way = Callable[[Any], Any]

PAIRS: list[tuple[type, type]] = []
"""Records and the messages that they are converted to and from by name."""
_OUT: dict[type, Way] = {
    FinishReason: lambda reason: policy_pb2.FinishReason.Value(f"FINISH_REASON_{reason.name}"),
    Purpose: lambda purpose: policy_pb2.Purpose.Value(f"PURPOSE_{purpose.name}"),
    RunState: lambda state: learner_pb2.RunState.Value(f"RUN_STATE_{state.name}"),
}
"""How a record's value becomes a message's, by its type; other types are the same in both."""
_IN: dict[str, Way] = {
    "lodestar.v1.FinishReason": lambda number: finish_reason_from_proto(number),
    "lodestar.v1.RunState": {_OUT[RunState](state): state for state in RunState}.__getitem__,
}
"""The way back, by the full name of a message or enumeration."""


def _pair(
    record: type[Record], message: Callable[..., Message], **apart: tuple[Way, Way]
) -> tuple[Callable[[Record], Message], Callable[[Message], Record]]:
    """The two ways between a record and a message by the names of their fields.

    None is unset, and what is unset takes the record's default. A name that only one of them has is left out; the test
    of PAIRS knows which these are.

    Args:
        apart: fields of one name and different types, with their own two ways.
    """
    known: Mapping[str, FieldDescriptor] = message.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]
    shared = [field for field in dataclasses.fields(record) if field.name in known]  # type: ignore[arg-type]
    outward = {field.name: apart[field.name][0] if field.name in apart else _outward for field in shared}
    inward = {
        field.name: apart[field.name][1] if field.name in apart else _inward(known[field.name]) for field in shared
    }
    unset = [field.name for field in shared if known[field.name].has_presence and _has_default(field)]

    def to_proto(value: Record) -> Message:
        return message(**{name: way(getattr(value, name)) for name, way in outward.items()})

    def from_proto(value: Message) -> Record:
        absent = {name for name in unset if not value.HasField(name)}  # type: ignore[attr-defined]
        return record(**{name: way(getattr(value, name)) for name, way in inward.items() if name not in absent})

    _OUT[record] = to_proto
    _IN[message.DESCRIPTOR.full_name] = from_proto  # type: ignore[attr-defined]
    PAIRS.append((record, message))  # type: ignore[arg-type]
    return to_proto, from_proto


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _outward(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_outward(one) for one in value] if value and type(value[0]) in _OUT else value
    if isinstance(value, Mapping):
        return dict(value)
    way = _OUT.get(type(value))
    return value if way is None else way(value)


def _inward(field: FieldDescriptor) -> Way:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict
    kind = field.message_type or field.enum_type
    if field.is_repeated:
        return tuple if kind is None else lambda values: tuple(map(_IN[kind.full_name], values))
    return _same if kind is None else _IN[kind.full_name]


def _same(value: Any) -> Any:
    return value


# --- common.proto --------------------------------------------------------------------------------------------------
weight_version_to_proto, weight_version_from_proto = _pair(WeightVersion, common_pb2.WeightVersion)
model_info_to_proto, model_info_from_proto = _pair(ModelInfo, common_pb2.ModelInfo)
chat_message_to_proto, chat_message_from_proto = _pair(ChatMessage, common_pb2.ChatMessage)


def chat_to_proto(messages: tuple[ChatMessage, ...]) -> common_pb2.Chat:
    """lodestar.v1.Chat."""
    return common_pb2.Chat(messages=map(chat_message_to_proto, messages))


def chat_from_proto(message: common_pb2.Chat) -> tuple[ChatMessage, ...]:
    """The other way."""
    return tuple(map(chat_message_from_proto, message.messages))


# --- policy.proto and policy_control.proto -------------------------------------------------------------------------
def finish_reason_to_proto(reason: FinishReason | None) -> policy_pb2.FinishReason:
    """lodestar.v1.FinishReason; None is unspecified: still running."""
    return cast(policy_pb2.FinishReason, 0 if reason is None else _OUT[FinishReason](reason))


_FINISH_REASONS: dict[int, FinishReason | None] = {
    finish_reason_to_proto(reason): reason for reason in (None, *FinishReason)
}


def finish_reason_from_proto(message: policy_pb2.FinishReason) -> FinishReason | None:
    """The other way; a reason newer than this client reads as ERROR."""
    return _FINISH_REASONS.get(message, FinishReason.ERROR)


def purpose_from_proto(message: policy_pb2.Purpose) -> Purpose:
    """Unspecified is serving.

    Raises:
        InvalidArgument: a purpose newer than this server.
    """
    if message == policy_pb2.PURPOSE_UNSPECIFIED:
        return Purpose.SERVING
    for purpose in Purpose:
        if purpose_to_proto(purpose) == message:
            return purpose
    raise InvalidArgument("purpose", f"{message} is not a purpose that this server knows")


def purpose_to_proto(purpose: Purpose) -> policy_pb2.Purpose:
    """lodestar.v1.Purpose."""
    return cast(policy_pb2.Purpose, _OUT[Purpose](purpose))


_SAMPLES = (_same, lambda n: n or 1)  # the one default that is neither zero nor optional on the wire
sampling_to_proto, sampling_from_proto = _pair(SamplingParams, policy_pb2.SamplingParams, n=_SAMPLES)
_CANDIDATES = (
    lambda positions: [
        policy_pb2.TopLogprobs(
            candidates=[policy_pb2.TokenCandidate(id=one.token_id, logprob=one.logprob) for one in candidates]
        )
        for candidates in positions
    ],
    lambda positions: tuple(
        tuple(TokenCandidate(one.id, one.logprob) for one in position.candidates) for position in positions
    ),
)
chunk_to_proto, chunk_from_proto = _pair(GenerationChunk, policy_pb2.GenerateResponse, top_logprobs=_CANDIDATES)
scored_to_proto, scored_from_proto = _pair(Scored, policy_pb2.Scored)
token_logprobs_to_proto, token_logprobs_from_proto = _pair(
    TokenLogProbs, policy_pb2.TokenLogProbs, top_logprobs=_CANDIDATES
)
token_piece_to_proto, token_piece_from_proto = _pair(TokenPiece, policy_pb2.TokenPiece)
detokenized_to_proto, detokenized_from_proto = _pair(Detokenized, policy_pb2.DetokenizeResponse)
description_to_policy, description_from_policy = _pair(ModelDescription, policy_pb2.PolicyServiceGetModelResponse)
policy_status_to_proto, policy_status_from_proto = _pair(
    PolicyStatus, policy_control_pb2.PolicyControlServiceGetStatusResponse
)


# --- reward.proto and reference.proto ------------------------------------------------------------------------------
def score_item_to_proto(item: ScoreItem) -> reward_pb2.ScoreItem:
    """lodestar.v1.ScoreItem."""
    message = reward_pb2.ScoreItem()
    if isinstance(item.prompt, str):
        message.prompt_text = item.prompt
    else:
        message.prompt_tokens.CopyFrom(common_pb2.Tokens(ids=item.prompt))
    if isinstance(item.completion, str):
        message.completion_text = item.completion
    else:
        message.completion_tokens.CopyFrom(common_pb2.Tokens(ids=item.completion))
    message.cut_off = item.cut_off
    message.columns = columns_text(item.columns)
    message.messages.extend(chat_to_proto(item.messages).messages)
    return message


def columns_text(columns: Mapping[str, Any]) -> str:
    """Further columns of a prompt's row as a JSON object; empty where there are none."""
    return json.dumps(columns, ensure_ascii=False, default=str) if columns else ""


def columns_from_text(text: str, field: str) -> dict[str, Any]:
    """The other way.

    Raises:
        InvalidArgument: it is no JSON object; ``field`` names it.
    """
    if not text:
        return {}
    try:
        columns = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidArgument(field, f"is not JSON: {error}") from error
    if not isinstance(columns, dict):
        raise InvalidArgument(field, f"must be a JSON object, got {type(columns).__name__}")
    return columns


def score_item_from_proto(message: reward_pb2.ScoreItem, field: str) -> ScoreItem:
    """The other way.

    Raises:
        InvalidArgument: a half is missing, or one is text and the other tokens; ``field`` (``items[3]``) starts its
            name.
    """
    halves = message.WhichOneof("prompt"), message.WhichOneof("completion")
    further: dict[str, Any] = {
        "columns": columns_from_text(message.columns, f"{field}.columns"),
        "messages": chat_from_proto(common_pb2.Chat(messages=message.messages)),
    }
    if halves == ("prompt_text", "completion_text"):
        return ScoreItem(message.prompt_text, message.completion_text, message.cut_off, **further)
    if halves == ("prompt_tokens", "completion_tokens"):
        return ScoreItem(tuple(message.prompt_tokens.ids), tuple(message.completion_tokens.ids), **further)
    for name, half in zip(("prompt", "completion"), halves, strict=True):
        if half is None:
            raise InvalidArgument(f"{field}.{name}", f"is missing; set {name}_text or {name}_tokens")
    raise InvalidArgument(field, "mixes text and tokens; send both halves as text or both as tokens")


score_to_proto, score_from_proto = _pair(Score, reward_pb2.Score)
description_to_reward, description_from_reward = _pair(ModelDescription, reward_pb2.RewardServiceGetModelResponse)
description_to_reference, description_from_reference = _pair(
    ModelDescription, reference_pb2.ReferenceServiceGetModelResponse
)
# --- learner.proto -------------------------------------------------------------------------------------------------
run_status_to_proto, run_status_from_proto = _pair(RunStatus, learner_pb2.RunStatus)


# --- training.proto ------------------------------------------------------------------------------------------------
datum_to_proto, datum_from_proto = _pair(Datum, training_pb2.Datum)
lora_to_proto, lora_from_proto = _pair(Lora, training_pb2.Lora)
training_model_to_proto, training_model_from_proto = _pair(TrainingModel, training_pb2.TrainingModel)
optim_params_to_proto, optim_params_from_proto = _pair(OptimParams, training_pb2.OptimStepRequest)
_LOGPROBS = (
    lambda sequences: [training_pb2.TargetLogProbs(logprobs=one) for one in sequences],
    lambda sequences: tuple(tuple(one.logprobs) for one in sequences),
)
loss_result_to_proto, loss_result_from_proto = _pair(
    LossResult, training_pb2.ForwardBackwardResponse, sequences=_LOGPROBS
)
sampled_to_proto, sampled_from_proto = _pair(Sampled, training_pb2.SampleResponse)


# --- weights.proto -------------------------------------------------------------------------------------------------
def _probe_to_proto(probe: Probe) -> weights_pb2.Probe:
    return weights_pb2.Probe(
        token_ids=probe.scored.token_ids,
        prompt_tokens=probe.scored.prompt_tokens,
        logprobs=probe.logprobs,
        tolerance=probe.tolerance,
    )


def _probe_from_proto(message: weights_pb2.Probe) -> Probe:
    return Probe(Scored(tuple(message.token_ids), message.prompt_tokens), tuple(message.logprobs), message.tolerance)


tensor_file_to_proto, tensor_file_from_proto = _pair(TensorFile, weights_pb2.TensorFile)
weight_files_to_proto, weight_files_from_proto = _pair(WeightFiles, weights_pb2.WeightFiles)
weight_manifest_to_proto, weight_manifest_from_proto = _pair(
    WeightManifest,
    weights_pb2.WeightManifest,
    probes=(
        lambda probes: [*map(_probe_to_proto, probes)],
        lambda messages: tuple(map(_probe_from_proto, messages)),
    ),
)
