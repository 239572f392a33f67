"""The clients for ordinary, synchronous code."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from lodestar.client import messages
from lodestar.client.messages import GenerateOptions, ItemLike, PromptLike
from lodestar.crew.progress import from_proto, take
from lodestar.local.board import Board
from lodestar.records import (
    ChatMessage,
    Generation,
    GenerationChunk,
    LogProbs,
    ModelDescription,
    ModelInfo,
    PolicyStatus,
    RunStatus,
    SamplingParams,
    Scored,
    Scores,
    WeightManifest,
    WeightVersion,
)
from lodestar.rpc import convert
from lodestar.rpc.connection import Connection
from lodestar.v1 import (
    learner_pb2,
    learner_pb2_grpc,
    policy_control_pb2,
    policy_control_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    reference_pb2,
    reference_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
    weights_pb2,
    weights_pb2_grpc,
)


class Client:
    """A channel and a deadline. Use it in a ``with`` block, or call :meth:`close`."""

    _stub_class: ClassVar[Any]

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout: float = 60.0,
        tls: Path | str | None = None,
        token: str | None = None,
    ) -> None:
        """Connects when the first call is made; plaintext without ``tls``.

        Args:
            addresses: one or more of the same service.
            timeout: seconds; the deadline of every call that does not bring its own.
            tls: folder with the servers' ca.crt and, where they want a certificate, our tls.crt and tls.key. Changed
                files are used from the next call on.
            token: bearer token of an outside caller; needs tls.

        Raises:
            ConfigError: no address, TLS files that cannot be used, or a token without tls.
        """
        self._timeout = timeout
        self._connection = Connection(addresses, type(self)._stub_class, tls=tls, token=token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends calls in flight and the connection."""
        self._connection.close()

    def _call(self, method: str, request: Any, timeout: float | None = None) -> Any:
        return self._connection.call(method, request, timeout or self._timeout)


