"""Runs on Kubernetes: submit a configuration as a fleet of its own, watch it, read its logs, cancel it.

    fleet = render(config, Path("k8s/overlays/gpu"), namespace="lodestar")
    cluster = Namespace.connect("lodestar")
    submit(cluster, fleet)
    for status in watch(cluster, config.name): ...

Rendering is kustomize's (``kubectl kustomize``), the API is the official client's; what is ours is what makes a fleet
belong to one run, and sentences for what goes wrong.
"""

from lodestar.kubernetes.fleet import Fleet, default_overlay, render
from lodestar.kubernetes.fleet_status import FleetStatus, StageStatus, WorkloadStatus, logs, status, watch
from lodestar.kubernetes.namespace import Namespace
from lodestar.kubernetes.runs import cancel, submit

__all__ = [
    "Fleet",
    "FleetStatus",
    "Namespace",
    "StageStatus",
    "WorkloadStatus",
    "cancel",
    "default_overlay",
    "logs",
    "render",
    "status",
    "submit",
    "watch",
]
