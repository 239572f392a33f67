"""What would make a run fail on Kubernetes, found out before anything is created."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lodestar.config import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, calls_of

RUNS = "/lodestar/runs"
"""Where pods have the runs volume: the one folder that outlives them, and the only one that all see."""


def check_run(run: RunConfig, plan: Plan) -> None:
    """
    Raises:
        ConfigError: a path of this machine, a Redis of the run's own, or a stage's name that no label can carry.
    """
    for key, path in _paths(run, plan):
        if (
            path.startswith((".", "~"))
            or (path.startswith("/") and not path.startswith(f"{RUNS}/"))
            or Path(path).exists()
        ):
            raise ConfigError(
                key,
                f"{path} is a path of this machine, and pods see {RUNS} alone; copy it there (k8s/volume-shell.yaml)",
            )
    if run.services.queue.url is not None:
        raise ConfigError(
            "services.queue.url",
            "is said by the overlay on Kubernetes, and its password by the secret redis: leave it out",
        )
    for step in plan.steps:
        if not step.name[-1].isalnum():
            raise ConfigError(
                f"stages.{step.name}", "ends in a sign that no label may end in; end it in a letter or digit"
            )


def check_fleets(
    plan: Plan, objects: Iterable[dict[str, Any]], shared: Mapping[str, str], run: str, overlay: Path
) -> None:
    """
    Raises:
        ConfigError: a stage calls a fleet, or is a service, for which the overlay has no Deployment, or no Job to copy.
    """
    there = {(m["kind"], m["metadata"]["name"]) for m in objects}
    for step in plan.steps:
        fleets = [name for name in calls_of(step) if name not in shared]
        wanted = [("Deployment", name) for name in (*fleets, *(["rollout"] if step.stage.rolls_out else []))]
        for kind, name in (*wanted, ("Job", step.stage.serves or "stage")):
            if (kind, f"{name}-{run}") not in there:
                how = "k8s/base shows how one is made"
                if name == "feedback":
                    how = (
                        "list the component k8s/components/feedback in it, or say in people.address where people judge"
                    )
                raise ConfigError(f"stages.{step.name}", f"needs a {kind} {name}, and {overlay} has none; {how}")


def _paths(run: RunConfig, plan: Plan) -> Iterator[tuple[str, str]]:
    """Everything in a run that may be a path, with its key."""
    if run.model.path:
        yield "model.path", run.model.path
    yield from ((f"given.{kind}", path) for kind, path in run.given.items())
    for source in run.services.reward.sources:
        yield from ((f"services.reward.sources.{source.name}.paths", path) for path in source.paths)
    for step in plan.steps:
        for option in ("root", "path"):
            if path := getattr(step.stage, option, None):
                yield f"stages.{step.name}.{option}", str(path)
        yield from (
            (f"stages.{step.name}.{fleet}", path) for fleet in step.stage.calls if (path := step.stage.outside(fleet))
        )
