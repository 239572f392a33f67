from lodestar.v1 import common_pb2 as _common_pb2
from lodestar.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ticket(_message.Message):
    __slots__ = ("run", "incarnation", "step", "index", "attempt", "prompt_id", "prompt_tokens", "prompt_text", "n", "seed", "min_step", "max_tokens", "temperature", "prompt_columns", "prompt_messages")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_STEP_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    run: str
    incarnation: str
    step: int
    index: int
    attempt: int
    prompt_id: str
    prompt_tokens: _containers.RepeatedScalarFieldContainer[int]
    prompt_text: str
    n: int
    seed: int
    min_step: int
    max_tokens: int
    temperature: float
    prompt_columns: str
    prompt_messages: _containers.RepeatedCompositeFieldContainer[_common_pb2.ChatMessage]
    def __init__(self, run: _Optional[str] = ..., incarnation: _Optional[str] = ..., step: _Optional[int] = ..., index: _Optional[int] = ..., attempt: _Optional[int] = ..., prompt_id: _Optional[str] = ..., prompt_tokens: _Optional[_Iterable[int]] = ..., prompt_text: _Optional[str] = ..., n: _Optional[int] = ..., seed: _Optional[int] = ..., min_step: _Optional[int] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., prompt_columns: _Optional[str] = ..., prompt_messages: _Optional[_Iterable[_Union[_common_pb2.ChatMessage, _Mapping]]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("token_ids", "behaviour_logprobs", "reference_logprobs", "score", "score_standard_deviation", "heads", "finish_reason", "text")
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOUR_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORE_STANDARD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    behaviour_logprobs: _containers.RepeatedScalarFieldContainer[float]
    reference_logprobs: _containers.RepeatedScalarFieldContainer[float]
    score: float
    score_standard_deviation: float
    heads: _containers.ScalarMap[str, float]
    finish_reason: _policy_pb2.FinishReason
    text: str
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., behaviour_logprobs: _Optional[_Iterable[float]] = ..., reference_logprobs: _Optional[_Iterable[float]] = ..., score: _Optional[float] = ..., score_standard_deviation: _Optional[float] = ..., heads: _Optional[_Mapping[str, float]] = ..., finish_reason: _Optional[_Union[_policy_pb2.FinishReason, str]] = ..., text: _Optional[str] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("ticket", "version", "samples", "worker", "generate_seconds", "score_seconds")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GENERATE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    version: _common_pb2.WeightVersion
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    worker: str
    generate_seconds: float
    score_seconds: float
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., version: _Optional[_Union[_common_pb2.WeightVersion, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., worker: _Optional[str] = ..., generate_seconds: _Optional[float] = ..., score_seconds: _Optional[float] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("ticket", "error", "attempts", "worker")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    error: str
    attempts: int
    worker: str
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., error: _Optional[str] = ..., attempts: _Optional[int] = ..., worker: _Optional[str] = ...) -> None: ...
