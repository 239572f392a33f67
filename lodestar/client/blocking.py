"""The clients for ordinary, synchronous code; lodestar.client.calls has what they call."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from lodestar.client import calls
from lodestar.client.base import BaseClient, Call, as_method, built
from lodestar.client.calls import Assembly
from lodestar.records import Generation, GenerationChunk
from lodestar.rpc.connection import Connection
from lodestar.v1 import (
    learner_pb2_grpc,
    policy_control_pb2_grpc,
    policy_pb2_grpc,
    reference_pb2_grpc,
    reward_pb2_grpc,
    run_pb2_grpc,
    training_pb2_grpc,
    weights_pb2_grpc,
)

Parameters = ParamSpec("Parameters")
Reply = TypeVar("Reply")


class Client(BaseClient):
    """A channel and a deadline. Use it in a ``with`` block, or call :meth:`close`."""

    _connection_class = Connection
    _connection: Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends calls in flight and the connection."""
        self._connection.close()


def _unary(build: Callable[Parameters, Call[Reply]]) -> Callable[Concatenate[Any, Parameters], Reply]:
    @as_method(build)
    def method(self: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Reply:
        call = built(build, *args, **kwargs)
        return call.read(self._connection.call(call.method, call.request, call.timeout or self._timeout))

    return method


def _stream(
    build: Callable[Parameters, Call[Reply]],
) -> Callable[Concatenate[Any, Parameters], Generator[Reply, None, None]]:
    @as_method(build)
    def method(self: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Generator[Reply, None, None]:
        call = built(build, *args, **kwargs)
        return self._connection.stream(call.method, call.request, self._deadline(call), call.read)

    return method


def _assembled(
    build: Callable[Parameters, Call[GenerationChunk]],
) -> Callable[Concatenate[Any, Parameters], Generation]:
    chunks = _stream(build)

    @as_method(build)
    def method(self: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Generation:
        assembly = Assembly()
        for chunk in chunks(self, *args, **kwargs):
            assembly.add(chunk)
        return assembly.finish()

    return method


class PolicyClient(Client):
    """Generates text: ``PolicyClient("localhost:50051").generate("how are you ?", max_tokens=20)``."""

    _stub_class = policy_pb2_grpc.PolicyServiceStub

    generate = _assembled(calls.generate)
    stream = _stream(calls.generate)
    logprobs = _unary(calls.policy_logprobs)
    tokenize = _unary(calls.tokenize)
    detokenize = _unary(calls.detokenize)
    describe = _unary(calls.describe_policy)


class PolicyControlClient(Client):
    """Operates one policy server."""

    _stub_class = policy_control_pb2_grpc.PolicyControlServiceStub

    load_version = _unary(calls.load_version)
    pause = _unary(calls.pause_policy)
    resume = _unary(calls.resume_policy)
    status = _unary(calls.policy_status)


class RewardClient(Client):
    """Scores completions: ``RewardClient("localhost:50052").score([("how are you ?", "very well")])``."""

    _stub_class = reward_pb2_grpc.RewardServiceStub

    score = _unary(calls.score)
    describe = _unary(calls.describe_reward)


class ReferenceClient(Client):
    """Log-probs under the reference model: ``ReferenceClient(address).logprobs([Scored((5, 8, 13, 1), 2)])``."""

    _stub_class = reference_pb2_grpc.ReferenceServiceStub

    logprobs = _unary(calls.reference_logprobs)
    describe = _unary(calls.describe_reference)


class LearnerClient(Client):
    """Watches and steers a PPO run."""

    _stub_class = learner_pb2_grpc.LearnerServiceStub

    status = _unary(calls.run_status)
    watch = _stream(calls.watch_run)
    pause = _unary(calls.pause_run)
    resume = _unary(calls.resume_run)
    checkpoint = _unary(calls.checkpoint)
    stop = _unary(calls.stop_run)


class RunClient(Client):
    """Watches and steers a whole run, by its conductor."""

    _stub_class = run_pb2_grpc.RunServiceStub

    status = _unary(calls.progress_of_run)
    watch = _stream(calls.watch_progress)
    pause = _unary(calls.pause_conductor)
    stop = _unary(calls.stop_conductor)


class TrainingClient(Client):
    """Trains models by an algorithm of one's own: ``TrainingClient(address).forward_backward("mine", data, "ppo")``.

    A call that changes a model is not retried: after Unavailable, ask describe_model what was done.
    """

    _stub_class = training_pb2_grpc.TrainingServiceStub

    create_model = _unary(calls.create_model)
    describe_model = _unary(calls.describe_model)
    delete_model = _unary(calls.delete_model)
    forward_backward = _unary(calls.forward_backward)
    optim_step = _unary(calls.optim_step)
    sample = _unary(calls.sample)
    save_weights = _unary(calls.save_weights)
    load_weights = _unary(calls.load_weights)


class WeightsClient(Client):
    """Follows and fetches the weights that a learner publishes."""

    _stub_class = weights_pb2_grpc.WeightsServiceStub

    watch = _stream(calls.watch_weights)
    fetch = _stream(calls.fetch)
    report = _unary(calls.report_weights)
