"""Messages of proto/lodestar/v1 to and from lodestar.records; what the queue stores is in lodestar.queue.wire.

Pairs named ``thing_to_proto`` and ``thing_from_proto``. They translate and do not judge: a server checks ranges where
it knows them. Log-probs and scores are float32 on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lodestar.errors import InvalidArgument
from lodestar.records import (
    ChatMessage,
    FinishReason,
    GenerationChunk,
    ModelDescription,
    ModelInfo,
    Probe,
    RunState,
    RunStatus,
    SamplingParams,
    Score,
    Scored,
    ScoreItem,
    TensorFile,
    TokenCandidate,
    TokenLogProbs,
    WeightManifest,
    WeightVersion,
)
from lodestar.v1 import common_pb2, learner_pb2, policy_pb2, reference_pb2, reward_pb2, weights_pb2

_FINISH_TO_PROTO = {
    None: policy_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.EOS: policy_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: policy_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: policy_pb2.FINISH_REASON_LENGTH,
    FinishReason.ERROR: policy_pb2.FINISH_REASON_ERROR,
}
_FINISH_FROM_PROTO = {message: reason for reason, message in _FINISH_TO_PROTO.items()}
_STATE_TO_PROTO = {state: learner_pb2.RunState.Value(f"RUN_STATE_{state.name}") for state in RunState}
_STATE_FROM_PROTO = {message: state for state, message in _STATE_TO_PROTO.items()}


# --- common.proto --------------------------------------------------------------------------------------------------
def weight_version_to_proto(version: WeightVersion) -> common_pb2.WeightVersion:
    """lodestar.v1.WeightVersion."""
    return common_pb2.WeightVersion(incarnation=version.incarnation, step=version.step, digest=version.digest)


def weight_version_from_proto(message: common_pb2.WeightVersion) -> WeightVersion:
    """The other way."""
    return WeightVersion(message.incarnation, message.step, message.digest)


def model_info_to_proto(model: ModelInfo) -> common_pb2.ModelInfo:
    """lodestar.v1.ModelInfo."""
    return common_pb2.ModelInfo(
        name=model.name, version=weight_version_to_proto(model.version), tokenizer_hash=model.tokenizer_hash
    )


def model_info_from_proto(message: common_pb2.ModelInfo) -> ModelInfo:
    """The other way."""
    return ModelInfo(message.name, weight_version_from_proto(message.version), message.tokenizer_hash)


def chat_to_proto(messages: tuple[ChatMessage, ...]) -> common_pb2.Chat:
    """lodestar.v1.Chat."""
    return common_pb2.Chat(messages=[common_pb2.ChatMessage(role=m.role, content=m.content) for m in messages])


def chat_from_proto(message: common_pb2.Chat) -> tuple[ChatMessage, ...]:
    """The other way."""
    return tuple(ChatMessage(turn.role, turn.content) for turn in message.messages)


# --- policy.proto --------------------------------------------------------------------------------------------------
def finish_reason_to_proto(reason: FinishReason | None) -> policy_pb2.FinishReason:
    """lodestar.v1.FinishReason; None is unspecified: still running."""
    return _FINISH_TO_PROTO[reason]


def finish_reason_from_proto(message: policy_pb2.FinishReason) -> FinishReason | None:
    """The other way; a reason newer than this client reads as ERROR."""
    return _FINISH_FROM_PROTO.get(message, FinishReason.ERROR)


def sampling_to_proto(sampling: SamplingParams) -> policy_pb2.SamplingParams:
    """lodestar.v1.SamplingParams."""
    return policy_pb2.SamplingParams(
        n=sampling.n,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        logit_bias=dict(sampling.logit_bias),
        logprobs=sampling.logprobs,
        top_logprobs=sampling.top_logprobs,
        ignore_eos=sampling.ignore_eos,
    )


def sampling_from_proto(message: policy_pb2.SamplingParams) -> SamplingParams:
    """The other way; unset optional fields take their documented defaults."""
    return SamplingParams(
        n=message.n or 1,
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k,
        min_p=message.min_p,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logit_bias=dict(message.logit_bias),
        logprobs=message.logprobs,
        top_logprobs=message.top_logprobs,
        ignore_eos=message.ignore_eos,
    )


def chunk_to_proto(chunk: GenerationChunk) -> policy_pb2.GenerateResponse:
    """lodestar.v1.GenerateResponse."""
    return policy_pb2.GenerateResponse(
        model=model_info_to_proto(chunk.model),
        sample_index=chunk.sample_index,
        token_ids=chunk.token_ids,
        text=chunk.text,
        logprobs=chunk.logprobs,
        processed_logprobs=chunk.processed_logprobs,
        top_logprobs=[
            policy_pb2.TopLogprobs(
                candidates=[policy_pb2.TokenCandidate(id=c.token_id, logprob=c.logprob) for c in candidates]
            )
            for candidates in chunk.top_logprobs
        ],
        finish_reason=finish_reason_to_proto(chunk.finish_reason),
        error=chunk.error,
        prompt_tokens=chunk.prompt_tokens,
        token_steps=chunk.token_steps,
    )


def chunk_from_proto(message: policy_pb2.GenerateResponse) -> GenerationChunk:
    """The other way."""
    return GenerationChunk(
        model=model_info_from_proto(message.model),
        sample_index=message.sample_index,
        token_ids=tuple(message.token_ids),
        text=message.text,
        logprobs=tuple(message.logprobs),
        processed_logprobs=tuple(message.processed_logprobs),
        top_logprobs=tuple(
            tuple(TokenCandidate(c.id, c.logprob) for c in position.candidates) for position in message.top_logprobs
        ),
        finish_reason=finish_reason_from_proto(message.finish_reason),
        error=message.error,
        prompt_tokens=message.prompt_tokens,
        token_steps=tuple(message.token_steps),
    )


def scored_to_proto(scored: Scored) -> policy_pb2.Scored:
    """lodestar.v1.Scored."""
    return policy_pb2.Scored(token_ids=scored.token_ids, prompt_tokens=scored.prompt_tokens)


def scored_from_proto(message: policy_pb2.Scored) -> Scored:
    """The other way."""
    return Scored(tuple(message.token_ids), message.prompt_tokens)


def token_logprobs_to_proto(logprobs: TokenLogProbs) -> policy_pb2.TokenLogProbs:
    """lodestar.v1.TokenLogProbs."""
    return policy_pb2.TokenLogProbs(logprobs=logprobs.logprobs, entropy=logprobs.entropy)


def token_logprobs_from_proto(message: policy_pb2.TokenLogProbs) -> TokenLogProbs:
    """The other way."""
    return TokenLogProbs(tuple(message.logprobs), tuple(message.entropy))


def description_from_policy(message: policy_pb2.PolicyServiceGetModelResponse) -> ModelDescription:
    """What a policy server serves."""
    return ModelDescription(
        model_info_from_proto(message.model),
        context_tokens=message.context_tokens,
        vocab_size=message.vocab_size,
        parameters=message.parameters,
        dtype=message.dtype,
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


def score_to_proto(score: Score) -> reward_pb2.Score:
    """lodestar.v1.Score."""
    return reward_pb2.Score(
        score=score.score, heads=dict(score.heads), mean=score.mean, standard_deviation=score.standard_deviation
    )


def score_from_proto(message: reward_pb2.Score) -> Score:
    """The other way."""
    return Score(message.score, message.mean, message.standard_deviation, dict(message.heads))


def description_from_reward(message: reward_pb2.RewardServiceGetModelResponse) -> ModelDescription:
    """What a reward server serves."""
    return ModelDescription(
        model_info_from_proto(message.model),
        context_tokens=message.context_tokens,
        heads=tuple(message.heads),
        ensemble_size=message.ensemble_size,
    )


def description_from_reference(message: reference_pb2.ReferenceServiceGetModelResponse) -> ModelDescription:
    """What a reference server serves."""
    return ModelDescription(model_info_from_proto(message.model), context_tokens=message.context_tokens)


# --- learner.proto -------------------------------------------------------------------------------------------------
def run_status_to_proto(status: RunStatus) -> learner_pb2.RunStatus:
    """lodestar.v1.RunStatus."""
    return learner_pb2.RunStatus(
        run=status.run,
        model=model_info_to_proto(status.model),
        state=_STATE_TO_PROTO[status.state],
        reason=status.reason,
        step=status.step,
        total_steps=status.total_steps,
        settled=status.settled,
        batch=status.batch,
        metrics=dict(status.metrics),
        eta_seconds=status.eta_seconds,
    )


def run_status_from_proto(message: learner_pb2.RunStatus) -> RunStatus:
    """The other way."""
    return RunStatus(
        run=message.run,
        model=model_info_from_proto(message.model),
        state=_STATE_FROM_PROTO[message.state],
        reason=message.reason,
        step=message.step,
        total_steps=message.total_steps,
        settled=message.settled,
        batch=message.batch,
        metrics=dict(message.metrics),
        eta_seconds=message.eta_seconds,
    )


# --- weights.proto -------------------------------------------------------------------------------------------------
def weight_manifest_to_proto(manifest: WeightManifest) -> weights_pb2.WeightManifest:
    """lodestar.v1.WeightManifest."""
    message = weights_pb2.WeightManifest(
        version=weight_version_to_proto(manifest.version),
        encoding=weights_pb2.ENCODING_SPARSE_DELTA if manifest.parent else weights_pb2.ENCODING_FULL,
        files=[weights_pb2.TensorFile(name=file.name, bytes=file.bytes) for file in manifest.files],
        tensors=dict(manifest.tensors),
        tokenizer_hash=manifest.tokenizer_hash,
        run=manifest.run,
    )
    if manifest.parent is not None:
        message.parent.CopyFrom(weight_version_to_proto(manifest.parent))
    if manifest.probe is not None:
        message.probe.CopyFrom(_probe_to_proto(manifest.probe))
    return message


def weight_manifest_from_proto(message: weights_pb2.WeightManifest) -> WeightManifest:
    """The other way."""
    return WeightManifest(
        run=message.run,
        version=weight_version_from_proto(message.version),
        files=tuple(TensorFile(file.name, file.bytes) for file in message.files),
        tensors=dict(message.tensors),
        tokenizer_hash=message.tokenizer_hash,
        parent=weight_version_from_proto(message.parent) if message.HasField("parent") else None,
        probe=_probe_from_proto(message.probe) if message.HasField("probe") else None,
    )


def _probe_to_proto(probe: Probe) -> weights_pb2.Probe:
    return weights_pb2.Probe(
        token_ids=probe.scored.token_ids,
        prompt_tokens=probe.scored.prompt_tokens,
        logprobs=probe.logprobs,
        tolerance=probe.tolerance,
    )


def _probe_from_proto(message: weights_pb2.Probe) -> Probe:
    return Probe(Scored(tuple(message.token_ids), message.prompt_tokens), tuple(message.logprobs), message.tolerance)
