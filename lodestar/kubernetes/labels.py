"""Labels, annotations and names by which submissions, conductors and manifests know each other."""

from __future__ import annotations

RUN_LABEL = "lodestar.dev/run"
STAGE_LABEL = "lodestar.dev/stage"
"""Of a stage's Job and its pods."""
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY = {"app.kubernetes.io/managed-by": "lodestar"}
"""Of all that a submission makes."""
TASK = "lodestar.dev/task"
"""Annotation of a pod: SHA-256 of the task that it works on."""
TOOK = "lodestar.dev/took"
"""Annotation of a server's pod: digest of the artifact that it serves."""
TASKS = "tasks"
"""The ConfigMap of tasks, by fleet; ``stage.json`` is the present stage's."""


def selector_of(run: str) -> str:
    """Label selector of everything that a run's submission made."""
    return ",".join(f"{key}={value}" for key, value in {RUN_LABEL: run, **MANAGED_BY}.items())
