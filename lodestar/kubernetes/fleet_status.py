"""How a run's fleet stands: workloads, stages, what is wrong, log lines. The run itself is RunService's to tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lodestar.errors import FailedPrecondition
from lodestar.kubernetes.labels import COMPONENT_LABEL, RUN_LABEL, STAGE_LABEL
from lodestar.kubernetes.namespace import Namespace
from lodestar.kubernetes.problems import OVER, condition, ended_by, event_problem, failure_of, pod_problem, refused_pods


@dataclass(frozen=True, slots=True)
class WorkloadStatus:
    """``WorkloadStatus("policy", ready=1, wanted=2, problems=("policy-x: no node has a free GPU …",))``."""

    role: str
    """A fleet, ``conductor`` or ``redis``, or the stage that works."""
    ready: int
    wanted: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage's Job: ``StageStatus("r2.ppo", "running")``."""

    name: str
    state: str
    """running, done or failed."""


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """A run's fleet as the cluster sees it."""

    run: str
    workloads: tuple[WorkloadStatus, ...]
    stages: tuple[StageStatus, ...]
    """Those of which there is a Job, oldest first."""
    finished: bool
    """The conductor's Job has succeeded."""
    failed: str
    """Why the conductor's Job was given up; empty otherwise."""
    conductor: str
    """The conductor's newest pod that runs; empty while there is none."""


def status(cluster: Namespace, run: str) -> FleetStatus:
    """The fleet now.

    Raises:
        FailedPrecondition: there is no such run.
    """
    selector = f"{RUN_LABEL}={run}"
    jobs = sorted(cluster.list("Job", selector), key=_age)
    conductors = [job for job in jobs if job.metadata.labels.get(COMPONENT_LABEL) == "conductor"]
    if not conductors:
        raise FailedPrecondition(f"there is no run {run} in namespace {cluster.namespace}; lodestar submit starts one")
    pods = cluster.list("Pod", selector)
    workloads = [
        _workload(
            cluster, found, _role(found), int(found.status.ready_replicas or 0), int(found.spec.replicas or 0), pods
        )
        for kind in ("Deployment", "StatefulSet")
        for found in cluster.list(kind, selector)
    ]
    (job,) = conductors
    stages = [found for found in jobs if STAGE_LABEL in found.metadata.labels]
    for one in (job, *(found for found in stages if _state(found) == "running")):
        name = one.metadata.labels.get(STAGE_LABEL) or _role(one)
        workloads.append(_workload(cluster, one, name, int(one.status.ready or 0), int(_state(one) == "running"), pods))
    own = sorted((pod for pod in pods if _role(pod) == "conductor"), key=_age)
    failed = condition(job, "Failed")
    said = [failure_of(ended) for pod in own[-1:] if failed and (ended := ended_by(pod)) and ended.exit_code]
    running = [pod.metadata.name for pod in own if pod.status.phase == "Running"]
    return FleetStatus(
        run,
        tuple(sorted(workloads, key=lambda workload: workload.role)),
        tuple(StageStatus(found.metadata.labels[STAGE_LABEL], _state(found)) for found in stages),
        finished=condition(job, "Complete") is not None,
        failed=(said or [failed.message])[0] if failed else "",
        conductor=running[-1] if running else "",
    )


def watch(cluster: Namespace, run: str) -> Iterator[FleetStatus]:
    """The fleet at once and whenever it has changed, until the run is finished or given up."""
    seen: FleetStatus | None = None
    for _ in cluster.changes("Pod", f"{RUN_LABEL}={run}"):
        now = status(cluster, run)
        if now != seen:
            seen = now
            yield now
        if now.finished or now.failed:
            return


def logs(cluster: Namespace, run: str, what: str = "", *, follow: bool = False) -> Iterator[str]:
    """Log lines of a stage's newest pod (``r2.ppo``), or of a fleet's, or of what runs now.

    With ``follow`` they go on over its successors, without ``what`` over the stages that come, until the run has ended.

    Raises:
        FailedPrecondition: there is no such pod, or none that has started.
    """
    pods = _pods(cluster, run, what)
    if not pods:
        raise FailedPrecondition(f"run {run} has no pod of {what or 'its own'}; lodestar status {run} says what is")
    pod = pods[-1]
    started = _started(pod)
    if not started:
        reason = pod_problem(pod) or "it waits to be started"
        raise FailedPrecondition(f"{pod.metadata.name} has no log yet: {reason}")
    yield from cluster.logs(pod.metadata.name, started[-1].name, follow=follow)
    if not follow:
        return
    shown = {container.container_id for earlier in pods for container in _started(earlier)}
    for _ in cluster.changes("Pod", f"{RUN_LABEL}={run}"):
        for pod in _pods(cluster, run, what):
            for container in _started(pod):
                if container.container_id not in shown:
                    shown.add(container.container_id)
                    yield from cluster.logs(pod.metadata.name, container.name, follow=True)
        now = status(cluster, run)
        if now.finished or now.failed or any(one.name == what and one.state != "running" for one in now.stages[-1:]):
            return


def _pods(cluster: Namespace, run: str, what: str) -> list[Any]:
    """Pods of a stage or a fleet; of whatever stage works, else of the conductor. The newest is the last."""
    pods = sorted(cluster.list("Pod", f"{RUN_LABEL}={run}"), key=_age)
    if what:
        return [p for p in pods if p.metadata.labels.get(STAGE_LABEL) == what] or [p for p in pods if _role(p) == what]
    working = [pod for pod in pods if STAGE_LABEL in pod.metadata.labels and pod.status.phase not in OVER]
    return working or [pod for pod in pods if _role(pod) == "conductor"]


def _started(pod: Any) -> list[Any]:
    """Statuses of the pod's containers that run or have run, in the order in which they start."""
    statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    return [s for s in statuses if s.state.running or s.state.terminated or s.last_state.terminated]


def _state(job: Any) -> str:
    return "done" if condition(job, "Complete") else "failed" if condition(job, "Failed") else "running"


def _role(found: Any) -> str:
    return str(found.metadata.labels.get(COMPONENT_LABEL))


def _age(found: Any) -> Any:
    return found.metadata.creation_timestamp


def _workload(cluster: Namespace, found: Any, role: str, ready: int, wanted: int, pods: list[Any]) -> WorkloadStatus:
    own = [pod for pod in pods if (pod.metadata.labels.get(STAGE_LABEL) or _role(pod)) == role]
    if any(pod.status.phase not in OVER for pod in own):
        own = [pod for pod in own if pod.status.phase not in OVER]
    elif own:
        own = [max(own, key=_age)]
    problems = {f"{pod.metadata.name}: {problem}" for pod in own if (problem := pod_problem(pod))}
    if ready < wanted and not problems:
        problems = _warnings(cluster, found, own)
    return WorkloadStatus(role, ready, wanted, tuple(sorted(problems)))


def _warnings(cluster: Namespace, found: Any, pods: list[Any]) -> set[str]:
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
