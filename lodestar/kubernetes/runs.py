"""Submit, watch and cancel runs."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lodestar.errors import FailedPrecondition, LodestarError
from lodestar.kubernetes.cluster import Cluster
from lodestar.kubernetes.fleet import COMPONENT_LABEL, MANAGED_BY, RUN_LABEL, Fleet, selector_of
from lodestar.kubernetes.problems import pod_problem

_KINDS = (
    "Job",
    "Deployment",
    "StatefulSet",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "Service",
    "ServiceAccount",
    "ConfigMap",
    "Lease",
)
"""What a submission makes, in the order of deletion."""


@dataclass(frozen=True, slots=True)
class WorkloadStatus:
    """``WorkloadStatus("policy", ready=1, wanted=2, problems=("policy-x: no node has a free GPU …",))``."""

    role: str
    ready: int
    wanted: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """A run's fleet as the cluster sees it; what the run itself does, its LearnerService says."""

    run: str
    workloads: tuple[WorkloadStatus, ...]
    finished: bool
    """The learner's Job has succeeded."""
    failed: str
    """Why the learner's Job was given up; empty otherwise."""


def submit(cluster: Cluster, fleet: Fleet) -> None:
    """Creates the fleet. What was created is deleted again when something cannot be.

    Raises:
        FailedPrecondition: the run has a learner already, a right is missing, a quota is exceeded.
        Unavailable: the cluster cannot be reached.
    """
    _claim(cluster, fleet)
    try:
        for manifest in fleet.objects:
            created = cluster.create(manifest)
        _bind(cluster, fleet, created)
    except LodestarError:
        _delete(cluster, fleet.run)
        raise


def status(cluster: Cluster, run: str) -> FleetStatus:
    """The fleet now.

    Raises:
        FailedPrecondition: there is no such run.
    """
    selector = selector_of(run)
    jobs = cluster.list("Job", selector)
    if not jobs:
        raise FailedPrecondition(f"there is no run {run} in namespace {cluster.namespace}; lodestar submit starts one")
    pods = cluster.list("Pod", f"{RUN_LABEL}={run}")
    workloads = [
        _workload(found, int(found.status.ready_replicas or 0), int(found.spec.replicas), pods)
        for kind in ("Deployment", "StatefulSet")
        for found in cluster.list(kind, selector)
    ]
    (job,) = jobs
    workloads.append(_workload(job, int(job.status.ready or 0), int(not job.status.succeeded), pods))
    failures = [c.message for c in job.status.conditions or () if c.type == "Failed" and c.status == "True"]
    return FleetStatus(
        run,
        tuple(sorted(workloads, key=lambda workload: workload.role)),
        finished=bool(job.status.succeeded),
        failed=failures[0] if failures else "",
    )


def watch(cluster: Cluster, run: str) -> Iterator[FleetStatus]:
    """The fleet at once and whenever it has changed, until the run is finished or given up."""
    seen: FleetStatus | None = None
    for _ in cluster.changes("Pod", f"{RUN_LABEL}={run}"):
        now = status(cluster, run)
        if now != seen:
            seen = now
            yield now
        if now.finished or now.failed:
            return


def logs(cluster: Cluster, run: str, role: str = "learner", *, follow: bool = False) -> Iterator[str]:
    """Log lines of a role's newest pod: of the stage that trains, or of the service once it runs.

    Raises:
        FailedPrecondition: no pod of the role, or none that has started.
    """
    pods = cluster.list("Pod", f"{RUN_LABEL}={run},{COMPONENT_LABEL}={role}")
    if not pods:
        raise FailedPrecondition(f"run {run} has no pod of {role}; lodestar status {run} says what there is")
    pod = max(pods, key=lambda found: found.metadata.creation_timestamp)
    statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    started = [s.name for s in statuses if s.state.running or s.state.terminated or s.last_state.terminated]
    if not started:
        reason = pod_problem(pod) or "it waits to be started"
        raise FailedPrecondition(f"{pod.metadata.name} has no log yet: {reason}")
    yield from cluster.logs(pod.metadata.name, started[-1], follow=follow)


def cancel(cluster: Cluster, run: str) -> None:
    """Deletes the fleet; the learner checkpoints as it ends, and the run's folder stays on the volume.

    Raises:
        FailedPrecondition: there is no such run.
    """
    if not _delete(cluster, run):
        raise FailedPrecondition(f"there is no run {run} in namespace {cluster.namespace}")


def _lease_name(run: str) -> str:
    return f"run-{run}"


def _claim(cluster: Cluster, fleet: Fleet) -> None:
    """Takes the run's Lease: of two submissions at once, one fails here.

    A Lease without its learner (a submission that died half-way) is taken over, unless somebody is faster.
    """
    name = _lease_name(fleet.run)
    lease: dict[str, Any] = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": fleet.namespace, "labels": {RUN_LABEL: fleet.run, **MANAGED_BY}},
        "spec": {"holderIdentity": f"{getpass.getuser()}@{socket.gethostname()}", "acquireTime": _now()},
    }
    held = cluster.read("Lease", name)
    if held is None:
        cluster.create(lease)
        return
    if cluster.read("Job", fleet.learner["metadata"]["name"]) is not None:
        raise FailedPrecondition(
            f"run {fleet.run} was submitted by {held.spec.holder_identity} and has a learner; "
            f"lodestar cancel {fleet.run} first, or give this run another name"
        )
    lease["metadata"]["resourceVersion"] = held.metadata.resource_version
    cluster.replace("Lease", name, lease)


def _bind(cluster: Cluster, fleet: Fleet, job: Any) -> None:
    """The Lease goes when the learner's Job goes."""
    name = _lease_name(fleet.run)
    lease = cluster.read("Lease", name)
    if lease is None:
        raise FailedPrecondition(f"run {fleet.run} was cancelled while it was being submitted")
    lease.metadata.owner_references = [
        {"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid}
    ]
    cluster.replace("Lease", name, lease)


def _delete(cluster: Cluster, run: str) -> int:
    selector = selector_of(run)
    return sum(cluster.delete_all(kind, selector) for kind in _KINDS)


def _workload(found: Any, ready: int, wanted: int, pods: list[Any]) -> WorkloadStatus:
    role = found.metadata.labels[COMPONENT_LABEL]
    problems = {
        f"{pod.metadata.name}: {problem}"
        for pod in pods
        if pod.metadata.labels.get(COMPONENT_LABEL) == role and (problem := pod_problem(pod))
    }
    return WorkloadStatus(role, ready, wanted, tuple(sorted(problems)))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
