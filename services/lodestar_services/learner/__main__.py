"""Wires the learner: the loop on a thread of its own, LearnerService beside it."""

from __future__ import annotations

import asyncio
from functools import partial

from lodestar.config import ServeOptions
from lodestar.errors import Interrupted
from lodestar.records import ModelInfo, RunState, RunStatus, WeightVersion
from lodestar.rpc.batching import ComputeThread
from lodestar.rpc.server import ServerSpec, Service, configure_logging, serve
from lodestar.v1 import learner_pb2, learner_pb2_grpc
from lodestar_services.learner.learner import Learner
from lodestar_services.learner.servicer import LearnerServicer
from lodestar_services.learner.status import Controls, StatusBoard

NAME = learner_pb2.DESCRIPTOR.services_by_name["LearnerService"].full_name


def main(options: ServeOptions) -> int:
    """Serves until the run ends or SIGTERM; the exit code.

    Raises:
        Interrupted: SIGTERM came first.
    """
    configure_logging("learner")
    asyncio.run(_serve(options))
    return 0


async def _serve(options: ServeOptions) -> None:
    config = options.config
    unknown = ModelInfo(config.name, WeightVersion("", 0, ""), "")
    status = RunStatus(config.name, unknown, RunState.STARTING, 0, config.ppo.steps, 0, config.ppo.tickets)
    board, controls = StatusBoard(status, asyncio.get_running_loop()), Controls()
    learner = Learner(options, board, controls)
    compute = ComputeThread("learner")
    ended = False

    async def work(stopping: asyncio.Event) -> None:
        nonlocal ended
        running = asyncio.ensure_future(compute.run(learner.run))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
        ended = running.done()
        controls.stop()
        try:
            await running
        except Exception as error:
            board.update(state=RunState.FAILED, reason=str(error))
            raise
        ended = ended or board.status.step == board.status.total_steps
        await asyncio.wait((stop,), timeout=options.linger_seconds)
        stop.cancel()

    add = partial(learner_pb2_grpc.add_LearnerServiceServicer_to_server, LearnerServicer(board, controls))
    build = partial(compute.run, learner.build)
    await serve(ServerSpec.of("learner", options, config.learner, [Service(NAME, add)], warm=build, work=work))
    if not ended:
        raise Interrupted(
            f"a signal stopped run {config.name} after step {board.status.step} of {board.status.total_steps}; "
            "start it again with --resume"
        )
