"""Wires the policy server: the generation engine behind lodestar.v1.PolicyService, on the run's newest weights."""

from __future__ import annotations

import asyncio
from functools import partial

from lodestar.config import ServeOptions
from lodestar.layout import RunFolder
from lodestar.rpc.server import ServerSpec, Service, configure_logging, run
from lodestar.v1 import policy_control_pb2, policy_control_pb2_grpc, policy_pb2, policy_pb2_grpc
from lodestar.weights.grpc import GrpcSource
from lodestar_services.policy.policy import Policy
from lodestar_services.policy.servicer import PolicyControlServicer, PolicyServicer

NAME = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
CONTROL = policy_control_pb2.DESCRIPTOR.services_by_name["PolicyControlService"].full_name


def main(options: ServeOptions) -> int:
    """Serves until SIGTERM; the exit code."""
    configure_logging(f"policy-{options.replica}")
    folder = RunFolder(options.run_dir)
    policy = Policy(options.model or str(folder.sft), options.config)

    async def work(stopping: asyncio.Event) -> None:
        if options.endpoints.weights is None:
            await stopping.wait()
        else:
            source = GrpcSource(options.endpoints.weights, options.config.name, tls=options.tls)
            await policy.follow(source, folder.root / "policy" / str(options.replica), stopping)

    services = [
        Service(NAME, partial(policy_pb2_grpc.add_PolicyServiceServicer_to_server, PolicyServicer(policy))),
        Service(
            CONTROL,
            partial(policy_control_pb2_grpc.add_PolicyControlServiceServicer_to_server, PolicyControlServicer(policy)),
        ),
    ]
    try:
        return run(ServerSpec.of("policy", options, options.config.policy, services, warm=policy.load, work=work))
    finally:
        policy.stop()
