from lodestar.v1 import common_pb2 as _common_pb2
from lodestar.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReferenceServiceLogProbsRequest(_message.Message):
    __slots__ = ("sequences", "temperature", "entropy", "tokenizer_hash")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[_policy_pb2.Scored]
    temperature: float
    entropy: bool
    tokenizer_hash: str
    def __init__(self, sequences: _Optional[_Iterable[_Union[_policy_pb2.Scored, _Mapping]]] = ..., temperature: _Optional[float] = ..., entropy: bool = ..., tokenizer_hash: _Optional[str] = ...) -> None: ...

class ReferenceServiceLogProbsResponse(_message.Message):
    __slots__ = ("model", "sequences")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    sequences: _containers.RepeatedCompositeFieldContainer[_policy_pb2.TokenLogProbs]
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., sequences: _Optional[_Iterable[_Union[_policy_pb2.TokenLogProbs, _Mapping]]] = ...) -> None: ...

class ReferenceServiceGetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReferenceServiceGetModelResponse(_message.Message):
    __slots__ = ("model", "context_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    context_tokens: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., context_tokens: _Optional[int] = ...) -> None: ...
