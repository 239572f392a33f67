"""Wires the training service: models in training and their samplers behind lodestar.v1.TrainingService."""

from __future__ import annotations

from functools import partial

from lodestar.config import TrainingTask
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import training_pb2, training_pb2_grpc
from lodestar_services.training.servicer import TrainingServicer
from lodestar_services.training.training import Training

NAME = training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name


def main(task: TrainingTask) -> int:
    """Serves until SIGTERM; the exit code."""
    configure_logging(f"{task.name}-{task.listening.replica}")
    training = Training(task)
    add = partial(training_pb2_grpc.add_TrainingServiceServicer_to_server, TrainingServicer(training))
    try:
        return run(ServerSpec.of(task, task.section, [Service(NAME, add)], warm=training.load))
    finally:
        training.stop()
