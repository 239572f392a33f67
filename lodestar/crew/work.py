"""What a crew's processes do: be a service, or run one stage of a plan."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lodestar.config import RunConfig
from lodestar.config.serve import TASK, Endpoints, Listening
from lodestar.cores import compute_threads
from lodestar.crew.port import Servers, serve_task
from lodestar.files import read_json
from lodestar.liveness import watch, working
from lodestar.local.progress import ProgressFile
from lodestar.recipe.plan import calls_of, plan
from lodestar.recipe.stage import Bench
from lodestar.recipe.store import Store


def serve(argument: dict[str, Any]) -> int:
    """Runs a service until it ends; the argument is ``{"task"}``."""
    task = TASK.validate_python(argument["task"])
    return serve_task(task)


def stage(argument: dict[str, Any]) -> int:
    """Runs one stage; the argument is ``{"config", "root", "step", "servers", "endpoints", "listening"}``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    run = RunConfig.model_validate(argument["config"])
    watch(run.services.hang_seconds)
    run_stage(
        run,
        Store(Path(argument["root"]), run),
        argument["step"],
        servers={name: tuple(addresses) for name, addresses in argument["servers"].items()},
        endpoints=Endpoints.model_validate(argument["endpoints"]),
        listening=Listening.model_validate(argument["listening"]),
    )
    return 0


def run_stage(
    run: RunConfig, store: Store, name: str, *, servers: Servers, endpoints: Endpoints, listening: Listening
) -> None:
    """Runs a stage in this process, its figures going to logs/STAGE.jsonl."""
    planned = plan(run)
    step = planned.step(name)
    if not step.stage.serves:  # a service sees to its own threads
        compute_threads(run.services.learner.threads, fixed=run.deterministic)
    from lodestar.train.progress import Progress, Silent  # its package loads torch

    with ExitStack() as stack:
        path = store.root / "logs" / f"{name}.jsonl"
        progress: Progress = Silent() if rank_here() else stack.enter_context(ProgressFile(path))
        if not (step.stage.serves or step.stage.rolls_out or calls_of(step)):
            stack.enter_context(working(step.name, children=True))
        step.stage.run(Bench(run, planned, step, store, servers, progress, endpoints, listening))


def argument_of(
    run: RunConfig, store: Store, name: str, servers: Servers, endpoints: Endpoints, listening: Listening
) -> dict[str, Any]:
    """The argument of :func:`stage`, as plain data."""
    return {
        "config": run.model_dump(mode="json"),
        "root": str(store.root),
        "step": name,
        "servers": {fleet: list(addresses) for fleet, addresses in servers.items()},
        "endpoints": endpoints.model_dump(mode="json"),
        "listening": listening.model_dump(mode="json"),
    }


def rank_here() -> int:
    """This process's rank as torchrun says; 0 without it. The first rank alone tells of the stage's progress."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


if __name__ == "__main__":  # ``python -m lodestar.crew.work FILE``: the argument of stage() as JSON, for torchrun
    sys.exit(stage(read_json(Path(sys.argv[1]))))