class PolicyClient(Client):
    """Generates text: ``PolicyClient("localhost:50051").generate("what color is the sky ?", max_tokens=20)``."""

    _stub_class = policy_pb2_grpc.PolicyServiceStub

    def generate(
        self,
        prompt: PromptLike,
        sampling: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """All samples of one prompt, finished; ``sampling`` is a record or keyword arguments (``max_tokens=20``).

        Raises:
            LodestarError: what the server refuses (InvalidArgument, VersionUnavailable, …), and DeadlineExceeded.
        """
        assembly = messages.Assembly()
        for chunk in self.stream(prompt, sampling, timeout=timeout, **options):
            assembly.add(chunk)
        return assembly.finish()

    def stream(
        self,
        prompt: PromptLike,
        sampling: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generator[GenerationChunk, None, None]:
        """As :meth:`generate`, chunk by chunk; closing the generator cancels the rest."""
        request = messages.generate_request(prompt, sampling, options)
        return self._connection.stream("Generate", request, timeout or self._timeout, convert.chunk_from_proto)

    def logprobs(
        self,
        sequences: Iterable[Scored],
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        tokenizer_hash: str = "",
        timeout: float | None = None,
    ) -> LogProbs:
        """Log-probs of given completions under the present weights."""
        request = messages.policy_logprobs_request(
            sequences, temperature=temperature, entropy=entropy, tokenizer_hash=tokenizer_hash
        )
        return messages.logprobs_reply(self._call("LogProbs", request, timeout))

    def tokenize(self, text: str | Sequence[ChatMessage], *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Token ids of text or of a rendered chat."""
        request = messages.tokenize_request(text, add_special_tokens=add_special_tokens)
        return tuple(self._call("Tokenize", request).token_ids)

    def describe(self) -> ModelDescription:
        """What is served."""
        return convert.description_from_policy(self._call("GetModel", policy_pb2.PolicyServiceGetModelRequest()))


class PolicyControlClient(Client):
    """Operates one policy server."""

    _stub_class = policy_control_pb2_grpc.PolicyControlServiceStub

    def load_version(self, version: WeightVersion, *, timeout: float | None = None) -> ModelInfo:
        """Makes the server fetch and serve a version of its run's learner; returns when it does."""
        request = policy_control_pb2.LoadVersionRequest(version=convert.weight_version_to_proto(version))
        return convert.model_info_from_proto(self._call("LoadVersion", request, timeout).model)

    def pause(self) -> ModelInfo:
        """Stops decoding between two steps; requests wait."""
        return convert.model_info_from_proto(
            self._call("Pause", policy_control_pb2.PolicyControlServicePauseRequest()).model
        )

    def resume(self) -> ModelInfo:
        """Goes on."""
        return convert.model_info_from_proto(
            self._call("Resume", policy_control_pb2.PolicyControlServiceResumeRequest()).model
        )

    def status(self) -> PolicyStatus:
        """Load, cache use, and why the last offered weights were refused."""
        request = policy_control_pb2.PolicyControlServiceGetStatusRequest()
        return messages.policy_status_reply(self._call("GetStatus", request))


class RewardClient(Client):
    """Scores completions: ``RewardClient("localhost:50052").score([("what color is the sky ?", "blue")])``."""

    _stub_class = reward_pb2_grpc.RewardServiceStub

    def score(self, items: Iterable[ItemLike], *, tokenizer_hash: str = "", timeout: float | None = None) -> Scores:
        """One score per item, in order; items of token ids need the ``tokenizer_hash`` they were made with."""
        request = messages.score_request(items, tokenizer_hash=tokenizer_hash)
        return messages.score_reply(self._call("Score", request, timeout))

    def describe(self) -> ModelDescription:
        """What is served."""
        return convert.description_from_reward(self._call("GetModel", reward_pb2.RewardServiceGetModelRequest()))


class ReferenceClient(Client):
    """Log-probs under the reference model: ``ReferenceClient(address).logprobs([Scored((5, 8, 13, 1), 2)])``."""

    _stub_class = reference_pb2_grpc.ReferenceServiceStub

    def logprobs(
        self,
        sequences: Iterable[Scored],
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        tokenizer_hash: str = "",
        timeout: float | None = None,
    ) -> LogProbs:
        """One answer per sequence, for the tokens after its prompt."""
        request = messages.reference_logprobs_request(
            sequences, temperature=temperature, entropy=entropy, tokenizer_hash=tokenizer_hash
        )
        return messages.logprobs_reply(self._call("LogProbs", request, timeout))

    def describe(self) -> ModelDescription:
        """What is served."""
        request = reference_pb2.ReferenceServiceGetModelRequest()
        return convert.description_from_reference(self._call("GetModel", request))


class LearnerClient(Client):
    """Watches and steers a PPO run."""

    _stub_class = learner_pb2_grpc.LearnerServiceStub

    def status(self) -> RunStatus:
        """Where the run is."""
        reply = self._call("GetStatus", learner_pb2.LearnerServiceGetStatusRequest())
        return convert.run_status_from_proto(reply.status)

    def watch(self) -> Generator[RunStatus, None, None]:
        """The status now and after every change, until the server goes (Unavailable) or the loop is left."""
        return self._connection.stream(
            "WatchStatus",
            learner_pb2.WatchStatusRequest(),
            None,
            lambda reply: convert.run_status_from_proto(reply.status),
        )

    def pause(self) -> RunStatus:
        """Holds the run after the step in progress."""
        reply = self._call("Pause", learner_pb2.LearnerServicePauseRequest())
        return convert.run_status_from_proto(reply.status)

    def resume(self) -> RunStatus:
        """Goes on."""
        reply = self._call("Resume", learner_pb2.LearnerServiceResumeRequest())
        return convert.run_status_from_proto(reply.status)

    def checkpoint(self, *, timeout: float = 600.0) -> str:
        """Writes a checkpoint after the step in progress; its path on the learner's machine."""
        return str(self._call("Checkpoint", learner_pb2.CheckpointRequest(), timeout).path)

    def stop(self) -> RunStatus:
        """Checkpoints and ends the run."""
        return convert.run_status_from_proto(self._call("Stop", learner_pb2.StopRequest()).status)


class RunClient(Client):
    """Watches and steers a whole run, by its conductor."""

    _stub_class = run_pb2_grpc.RunServiceStub

    def status(self) -> Board:
        """Where the run is: its stages, services and messages."""
        return from_proto(self._call("GetStatus", run_pb2.RunServiceGetStatusRequest()).progress)

    def watch(self, board: Board) -> Generator[Board, None, None]:
        """Keeps a board true, and yields it after every change, until the conductor goes (Unavailable)."""

        def told(reply: run_pb2.RunServiceWatchResponse) -> Board:
            take(board, reply.progress)
            return board

        return self._connection.stream("Watch", run_pb2.RunServiceWatchRequest(), None, told)

    def pause(self) -> str:
        """Holds the learner, or ends the run after the stage in progress; which of them, in words."""
        return str(self._call("Pause", run_pb2.RunServicePauseRequest()).effect)

    def stop(self) -> str:
        """Ends the learner's stage, or the run after the stage in progress; which of them, in words."""
        return str(self._call("Stop", run_pb2.RunServiceStopRequest()).effect)


class WeightsClient(Client):
    """Follows and fetches the weights that a learner publishes."""

    _stub_class = weights_pb2_grpc.WeightsServiceStub

    def watch(self, run: str) -> Generator[WeightManifest, None, None]:
        """The present version and then every announcement, until the server goes or the loop is left."""
        return self._connection.stream(
            "Watch",
            weights_pb2.WatchRequest(run=run),
            None,
            lambda reply: convert.weight_manifest_from_proto(reply.manifest),
        )

    def fetch(
        self, version: WeightVersion, file: str, *, offset: int = 0, timeout: float = 600.0
    ) -> Generator[bytes, None, None]:
        """One file of a version, in chunks whose checksums hold; ``offset`` resumes.

        Raises:
            Unavailable: a chunk arrived damaged, or the version is no longer served.
        """
        request = weights_pb2.FetchRequest(version=convert.weight_version_to_proto(version), file=file, offset=offset)
        return self._connection.stream("Fetch", request, timeout, messages.Download(offset).accept)
