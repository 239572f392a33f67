"""Wires the policy server: the generation engine behind lodestar.v1.PolicyService, on the run's newest weights."""

from __future__ import annotations

import socket
from functools import partial

from lodestar.config import PolicyTask
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import policy_control_pb2, policy_control_pb2_grpc, policy_pb2, policy_pb2_grpc
from lodestar.weights.grpc import GrpcSource
from lodestar_services.policy.policy import Policy
from lodestar_services.policy.servicer import PolicyControlServicer, PolicyServicer

NAME = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
CONTROL = policy_control_pb2.DESCRIPTOR.services_by_name["PolicyControlService"].full_name


def main(task: PolicyTask) -> int:
    """Serves until SIGTERM; the exit code."""
    configure_logging(f"{task.name}-{task.listening.replica}")
    policy = Policy(task)

    async def warm() -> None:
        await policy.load()
        if task.endpoints.weights is not None:
            name = f"{task.name}-{task.listening.replica} on {socket.gethostname()}"
            source = GrpcSource(task.endpoints.weights, task.run, name, tls=task.listening.tls)
            await policy.attach(source, task.cache or task.folder / "served" / str(task.listening.replica))

    services = [
        Service(NAME, partial(policy_pb2_grpc.add_PolicyServiceServicer_to_server, PolicyServicer(policy))),
        Service(
            CONTROL,
            partial(policy_control_pb2_grpc.add_PolicyControlServiceServicer_to_server, PolicyControlServicer(policy)),
        ),
    ]
    try:
        return run(
            ServerSpec.of(task, task.section, services, warm=warm, work=policy.follow, conditions=[policy.training])
        )
    finally:
        policy.stop()
