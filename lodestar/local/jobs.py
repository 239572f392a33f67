"""What the launcher's child processes do: a training stage, or a service."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestar.config import RunConfig, ServeOptions
from lodestar.errors import LodestarError
from lodestar.layout import RunFolder
from lodestar.local.progress import ProgressFile

if TYPE_CHECKING:  # the launcher reads STAGES here, and must not load torch for it
    from lodestar.train.progress import Progress

SERVICES = "lodestar.services"
"""Entry-point group: role → main(ServeOptions) -> exit code."""
STAGES = ("data", "pretrain", "sft", "reward")
"""Stages that run in a process of their own, in order."""


def serve(argument: dict[str, Any]) -> int:
    """Runs a service until it ends; the argument is ``{"role", "options"}``."""
    return service_main(argument["role"])(ServeOptions.model_validate(argument["options"]))


def service_main(role: str) -> Callable[[ServeOptions], int]:
    """The main function of a role's service.

    Raises:
        LodestarError: no installed distribution brings such a service.
    """
    found = list(importlib.metadata.entry_points(group=SERVICES, name=role))
    if not found:
        raise LodestarError(f"no service {role} is installed; reinstall lodestar-rlhf")
    main: Callable[[ServeOptions], int] = found[0].load()
    return main


def stage(argument: dict[str, Any]) -> int:
    """Runs one of STAGES; the argument is ``{"stage", "config", "run_dir"}``. Its figures go to logs/STAGE.jsonl."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    name = argument["stage"]
    folder = RunFolder(Path(argument["run_dir"]))
    with ProgressFile(folder.logs / f"{name}.jsonl") as progress:
        run_stage(name, RunConfig.model_validate(argument["config"]), folder, progress)
    return 0


def run_stage(name: str, config: RunConfig, folder: RunFolder, progress: Progress) -> None:
    """Calls the library's entry point of a stage in this process."""
    import torch

    from lodestar import train
    from lodestar.data.prepare import prepare

    torch.set_num_threads(config.learner.threads)
    entry_points: dict[str, Callable[[RunConfig, RunFolder, Progress], object]] = {
        "data": prepare,
        "pretrain": train.pretrain,
        "sft": train.train_sft,
        "reward": train.train_reward,
    }
    entry_points[name](config, folder, progress)
