from lodestar.v1 import learner_pb2 as _learner_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StageState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_STATE_UNSPECIFIED: _ClassVar[StageState]
    STAGE_STATE_WAITING: _ClassVar[StageState]
    STAGE_STATE_RUNNING: _ClassVar[StageState]
    STAGE_STATE_DONE: _ClassVar[StageState]
    STAGE_STATE_KEPT: _ClassVar[StageState]
    STAGE_STATE_FAILED: _ClassVar[StageState]

class ServiceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SERVICE_STATE_UNSPECIFIED: _ClassVar[ServiceState]
    SERVICE_STATE_STARTING: _ClassVar[ServiceState]
    SERVICE_STATE_READY: _ClassVar[ServiceState]
    SERVICE_STATE_RESTARTING: _ClassVar[ServiceState]
    SERVICE_STATE_STOPPED: _ClassVar[ServiceState]
    SERVICE_STATE_HANGING: _ClassVar[ServiceState]
STAGE_STATE_UNSPECIFIED: StageState
STAGE_STATE_WAITING: StageState
STAGE_STATE_RUNNING: StageState
STAGE_STATE_DONE: StageState
STAGE_STATE_KEPT: StageState
STAGE_STATE_FAILED: StageState
SERVICE_STATE_UNSPECIFIED: ServiceState
SERVICE_STATE_STARTING: ServiceState
SERVICE_STATE_READY: ServiceState
SERVICE_STATE_RESTARTING: ServiceState
SERVICE_STATE_STOPPED: ServiceState
SERVICE_STATE_HANGING: ServiceState

class StageStatus(_message.Message):
    __slots__ = ("name", "state", "seconds", "fraction", "detail", "budget_seconds", "cut_short")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BUDGET_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CUT_SHORT_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: StageState
    seconds: float
    fraction: float
    detail: str
    budget_seconds: float
    cut_short: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[StageState, str]] = ..., seconds: _Optional[float] = ..., fraction: _Optional[float] = ..., detail: _Optional[str] = ..., budget_seconds: _Optional[float] = ..., cut_short: _Optional[str] = ...) -> None: ...

class ServiceStatus(_message.Message):
    __slots__ = ("name", "state", "port", "pid", "restarts", "rpcs", "tokens", "weight_step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    RPCS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: ServiceState
    port: int
    pid: int
    restarts: int
    rpcs: int
    tokens: int
    weight_step: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[ServiceState, str]] = ..., port: _Optional[int] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ..., rpcs: _Optional[int] = ..., tokens: _Optional[int] = ..., weight_step: _Optional[int] = ...) -> None: ...

class WinRate(_message.Message):
    __slots__ = ("step", "value", "low", "high", "n")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    step: int
    value: float
    low: float
    high: float
    n: int
    def __init__(self, step: _Optional[int] = ..., value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., n: _Optional[int] = ...) -> None: ...

class RunMessage(_message.Message):
    __slots__ = ("time", "warning", "text")
    TIME_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    time: float
    warning: bool
    text: str
    def __init__(self, time: _Optional[float] = ..., warning: bool = ..., text: _Optional[str] = ...) -> None: ...

class RunProgress(_message.Message):
    __slots__ = ("run", "seconds", "stages", "services", "learner", "win_rate", "queue_waiting", "queue_taken", "messages", "messages_before")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    WIN_RATE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_WAITING_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TAKEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_BEFORE_FIELD_NUMBER: _ClassVar[int]
    run: str
    seconds: float
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    services: _containers.RepeatedCompositeFieldContainer[ServiceStatus]
    learner: _learner_pb2.RunStatus
    win_rate: WinRate
    queue_waiting: int
    queue_taken: int
    messages: _containers.RepeatedCompositeFieldContainer[RunMessage]
    messages_before: int
    def __init__(self, run: _Optional[str] = ..., seconds: _Optional[float] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[ServiceStatus, _Mapping]]] = ..., learner: _Optional[_Union[_learner_pb2.RunStatus, _Mapping]] = ..., win_rate: _Optional[_Union[WinRate, _Mapping]] = ..., queue_waiting: _Optional[int] = ..., queue_taken: _Optional[int] = ..., messages: _Optional[_Iterable[_Union[RunMessage, _Mapping]]] = ..., messages_before: _Optional[int] = ...) -> None: ...

class RunServiceGetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunServiceGetStatusResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: RunProgress
    def __init__(self, progress: _Optional[_Union[RunProgress, _Mapping]] = ...) -> None: ...

class RunServiceWatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunServiceWatchResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: RunProgress
    def __init__(self, progress: _Optional[_Union[RunProgress, _Mapping]] = ...) -> None: ...

class RunServicePauseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunServicePauseResponse(_message.Message):
    __slots__ = ("effect",)
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    effect: str
    def __init__(self, effect: _Optional[str] = ...) -> None: ...

class RunServiceStopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunServiceStopResponse(_message.Message):
    __slots__ = ("effect",)
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    effect: str
    def __init__(self, effect: _Optional[str] = ...) -> None: ...
