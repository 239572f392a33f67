from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TinkerDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TINKER_DTYPE_UNSPECIFIED: _ClassVar[TinkerDtype]
    TINKER_DTYPE_FLOAT32: _ClassVar[TinkerDtype]
    TINKER_DTYPE_INT64: _ClassVar[TinkerDtype]

class TinkerStop(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TINKER_STOP_STOP: _ClassVar[TinkerStop]
    TINKER_STOP_LENGTH: _ClassVar[TinkerStop]
TINKER_DTYPE_UNSPECIFIED: TinkerDtype
TINKER_DTYPE_FLOAT32: TinkerDtype
TINKER_DTYPE_INT64: TinkerDtype
TINKER_STOP_STOP: TinkerStop
TINKER_STOP_LENGTH: TinkerStop

class TinkerSparse(_message.Message):
    __slots__ = ("values", "row_starts", "columns")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ROW_STARTS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    row_starts: bytes
    columns: bytes
    def __init__(self, values: _Optional[bytes] = ..., row_starts: _Optional[bytes] = ..., columns: _Optional[bytes] = ...) -> None: ...

class TinkerTensor(_message.Message):
    __slots__ = ("dense", "sparse", "dtype", "shape")
    DENSE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    dense: bytes
    sparse: TinkerSparse
    dtype: TinkerDtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dense: _Optional[bytes] = ..., sparse: _Optional[_Union[TinkerSparse, _Mapping]] = ..., dtype: _Optional[_Union[TinkerDtype, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class TinkerText(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: bytes
    def __init__(self, tokens: _Optional[bytes] = ...) -> None: ...

class TinkerChunk(_message.Message):
    __slots__ = ("text", "image", "audio")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    text: TinkerText
    image: bytes
    audio: bytes
    def __init__(self, text: _Optional[_Union[TinkerText, _Mapping]] = ..., image: _Optional[bytes] = ..., audio: _Optional[bytes] = ...) -> None: ...

class TinkerDatum(_message.Message):
    __slots__ = ("input", "loss_inputs", "input_spans", "loss_input_spans")
    class LossInputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TinkerTensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TinkerTensor, _Mapping]] = ...) -> None: ...
    INPUT_FIELD_NUMBER: _ClassVar[int]
    LOSS_INPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SPANS_FIELD_NUMBER: _ClassVar[int]
    LOSS_INPUT_SPANS_FIELD_NUMBER: _ClassVar[int]
    input: _containers.RepeatedCompositeFieldContainer[TinkerChunk]
    loss_inputs: _containers.MessageMap[str, TinkerTensor]
    input_spans: _containers.RepeatedScalarFieldContainer[bytes]
    loss_input_spans: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, input: _Optional[_Iterable[_Union[TinkerChunk, _Mapping]]] = ..., loss_inputs: _Optional[_Mapping[str, TinkerTensor]] = ..., input_spans: _Optional[_Iterable[bytes]] = ..., loss_input_spans: _Optional[_Iterable[bytes]] = ...) -> None: ...

class TinkerOption(_message.Message):
    __slots__ = ("number", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: float
    text: str
    def __init__(self, number: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class TinkerForwardBackward(_message.Message):
    __slots__ = ("model_id", "seq_id", "data", "loss", "numbers", "forward_only", "options")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TinkerOption
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TinkerOption, _Mapping]] = ...) -> None: ...
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_ONLY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    seq_id: int
    data: _containers.RepeatedCompositeFieldContainer[TinkerDatum]
    loss: str
    numbers: _containers.ScalarMap[str, float]
    forward_only: bool
    options: _containers.MessageMap[str, TinkerOption]
    def __init__(self, model_id: _Optional[str] = ..., seq_id: _Optional[int] = ..., data: _Optional[_Iterable[_Union[TinkerDatum, _Mapping]]] = ..., loss: _Optional[str] = ..., numbers: _Optional[_Mapping[str, float]] = ..., forward_only: bool = ..., options: _Optional[_Mapping[str, TinkerOption]] = ...) -> None: ...

class TinkerBatched(_message.Message):
    __slots__ = ("data", "offsets", "dtype")
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    offsets: bytes
    dtype: TinkerDtype
    def __init__(self, data: _Optional[bytes] = ..., offsets: _Optional[bytes] = ..., dtype: _Optional[_Union[TinkerDtype, str]] = ...) -> None: ...

class TinkerRecords(_message.Message):
    __slots__ = ("type", "fields", "count")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TinkerBatched
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TinkerBatched, _Mapping]] = ...) -> None: ...
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    type: str
    fields: _containers.MessageMap[str, TinkerBatched]
    count: int
    def __init__(self, type: _Optional[str] = ..., fields: _Optional[_Mapping[str, TinkerBatched]] = ..., count: _Optional[int] = ...) -> None: ...

class TinkerLosses(_message.Message):
    __slots__ = ("type", "records", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TYPE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    type: str
    records: _containers.RepeatedCompositeFieldContainer[TinkerRecords]
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, type: _Optional[str] = ..., records: _Optional[_Iterable[_Union[TinkerRecords, _Mapping]]] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class TinkerTop(_message.Message):
    __slots__ = ("token_ids", "logprobs", "k", "length")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    logprobs: bytes
    k: int
    length: int
    def __init__(self, token_ids: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ..., k: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class TinkerSequence(_message.Message):
    __slots__ = ("stop", "tokens", "logprobs", "top")
    STOP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    stop: TinkerStop
    tokens: bytes
    logprobs: bytes
    top: TinkerTop
    def __init__(self, stop: _Optional[_Union[TinkerStop, str]] = ..., tokens: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ..., top: _Optional[_Union[TinkerTop, _Mapping]] = ...) -> None: ...

class TinkerSamples(_message.Message):
    __slots__ = ("sequences", "prompt_logprobs", "top_prompt")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_PROMPT_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[TinkerSequence]
    prompt_logprobs: bytes
    top_prompt: TinkerTop
    def __init__(self, sequences: _Optional[_Iterable[_Union[TinkerSequence, _Mapping]]] = ..., prompt_logprobs: _Optional[bytes] = ..., top_prompt: _Optional[_Union[TinkerTop, _Mapping]] = ...) -> None: ...
