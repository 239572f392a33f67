"""What blocking and asynchronous clients share: requests are built and replies are read here."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, ParamSpec, TypedDict, TypeVar, cast

from lodestar.errors import InvalidArgument, LodestarError, Unavailable
from lodestar.records import (
    ChatMessage,
    Completion,
    FinishReason,
    Generation,
    GenerationChunk,
    LogProbs,
    PolicyStatus,
    SamplingParams,
    Scored,
    ScoreItem,
    Scores,
    WeightVersion,
)
from lodestar.rpc import convert
from lodestar.v1 import common_pb2, policy_control_pb2, policy_pb2, reference_pb2, reward_pb2, weights_pb2

PromptLike = str | Sequence[int] | Sequence[ChatMessage]
"""Text, token ids, or a chat for the model's template."""
ItemLike = ScoreItem | tuple[str, str]
"""What to score; a pair is prompt and completion as text."""

_PURPOSES = {"serving": policy_pb2.PURPOSE_SERVING, "training": policy_pb2.PURPOSE_TRAINING}
_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)}

Parameters = ParamSpec("Parameters")
Message = TypeVar("Message")


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``generate`` and ``stream``."""

    max_tokens: int
    """This and the following: fields of lodestar.records.SamplingParams, in place of a record."""
    n: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    logit_bias: Mapping[int, float]
    logprobs: bool
    top_logprobs: int
    ignore_eos: bool
    min_version: WeightVersion | None
    """Oldest weights that will do."""
    wait_seconds: float
    """How long a server with older ones may wait for them; then VersionUnavailable."""
    purpose: Literal["serving", "training"]
    """Training is held to the temperature-only distribution that PPO assumes."""
    tokenizer_hash: str
    """The caller's tokenizer; another one than the server's is TokenizerMismatch."""


def _request(build: Callable[Parameters, Message]) -> Callable[Parameters, Message]:
    """What protobuf cannot hold (a negative id, a float for an integer) is the caller's InvalidArgument."""

    @functools.wraps(build)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Message:
        try:
            return build(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise InvalidArgument("request", f"cannot be sent: {error}") from error

    return checked


# --- policy --------------------------------------------------------------------------------------------------------
@_request
def generate_request(
    prompt: PromptLike, sampling: SamplingParams | None, options: GenerateOptions
) -> policy_pb2.GenerateRequest:
    """lodestar.v1.GenerateRequest. Sampling is a record, or among the options.

    Raises:
        InvalidArgument: it is both, or there is no max_tokens, or the purpose is unknown.
    """
    purpose = options.get("purpose", "serving")
    if purpose not in _PURPOSES:
        raise InvalidArgument("purpose", f"{purpose!r} is none of {', '.join(_PURPOSES)}")
    request = policy_pb2.GenerateRequest(
        sampling=convert.sampling_to_proto(_sampling(sampling, options)),
        wait_seconds=options.get("wait_seconds", 0.0),
        purpose=_PURPOSES[purpose],
        tokenizer_hash=options.get("tokenizer_hash", ""),
    )
    min_version = options.get("min_version")
    if min_version is not None:
        request.min_version.CopyFrom(convert.weight_version_to_proto(min_version))
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt and all(isinstance(turn, ChatMessage) for turn in prompt):
        request.chat.CopyFrom(convert.chat_to_proto(tuple(cast(Sequence[ChatMessage], prompt))))
    else:
        request.tokens.CopyFrom(common_pb2.Tokens(ids=cast(Sequence[int], prompt)))
    return request


def _sampling(sampling: SamplingParams | None, options: GenerateOptions) -> SamplingParams:
    given = {name: value for name, value in options.items() if name in _SAMPLING}
    if sampling is None:
        if "max_tokens" not in given:
            raise InvalidArgument("sampling.max_tokens", "is required: how many tokens may a response have?")
        return SamplingParams(**given)  # type: ignore[arg-type]
    if given:
        raise InvalidArgument("sampling", f"is given whole and as {', '.join(given)}; choose one")
    return sampling


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


@_request
def policy_logprobs_request(
    sequences: Iterable[Scored], *, temperature: float, entropy: bool, tokenizer_hash: str
) -> policy_pb2.PolicyServiceLogProbsRequest:
    """lodestar.v1.PolicyServiceLogProbsRequest."""
    return policy_pb2.PolicyServiceLogProbsRequest(
        sequences=map(convert.scored_to_proto, sequences),
        temperature=temperature,
        entropy=entropy,
        tokenizer_hash=tokenizer_hash,
    )


def logprobs_reply(
    reply: policy_pb2.PolicyServiceLogProbsResponse | reference_pb2.ReferenceServiceLogProbsResponse,
) -> LogProbs:
    """What either LogProbs returns."""
    return LogProbs(
        convert.model_info_from_proto(reply.model), tuple(map(convert.token_logprobs_from_proto, reply.sequences))
    )


def tokenize_request(text: str | Sequence[ChatMessage], *, add_special_tokens: bool) -> policy_pb2.TokenizeRequest:
    """lodestar.v1.TokenizeRequest."""
    if isinstance(text, str):
        return policy_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
    chat = convert.chat_to_proto(tuple(text))
    return policy_pb2.TokenizeRequest(chat=chat, add_special_tokens=add_special_tokens)


def policy_status_reply(reply: policy_control_pb2.PolicyControlServiceGetStatusResponse) -> PolicyStatus:
    """How a policy server is doing."""
    return PolicyStatus(
        model=convert.model_info_from_proto(reply.model),
        paused=reply.paused,
        running_sequences=reply.running_sequences,
        waiting_sequences=reply.waiting_sequences,
        kv_blocks_used=reply.kv_blocks_used,
        kv_blocks_total=reply.kv_blocks_total,
        last_swap_pause_seconds=reply.last_swap_pause_seconds,
        refusal=reply.refusal,
    )


# --- reference and reward ------------------------------------------------------------------------------------------
@_request
def reference_logprobs_request(
    sequences: Iterable[Scored], *, temperature: float, entropy: bool, tokenizer_hash: str
) -> reference_pb2.ReferenceServiceLogProbsRequest:
    """lodestar.v1.ReferenceServiceLogProbsRequest."""
    return reference_pb2.ReferenceServiceLogProbsRequest(
        sequences=map(convert.scored_to_proto, sequences),
        temperature=temperature,
        entropy=entropy,
        tokenizer_hash=tokenizer_hash,
    )


@_request
def score_request(items: Iterable[ItemLike], *, tokenizer_hash: str) -> reward_pb2.ScoreRequest:
    """lodestar.v1.ScoreRequest."""
    records = (item if isinstance(item, ScoreItem) else ScoreItem(*item) for item in items)
    return reward_pb2.ScoreRequest(items=map(convert.score_item_to_proto, records), tokenizer_hash=tokenizer_hash)


def score_reply(reply: reward_pb2.ScoreResponse) -> Scores:
    """What Score returns."""
    return Scores(convert.model_info_from_proto(reply.model), tuple(map(convert.score_from_proto, reply.scores)))


# --- weights -------------------------------------------------------------------------------------------------------
class Download:
    """Checks the chunks of one file: each follows the last, and its checksum holds."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def accept(self, reply: weights_pb2.FetchResponse) -> bytes:
        """The chunk's bytes.

        Raises:
            Unavailable: damaged or out of order; fetch again from the offset reached.
        """
        if reply.offset != self._offset or zlib.crc32(reply.data) != reply.crc32:
            raise Unavailable(f"the chunk at offset {reply.offset} arrived damaged or out of order")
        self._offset += len(reply.data)
        return reply.data
