"""What a conductor asks of whoever does the work, and the tasks that every crew gives to servers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lodestar.config.rewards import served_sources
from lodestar.config.run import RunConfig
from lodestar.config.serve import (
    Endpoints,
    FeedbackTask,
    Listening,
    PolicyTask,
    ReferenceTask,
    RewardTask,
    RolloutTask,
    Task,
)
from lodestar.errors import LodestarError
from lodestar.liveness import watch
from lodestar.recipe.folder import PEOPLE
from lodestar.recipe.plan import GIVEN, Plan, Step
from lodestar.recipe.stage import needs_own_model
from lodestar.recipe.store import Store

SERVICES = "lodestar.services"
"""Entry-point group: role → main(task) -> exit code."""
LOOPBACK = Listening()
Servers = Mapping[str, tuple[str, ...]]
"""Fleet → addresses."""


class Crew(Protocol):
    """Does the work of one run. The conductor's thread calls it."""

    def serve(self, step: Step) -> Servers:
        """Makes the fleets that a step calls serve what it takes: starts what lacks, lets go on what serves it already,
        stops what is not wanted any more.

        Raises:
            LodestarError: a server ended for a reason of its own, or did not become ready.
        """

    def work(self, step: Step, servers: Servers) -> None:
        """Runs the step's stage to its end, over deaths of whatever takes part.

        Raises:
            LodestarError: the stage failed for a reason of its own, or died too often.
        """

    def figures(self, step: Step) -> Mapping[str, Any]:
        """What is worth keeping of how the step went, for its seal: ``services`` and ``restarts``."""

    def release(self) -> None:
        """Stops every server."""


def service_main(role: str) -> Callable[[Any], int]:
    """The main function of a role's service, which takes its task.

    Raises:
        LodestarError: no installed distribution brings such a service.
    """
    found = list(importlib.metadata.entry_points(group=SERVICES, name=role))
    if not found:
        raise LodestarError(f"no service {role} is installed; reinstall lodestar-rlhf")
    main: Callable[[Any], int] = found[0].load()
    return main


def serve_task(task: Task) -> int:
    """Runs a task's service until it ends, and ends it when one of its threads hangs; the exit code.

    Raises:
        LodestarError: no installed distribution brings such a service, or its own.
    """
    watch(task.hang_seconds)
    return service_main(str(getattr(task, "role", "")))(task)


def server_task(
    run: RunConfig,
    plan: Plan,
    store: Store,
    step: Step,
    fleet: str,
    *,
    folder: Path,
    weights: str | None = None,
    rewards: Sequence[str] = (),
    listening: Listening = LOOPBACK,
    path: Callable[[str], str] | None = None,
) -> Task:
    """The task of one server of a fleet that ``step`` calls.

    Args:
        weights: address of the learner's WeightsService, for a fleet that follows it.
        rewards: addresses of the step's reward servers, for a policy that is served as the best of n samples.
        path: where an artifact lies for the server, when it sees the run's folder elsewhere.
    """
    call, services = step.stage.calls[fleet], run.services
    place = path or (lambda artifact: str(store.path(artifact)))
    artifact = step.inputs[call.port][0] if call.port in step.inputs else None
    told: dict[str, Any] = {
        "run": run.name,
        "fleet": fleet,
        "folder": folder,
        "deterministic": run.deterministic,
        "device": run.model.device,
        "dtype": run.model.dtype,
        "hang_seconds": services.hang_seconds,
        "listening": listening,
    }
    model = step.stage.outside(fleet) if artifact is None else place(artifact)
    if call.role != "reward" and artifact == f"{GIVEN}/model" and "tokenizer" in step.inputs:
        told["tokenizer"] = place(step.inputs["tokenizer"][0])
    match call.role:
        case "feedback":
            return FeedbackTask(section=services.feedback, kept=folder / PEOPLE, **told)
        case "policy":
            picks = fleet == "policy" and bool(rewards) and services.policy.best_of > 1 and not step.stage.rolls_out
            section = services.policy.model_copy(update={} if picks else {"best_of": 1})
            endpoints = Endpoints(weights=weights if call.follows else None, reward=tuple(rewards) if picks else ())
            return PolicyTask(section=section, model=str(model), endpoints=endpoints, **told)
        case "reference":
            return ReferenceTask(section=services.reference, model=str(model), **told)
        case "reward":
            sources = served_sources(step.stage.sources(run), synthetic=plan.is_synthetic)
            scoring = services.reward.model_copy(update={"sources": sources})
            return RewardTask(section=scoring, model=model if needs_own_model(sources) else None, **told)


def rollout_task(run: RunConfig, endpoints: Endpoints, *, folder: Path, listening: Listening = LOOPBACK) -> RolloutTask:
    """The task of one rollout worker."""
    services = run.services
    return RolloutTask(
        run=run.name,
        folder=folder,
        section=services.rollout,
        queue=services.queue,
        call_tokens=min(services.reward.batch_tokens, services.reference.batch_tokens),
        hang_seconds=services.hang_seconds,
        endpoints=endpoints,
        listening=listening,
    )
