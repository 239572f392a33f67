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
from lodestar.crew.port import Servers, service_main
from lodestar.local.progress import ProgressFile
from lodestar.recipe.plan import plan
from lodestar.recipe.stage import Bench
from lodestar.recipe.store import Store


def serve(argument: dict[str, Any]) -> int:
    """Runs a service until it ends; the argument is ``{"task"}``."""
    task = TASK.validate_python(argument["task"])
    return service_main(task.role)(task)


def stage(argument: dict[str, Any]) -> int:
    """Runs one stage; the argument is ``{"config", "root", "step", "servers", "endpoints", "listening"}``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    run = RunConfig.model_validate(argument["config"])
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
        import torch

        torch.set_num_threads(run.services.learner.threads)
    from lodestar.train.progress import Progress, Silent  # its package loads torch

    with ExitStack() as open_:
        # Ranks of a learner after the first (torchrun) tell nobody of their progress.
        first = os.environ.get("RANK", "0") == "0"
        path = store.root / "logs" / f"{name}.jsonl"
        progress: Progress = open_.enter_context(ProgressFile(path)) if first else Silent()
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


def main() -> int:
    """``python -m lodestar.crew.work``: the argument of :func:`stage` as JSON on standard input."""
    import json

    return stage(json.loads(sys.stdin.read()))
