from lodestar.v1 import common_pb2 as _common_pb2
from lodestar.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WeightsKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHTS_KIND_UNSPECIFIED: _ClassVar[WeightsKind]
    WEIGHTS_KIND_STATE: _ClassVar[WeightsKind]
    WEIGHTS_KIND_SAMPLER: _ClassVar[WeightsKind]
WEIGHTS_KIND_UNSPECIFIED: WeightsKind
WEIGHTS_KIND_STATE: WeightsKind
WEIGHTS_KIND_SAMPLER: WeightsKind

class Lora(_message.Message):
    __slots__ = ("rank", "alpha", "attention", "mlp", "head", "seed")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MLP_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: int
    attention: bool
    mlp: bool
    head: bool
    seed: int
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[int] = ..., attention: bool = ..., mlp: bool = ..., head: bool = ..., seed: _Optional[int] = ...) -> None: ...

class CreateModelRequest(_message.Message):
    __slots__ = ("model_id", "lora", "path", "optimizer")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    lora: Lora
    path: str
    optimizer: bool
    def __init__(self, model_id: _Optional[str] = ..., lora: _Optional[_Union[Lora, _Mapping]] = ..., path: _Optional[str] = ..., optimizer: bool = ...) -> None: ...

class CreateModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: TrainingModel
    def __init__(self, model: _Optional[_Union[TrainingModel, _Mapping]] = ...) -> None: ...

class TrainingModel(_message.Message):
    __slots__ = ("model", "base", "lora", "context_tokens", "vocab_size", "trainable_parameters", "accumulated")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATED_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    base: str
    lora: Lora
    context_tokens: int
    vocab_size: int
    trainable_parameters: int
    accumulated: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., base: _Optional[str] = ..., lora: _Optional[_Union[Lora, _Mapping]] = ..., context_tokens: _Optional[int] = ..., vocab_size: _Optional[int] = ..., trainable_parameters: _Optional[int] = ..., accumulated: _Optional[int] = ...) -> None: ...

class TrainingServiceGetModelRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class TrainingServiceGetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: TrainingModel
    def __init__(self, model: _Optional[_Union[TrainingModel, _Mapping]] = ...) -> None: ...

class DeleteModelRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class DeleteModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Datum(_message.Message):
    __slots__ = ("token_ids", "targets", "weights", "logprobs", "advantages")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ADVANTAGES_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    targets: _containers.RepeatedScalarFieldContainer[int]
    weights: _containers.RepeatedScalarFieldContainer[float]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    advantages: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., targets: _Optional[_Iterable[int]] = ..., weights: _Optional[_Iterable[float]] = ..., logprobs: _Optional[_Iterable[float]] = ..., advantages: _Optional[_Iterable[float]] = ...) -> None: ...

class ForwardBackwardRequest(_message.Message):
    __slots__ = ("model_id", "data", "loss", "options", "forward_only", "tokenizer_hash")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_ONLY_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    data: _containers.RepeatedCompositeFieldContainer[Datum]
    loss: str
    options: _containers.ScalarMap[str, float]
    forward_only: bool
    tokenizer_hash: str
    def __init__(self, model_id: _Optional[str] = ..., data: _Optional[_Iterable[_Union[Datum, _Mapping]]] = ..., loss: _Optional[str] = ..., options: _Optional[_Mapping[str, float]] = ..., forward_only: bool = ..., tokenizer_hash: _Optional[str] = ...) -> None: ...

class TargetLogProbs(_message.Message):
    __slots__ = ("logprobs",)
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class ForwardBackwardResponse(_message.Message):
    __slots__ = ("model", "loss", "sequences", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    loss: float
    sequences: _containers.RepeatedCompositeFieldContainer[TargetLogProbs]
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., loss: _Optional[float] = ..., sequences: _Optional[_Iterable[_Union[TargetLogProbs, _Mapping]]] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class OptimStepRequest(_message.Message):
    __slots__ = ("model_id", "learning_rate", "beta1", "beta2", "eps", "weight_decay", "max_grad_norm")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float
    def __init__(self, model_id: _Optional[str] = ..., learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_grad_norm: _Optional[float] = ...) -> None: ...

class OptimStepResponse(_message.Message):
    __slots__ = ("model", "gradient_norm")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    gradient_norm: float
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., gradient_norm: _Optional[float] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("model_id", "path", "prompt", "sampling", "prompt_logprobs", "top_prompt_logprobs", "tokenizer_hash")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    path: str
    prompt: _common_pb2.Tokens
    sampling: _policy_pb2.SamplingParams
    prompt_logprobs: bool
    top_prompt_logprobs: int
    tokenizer_hash: str
    def __init__(self, model_id: _Optional[str] = ..., path: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Tokens, _Mapping]] = ..., sampling: _Optional[_Union[_policy_pb2.SamplingParams, _Mapping]] = ..., prompt_logprobs: bool = ..., top_prompt_logprobs: _Optional[int] = ..., tokenizer_hash: _Optional[str] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("model", "samples", "prompt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    samples: _containers.RepeatedCompositeFieldContainer[_policy_pb2.GenerateResponse]
    prompt: _policy_pb2.TokenLogProbs
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[_policy_pb2.GenerateResponse, _Mapping]]] = ..., prompt: _Optional[_Union[_policy_pb2.TokenLogProbs, _Mapping]] = ...) -> None: ...

class SaveWeightsRequest(_message.Message):
    __slots__ = ("model_id", "kind", "name", "overwrite")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    kind: WeightsKind
    name: str
    overwrite: bool
    def __init__(self, model_id: _Optional[str] = ..., kind: _Optional[_Union[WeightsKind, str]] = ..., name: _Optional[str] = ..., overwrite: bool = ...) -> None: ...

class SaveWeightsResponse(_message.Message):
    __slots__ = ("model", "path")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    path: str
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., path: _Optional[str] = ...) -> None: ...

class LoadWeightsRequest(_message.Message):
    __slots__ = ("model_id", "path", "optimizer")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    path: str
    optimizer: bool
    def __init__(self, model_id: _Optional[str] = ..., path: _Optional[str] = ..., optimizer: bool = ...) -> None: ...

class LoadWeightsResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ...) -> None: ...
