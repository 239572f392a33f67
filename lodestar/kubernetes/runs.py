"""Submit and cancel runs."""

from __future__ import annotations

import datetime
import getpass
import socket
import time
from collections.abc import Sequence
from typing import Any

from lodestar.errors import FailedPrecondition, LodestarError
from lodestar.kubernetes.fleet import Fleet
from lodestar.kubernetes.labels import COMPONENT_LABEL, MANAGED_BY, RUN_LABEL, STAGE_LABEL, selector_of
from lodestar.kubernetes.namespace import Namespace
from lodestar.kubernetes.problems import OVER

_KINDS = (
    "Job",
    "Deployment",
    "StatefulSet",
    "ScaledObject",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "Service",
    "RoleBinding",
    "Role",
    "ServiceAccount",
    "ConfigMap",
    "Certificate",
    "Lease",
)
"""What a submission makes, in the order of deletion."""
SUBMISSION_SECONDS = 120
"""A submission that has not made the conductor's Job after this long is dead, and its Lease may be taken over."""


def submit(cluster: Namespace, fleet: Fleet) -> None:
    """Creates the fleet. What was created is deleted again when something cannot be.

    Raises:
        FailedPrecondition: the run is conducted already, the namespace has no authority for a fleet that speaks TLS,
            a right is missing, a quota is exceeded.
        Unavailable: the cluster cannot be reached.
    """
    _check_authority(cluster, fleet)
    _claim(cluster, fleet)
    try:
        for manifest in fleet.objects:
            created = cluster.create(manifest)
        _bind(cluster, fleet, created)
    except (LodestarError, KeyboardInterrupt):
        _delete(cluster, fleet.run)
        raise


def cancel(cluster: Namespace, run: str) -> None:
    """Deletes the fleet; a learner checkpoints as it ends, and the run's folder stays on the volume.

    Raises:
        FailedPrecondition: there is no such run.
    """
    if not _delete(cluster, run):
        raise FailedPrecondition(f"there is no run {run} in namespace {cluster.namespace}")


def _lease_name(run: str) -> str:
    return f"run-{run}"


def _check_authority(cluster: Namespace, fleet: Fleet) -> None:
    """Without an Issuer the certificates of the fleet would be waited for in vain."""
    for name in {m["spec"]["issuerRef"]["name"] for m in fleet.objects if m["kind"] == "Certificate"}:
        if cluster.read("Issuer", name) is None:
            raise FailedPrecondition(
                f"namespace {fleet.namespace} has no Issuer {name}, which signs the fleet's certificates; install "
                f"cert-manager and kubectl -n {fleet.namespace} apply -f k8s/components/tls/authority.yaml"
            )


def _claim(cluster: Namespace, fleet: Fleet) -> None:
    """Takes the run's Lease: of two submissions at once, one fails here.

    A Lease without its conductor (a submission that died half-way) is taken over once it is old, unless somebody is
    faster.
    """
    name = _lease_name(fleet.run)
    now = _now()
    lease: dict[str, Any] = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": fleet.namespace, "labels": {RUN_LABEL: fleet.run, **MANAGED_BY}},
        "spec": {
            "holderIdentity": f"{getpass.getuser()}@{socket.gethostname()}",
            "leaseDurationSeconds": SUBMISSION_SECONDS,
            "acquireTime": now,
            "renewTime": now,
        },
    }
    held = cluster.read("Lease", name)
    if held is not None and cluster.read("Job", fleet.conductor["metadata"]["name"]) is not None:
        raise FailedPrecondition(
            f"run {fleet.run} was submitted by {held.spec.holder_identity} and is there; "
            f"lodestar cancel {fleet.run} first, or give this run another name"
        )
    _refuse_second_conductor(cluster, fleet.run)
    if held is None:
        cluster.create(lease)
        return
    if (age := _seconds_since(held.spec.renew_time)) < SUBMISSION_SECONDS:
        raise FailedPrecondition(
            f"run {fleet.run} is being submitted by {held.spec.holder_identity} since {age:.0f} s; "
            f"try again in {SUBMISSION_SECONDS - age:.0f} s if nothing comes of it"
        )
    lease["metadata"]["resourceVersion"] = held.metadata.resource_version
    cluster.replace("Lease", name, lease)
    _delete(cluster, fleet.run, [kind for kind in _KINDS if kind != "Lease"])  # what it had made


def _refuse_second_conductor(cluster: Namespace, run: str) -> None:
    """A cancelled learner may write its checkpoint for minutes, and ``kubectl apply -k`` starts conductors too."""
    for pod in cluster.list("Pod", f"{RUN_LABEL}={run}"):
        labels, name = pod.metadata.labels, pod.metadata.name
        if pod.status.phase in OVER or not (STAGE_LABEL in labels or labels.get(COMPONENT_LABEL) == "conductor"):
            continue
        if pod.metadata.deletion_timestamp is not None:
            raise FailedPrecondition(
                f"{labels.get(STAGE_LABEL, 'the conductor')} of run {run} is still ending ({name} writes what it has); "
                "try again when that pod is gone"
            )
        raise FailedPrecondition(
            f"pod {name} works on run {run} already; delete its fleet first, or give this run another name"
        )


def _bind(cluster: Namespace, fleet: Fleet, job: Any) -> None:
    """The Lease goes when the conductor's Job goes."""
    name = _lease_name(fleet.run)
    lease = cluster.read("Lease", name)
    if lease is None:
        raise FailedPrecondition(f"run {fleet.run} was cancelled while it was being submitted")
    lease.metadata.owner_references = [
        {"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid}
    ]
    cluster.replace("Lease", name, lease)


def _delete(cluster: Namespace, run: str, kinds: Sequence[str] = _KINDS) -> int:
    selector = selector_of(run)
    deleted = 0
    for kind in kinds:
        for found in cluster.list(kind, selector):
            if kind == "Certificate":
                name = found["metadata"]["name"]
                cluster.delete(kind, name)
                # cert-manager leaves it: somebody might still use it.
                cluster.delete("Secret", found["spec"]["secretName"])
            else:
                cluster.delete(kind, found["metadata"]["name"] if isinstance(found, dict) else found.metadata.name)
            deleted += 1
    return deleted


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())


def _seconds_since(moment: datetime.datetime | None) -> float:
    return float("inf") if moment is None else abs(time.time() - moment.timestamp())
