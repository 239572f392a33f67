"""How a submitted run's fleet stands: workloads, stages, what is wrong, log lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lodestar.errors import FailedPrecondition
from lodestar.kubernetes.cluster import Cluster
from lodestar.kubernetes.fleet import COMPONENT_LABEL, RUN_LABEL, selector_of
from lodestar.kubernetes.problems import event_problem, pod_problem, refused_pods

OVER = ("Succeeded", "Failed")
"""Phases of a pod that runs no more."""


@dataclass(frozen=True, slots=True)
class WorkloadStatus:
    """``WorkloadStatus("policy", ready=1, wanted=2, problems=("policy-x: no node has a free GPU …",))``."""

    role: str
    ready: int
    wanted: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A container of the learner's newest pod: ``StageStatus("train-sft", started=1.7e9, ended=None)``."""

    name: str
    """``train-sft`` and ``train-reward``; ``lodestar`` is PPO."""
    started: float | None
    """Unix time; None while it waits."""
    ended: float | None
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """A run's fleet as the cluster sees it; what the run itself does, its LearnerService says."""

    run: str
    workloads: tuple[WorkloadStatus, ...]
    finished: bool
    """The learner's Job has succeeded."""
    failed: str
    """Why the learner's Job was given up; empty otherwise."""
    learner: str
    """The learner's newest pod; empty while there is none."""
    stages: tuple[StageStatus, ...]
    """Of that pod, in their order."""


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
        _workload(cluster, found, int(found.status.ready_replicas or 0), int(found.spec.replicas or 0), pods)
        for kind in ("Deployment", "StatefulSet")
        for found in cluster.list(kind, selector)
    ]
    (job,) = jobs
    workloads.append(_workload(cluster, job, int(job.status.ready or 0), int(not job.status.succeeded), pods))
    failures = [c.message for c in job.status.conditions or () if c.type == "Failed" and c.status == "True"]
    learners = [pod for pod in pods if pod.metadata.labels.get(COMPONENT_LABEL) == "learner"]
    newest = _newest(learners) if learners else None
    return FleetStatus(
        run,
        tuple(sorted(workloads, key=lambda workload: workload.role)),
        finished=bool(job.status.succeeded),
        failed=failures[0] if failures else "",
        learner=newest.metadata.name if newest else "",
        stages=_stages(newest) if newest else (),
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

    With ``follow`` they go on over the pod's further containers and its successors until the run has ended.

    Raises:
        FailedPrecondition: no pod of the role, or none that has started.
    """
    selector = f"{RUN_LABEL}={run},{COMPONENT_LABEL}={role}"
    shown: set[str] = set()
    pods = cluster.list("Pod", selector)
    if not pods:
        raise FailedPrecondition(f"run {run} has no pod of {role}; lodestar status {run} says what there is")
    pod = _newest(pods)
    started = _started(pod)
    if not started:
        reason = pod_problem(pod) or "it waits to be started"
        raise FailedPrecondition(f"{pod.metadata.name} has no log yet: {reason}")
    yield from cluster.logs(pod.metadata.name, started[-1].name, follow=follow)
    if not follow:
        return
    shown.update(container.container_id for container in started)
    for _ in cluster.changes("Pod", selector):
        for pod in sorted(cluster.list("Pod", selector), key=_age):
            for container in _started(pod):
                if container.container_id not in shown:
                    shown.add(container.container_id)
                    yield from cluster.logs(pod.metadata.name, container.name, follow=True)
        now = status(cluster, run)
        if now.finished or now.failed:
            return


def _started(pod: Any) -> list[Any]:
    """Statuses of the pod's containers that run or have run, in the order in which they start."""
    statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    return [s for s in statuses if s.state.running or s.state.terminated or s.last_state.terminated]


def _stages(pod: Any) -> tuple[StageStatus, ...]:
    stages = []
    for found in (*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())):
        ended, running = found.state.terminated, found.state.running
        began = getattr(running or ended, "started_at", None)
        stages.append(
            StageStatus(
                found.name,
                began.timestamp() if began else None,
                ended.finished_at.timestamp() if ended and ended.finished_at else None,
                ended.exit_code if ended else None,
            )
        )
    return tuple(stages)


def _age(pod: Any) -> Any:
    return pod.metadata.creation_timestamp


def _newest(pods: list[Any]) -> Any:
    return max(pods, key=_age)


def _workload(cluster: Cluster, found: Any, ready: int, wanted: int, pods: list[Any]) -> WorkloadStatus:
    role = found.metadata.labels[COMPONENT_LABEL]
    own = [pod for pod in pods if pod.metadata.labels.get(COMPONENT_LABEL) == role]
    if any(pod.status.phase not in OVER for pod in own):
        own = [pod for pod in own if pod.status.phase not in OVER]
    elif own:
        own = [_newest(own)]
    problems = {f"{pod.metadata.name}: {problem}" for pod in own if (problem := pod_problem(pod))}
    if ready < wanted and not problems:
        problems = _warnings(cluster, found, own)
    return WorkloadStatus(role, ready, wanted, tuple(sorted(problems)))


def _warnings(cluster: Cluster, found: Any, pods: list[Any]) -> set[str]:
    """What only events and conditions tell: pods that may not be created, volumes that cannot be mounted."""
    if not pods:
        name = found.metadata.name
        said = [c.message for c in getattr(found.status, "conditions", None) or () if c.type == "ReplicaFailure"]
        said += [message for reason, message in cluster.warnings(name) if reason == "FailedCreate"]
        return {f"{name}: {refused_pods(said[-1])}"} if said else set()
    problems = set()
    for pod in pods:
        if pod.status.phase == "Pending":
            explained = [event_problem(reason, message) for reason, message in cluster.warnings(pod.metadata.name)]
            problems |= {f"{pod.metadata.name}: {problem}" for problem in explained[-1:] if problem}
    return problems
