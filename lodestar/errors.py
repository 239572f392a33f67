"""Everything Lodestar raises on purpose, with the gRPC status and the exit code it becomes.

    LodestarError                 INTERNAL             exit 1
    ├── InvalidArgument           INVALID_ARGUMENT     exit 2   names the request's field
    │   ├── ConfigError                                exit 2   names the key or the file
    │   └── DataError                                  exit 2   names file:line
    ├── ModelError                FAILED_PRECONDITION  exit 2   a model or tokenizer that cannot be used
    │   └── ProbeFailed                                         weights that compute otherwise than at the learner
    ├── FailedPrecondition        FAILED_PRECONDITION  exit 2
    │   ├── TokenizerMismatch
    │   └── ResumeRefused                                       names what changed since the checkpoint
    ├── Unauthenticated           UNAUTHENTICATED      exit 2   no certificate or token that is known here
    ├── PermissionDenied          PERMISSION_DENIED    exit 2   known, and not allowed to do this
    ├── ResourceExhausted         RESOURCE_EXHAUSTED   exit 1   admission limits
    ├── Unavailable               UNAVAILABLE          exit 1   worth trying again or elsewhere
    │   └── VersionUnavailable                                  carries the version held
    ├── DeadlineExceeded          DEADLINE_EXCEEDED    exit 1   no answer within the call's timeout
    ├── QueueUnavailable          UNAVAILABLE          exit 1   Redis cannot be reached
    ├── SourceFailed              ABORTED              exit 1   a reward function's own fault; names the source
    ├── RunPaused                 ABORTED              exit 4   the run stopped itself and says why
    ├── Terminated                ABORTED              exit 143 SIGTERM came before the run's end; --resume goes on
    ├── Hung                      INTERNAL             exit 75  ended itself since a thread of it hung; start it again
    └── NonFinite                 DATA_LOSS            exit 3   NaN or infinity in a loss, gradient or reward

One interceptor (lodestar.rpc.interceptors) converts them on the way out, and lodestar.rpc.channel converts
statuses back on the way in; one handler in the command line turns them into a sentence and an exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class LodestarError(Exception):
    """Base class. The message is a sentence for the person who must act on it."""

    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1


class InvalidArgument(LodestarError):
    """A request field is out of range; ``field`` names it (``sampling.top_p``)."""

    status: ClassVar[str] = "INVALID_ARGUMENT"
    exit_code: ClassVar[int] = 2

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class ConfigError(InvalidArgument):
    """A run configuration cannot be used; ``field`` is the dotted key."""


class DataError(InvalidArgument):
    """A data file is missing, empty or has a bad row; the message starts with ``file:line:``."""

    def __init__(self, path: Path | str, message: str, line: int | None = None) -> None:
        super().__init__(str(path) if line is None else f"{path}:{line}", message)
        self.path = str(path)
        self.line = line


class ModelError(LodestarError):
    """A model folder or tokenizer cannot be used as it is."""

    status: ClassVar[str] = "FAILED_PRECONDITION"
    exit_code: ClassVar[int] = 2


class ProbeFailed(ModelError):
    """Weights that are the published ones, and give other log-probs here than at the learner."""


class FailedPrecondition(LodestarError):
    """The request is well-formed but the server's state does not allow it."""

    status: ClassVar[str] = "FAILED_PRECONDITION"
    exit_code: ClassVar[int] = 2


class TokenizerMismatch(FailedPrecondition):
    """Caller and server use different tokenizers."""

    def __init__(self, ours: str, theirs: str) -> None:
        super().__init__(
            f"tokenizer_hash: the caller's tokenizer {theirs[:12]} is not this server's {ours[:12]}; "
            "use the tokenizer saved beside the served model"
        )


class ResumeRefused(FailedPrecondition):
    """The checkpoint belongs to another config, data set, tokenizer or model."""


class Unauthenticated(LodestarError):
    """One side does not know the other: a certificate or a token is missing, unknown or expired."""

    status: ClassVar[str] = "UNAUTHENTICATED"
    exit_code: ClassVar[int] = 2


class PermissionDenied(LodestarError):
    """The caller is known, and its role may not make this call."""

    status: ClassVar[str] = "PERMISSION_DENIED"
    exit_code: ClassVar[int] = 2


class ResourceExhausted(LodestarError):
    """An admission limit is reached; try again later or send less."""

    status: ClassVar[str] = "RESOURCE_EXHAUSTED"


class Unavailable(LodestarError):
    """The server cannot answer now; another replica may."""

    status: ClassVar[str] = "UNAVAILABLE"


class VersionUnavailable(Unavailable):
    """The wanted weights are not served here; the message carries the version held."""


class DeadlineExceeded(LodestarError):
    """A call was not answered within its deadline."""

    status: ClassVar[str] = "DEADLINE_EXCEEDED"


class QueueUnavailable(LodestarError):
    """The rollout queue cannot be reached."""

    status: ClassVar[str] = "UNAVAILABLE"


class SourceFailed(LodestarError):
    """A reward source that is not ours, a person's function, raised or returned what is no reward."""

    status: ClassVar[str] = "ABORTED"

    def __init__(self, source: str, message: str) -> None:
        super().__init__(f"reward source {source} {message}")


class RunPaused(LodestarError):
    """The run paused itself (too many failed tickets, for instance) and waits for a person."""

    status: ClassVar[str] = "ABORTED"
    exit_code: ClassVar[int] = 4


class Terminated(LodestarError):
    """A learner was told to leave before its run was over; started again with --resume it goes on."""

    status: ClassVar[str] = "ABORTED"
    exit_code: ClassVar[int] = 143  # 128 + SIGTERM: whoever supervises it must not take this for the end


class Hung(LodestarError):
    """A thread of the process hung, so that it ended itself (lodestar.liveness); started again it goes on."""

    exit_code: ClassVar[int] = 75  # EX_TEMPFAIL of sysexits.h


class NonFinite(LodestarError):
    """A loss, gradient, reward or logit is NaN or infinite."""

    status: ClassVar[str] = "DATA_LOSS"
    exit_code: ClassVar[int] = 3


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of several at once that a person can act on: a LodestarError where there is one."""
    error: BaseException = group.subgroup(LodestarError) or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
