"""Wires the learner: the loop on a thread of its own, LearnerService beside it."""

from __future__ import annotations

import asyncio
from functools import partial

from torch import distributed as dist

from lodestar.config import LearnerTask
from lodestar.errors import Terminated
from lodestar.records import ModelInfo, RunState, RunStatus, WeightVersion
from lodestar.rpc.batching import ComputeThread
from lodestar.rpc.server import configure_logging, serve
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import learner_pb2, learner_pb2_grpc
from lodestar_services.learner.followers import follow, rank_here
from lodestar_services.learner.learner import Learner
from lodestar_services.learner.servicer import LearnerServicer
from lodestar_services.learner.status import Controls, StatusBoard

NAME = learner_pb2.DESCRIPTOR.services_by_name["LearnerService"].full_name


def main(task: LearnerTask) -> int:
    """Serves until the run ends or SIGTERM; the exit code. Ranks after the first only compute.

    Raises:
        Terminated: SIGTERM came first.
    """
    if rank := rank_here():
        configure_logging(f"learner-{rank}")
        return follow(task)
    configure_logging("learner")
    if not asyncio.run(_serve(task)):
        raise Terminated("the learner was told to leave before its run was over; --resume goes on from its checkpoint")
    return 0


async def _serve(task: LearnerTask) -> bool:
    """Whether the run is over."""
    unknown = ModelInfo(task.run, WeightVersion("", 0, ""), "")
    status = RunStatus(task.run, unknown, RunState.STARTING, 0, task.ppo.steps, 0, task.ppo.tickets)
    board, controls = StatusBoard(status, asyncio.get_running_loop()), Controls()
    learner = Learner(task, board, controls)
    compute = ComputeThread("learner", waits=dist.is_torchelastic_launched())  # for the other ranks

    async def work(stopping: asyncio.Event) -> None:
        running = asyncio.ensure_future(compute.run(learner.run))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            controls.leave()
        try:
            await running
        except Exception as error:
            board.update(state=RunState.FAILED, reason=str(error))
            controls.checkpointed(error)
            raise
        await asyncio.wait((stop,), timeout=task.listening.linger_seconds)
        stop.cancel()

    add = partial(learner_pb2_grpc.add_LearnerServiceServicer_to_server, LearnerServicer(board, controls))
    build = partial(compute.run, learner.build)
    await serve(ServerSpec.of(task, task.section, [Service(NAME, add)], warm=build, work=work))
    return learner.over
