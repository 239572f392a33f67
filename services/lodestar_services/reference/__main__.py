"""Wires the reference server: the frozen SFT model behind lodestar.v1.ReferenceService."""

from __future__ import annotations

from functools import partial

from lodestar.config import ReferenceTask
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import reference_pb2, reference_pb2_grpc
from lodestar_services.reference.reference import Reference
from lodestar_services.reference.servicer import ReferenceServicer

NAME = reference_pb2.DESCRIPTOR.services_by_name["ReferenceService"].full_name


def main(task: ReferenceTask) -> int:
    """Serves until SIGTERM; the exit code."""
    configure_logging(f"{task.name}-{task.listening.replica}")
    reference = Reference(task)
    add = partial(reference_pb2_grpc.add_ReferenceServiceServicer_to_server, ReferenceServicer(reference))
    return run(ServerSpec.of(task, task.section, [Service(NAME, add)], warm=reference.load))
