"""Wires the reward server: the reward model behind lodestar.v1.RewardService."""

from __future__ import annotations

from functools import partial

from lodestar.config import RewardTask
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import reward_pb2, reward_pb2_grpc
from lodestar_services.reward.reward import Reward
from lodestar_services.reward.servicer import RewardServicer

NAME = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name


def main(task: RewardTask) -> int:
    """Serves until SIGTERM; the exit code."""
    configure_logging(f"{task.name}-{task.listening.replica}")
    reward = Reward(task)
    add = partial(reward_pb2_grpc.add_RewardServiceServicer_to_server, RewardServicer(reward))
    return run(ServerSpec.of(task, task.section, [Service(NAME, add)], warm=reward.load))
