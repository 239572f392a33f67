from lodestar.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreItem(_message.Message):
    __slots__ = ("prompt_text", "prompt_tokens", "completion_text", "completion_tokens", "cut_off", "columns", "messages")
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TEXT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CUT_OFF_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    prompt_text: str
    prompt_tokens: _common_pb2.Tokens
    completion_text: str
    completion_tokens: _common_pb2.Tokens
    cut_off: bool
    columns: str
    messages: _containers.RepeatedCompositeFieldContainer[_common_pb2.ChatMessage]
    def __init__(self, prompt_text: _Optional[str] = ..., prompt_tokens: _Optional[_Union[_common_pb2.Tokens, _Mapping]] = ..., completion_text: _Optional[str] = ..., completion_tokens: _Optional[_Union[_common_pb2.Tokens, _Mapping]] = ..., cut_off: bool = ..., columns: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_common_pb2.ChatMessage, _Mapping]]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("items", "tokenizer_hash")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    tokenizer_hash: str
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., tokenizer_hash: _Optional[str] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("score", "heads", "mean", "standard_deviation")
    class HeadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SCORE_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STANDARD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    score: float
    heads: _containers.ScalarMap[str, float]
    mean: float
    standard_deviation: float
    def __init__(self, score: _Optional[float] = ..., heads: _Optional[_Mapping[str, float]] = ..., mean: _Optional[float] = ..., standard_deviation: _Optional[float] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("model", "scores")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ...) -> None: ...

class RewardServiceGetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RewardServiceGetModelResponse(_message.Message):
    __slots__ = ("model", "context_tokens", "heads", "ensemble_size")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_SIZE_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    context_tokens: int
    heads: _containers.RepeatedScalarFieldContainer[str]
    ensemble_size: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., context_tokens: _Optional[int] = ..., heads: _Optional[_Iterable[str]] = ..., ensemble_size: _Optional[int] = ...) -> None: ...
