from lodestar.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("run", "follower")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    run: str
    follower: str
    def __init__(self, run: _Optional[str] = ..., follower: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("model", "manifest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    manifest: WeightManifest
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., manifest: _Optional[_Union[WeightManifest, _Mapping]] = ...) -> None: ...

class TensorFile(_message.Message):
    __slots__ = ("name", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class WeightFiles(_message.Message):
    __slots__ = ("version", "parent", "files")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    version: _common_pb2.WeightVersion
    parent: _common_pb2.WeightVersion
    files: _containers.RepeatedCompositeFieldContainer[TensorFile]
    def __init__(self, version: _Optional[_Union[_common_pb2.WeightVersion, _Mapping]] = ..., parent: _Optional[_Union[_common_pb2.WeightVersion, _Mapping]] = ..., files: _Optional[_Iterable[_Union[TensorFile, _Mapping]]] = ...) -> None: ...

class WeightManifest(_message.Message):
    __slots__ = ("version", "tensors", "tokenizer_hash", "run", "probes", "chain")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    version: _common_pb2.WeightVersion
    tensors: _containers.ScalarMap[str, str]
    tokenizer_hash: str
    run: str
    probes: _containers.RepeatedCompositeFieldContainer[Probe]
    chain: _containers.RepeatedCompositeFieldContainer[WeightFiles]
    def __init__(self, version: _Optional[_Union[_common_pb2.WeightVersion, _Mapping]] = ..., tensors: _Optional[_Mapping[str, str]] = ..., tokenizer_hash: _Optional[str] = ..., run: _Optional[str] = ..., probes: _Optional[_Iterable[_Union[Probe, _Mapping]]] = ..., chain: _Optional[_Iterable[_Union[WeightFiles, _Mapping]]] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("token_ids", "prompt_tokens", "logprobs", "tolerance")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    tolerance: float
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., tolerance: _Optional[float] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("version", "file", "offset")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    version: _common_pb2.WeightVersion
    file: str
    offset: int
    def __init__(self, version: _Optional[_Union[_common_pb2.WeightVersion, _Mapping]] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("model", "data", "offset", "crc32")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    data: bytes
    offset: int
    crc32: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., data: _Optional[bytes] = ..., offset: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("run", "follower", "version", "refusal")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    run: str
    follower: str
    version: _common_pb2.WeightVersion
    refusal: str
    def __init__(self, run: _Optional[str] = ..., follower: _Optional[str] = ..., version: _Optional[_Union[_common_pb2.WeightVersion, _Mapping]] = ..., refusal: _Optional[str] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ...) -> None: ...
