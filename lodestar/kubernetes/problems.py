"""What goes wrong on a cluster, as sentences that say what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from lodestar.errors import FailedPrecondition, InvalidArgument, LodestarError, Terminated, Unavailable


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turns the client's exceptions into Lodestar's; ``doing`` completes "could not …"."""
    try:
        yield
    except ConfigException as error:
        raise Unavailable(
            f"no cluster is configured ({error}); set KUBECONFIG, or run kubectl config use-context"
        ) from error
    except ApiException as error:
        raise explain(error, doing) from error
    except ValidationError as error:  # the client's own look at what it is about to send
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]).removeprefix("body.")
        raise InvalidArgument(
            where, f"could not {doing}: {first['msg']}; the overlay does not fit this client's version"
        ) from error
    except HTTPError as error:
        raise Unavailable(
            f"could not {doing}: the cluster cannot be reached ({error}); check kubectl cluster-info"
        ) from error


def explain(error: ApiException, doing: str) -> LodestarError:
    """The error that an answer of the API server becomes."""
    said = _message(error)
    start = f"could not {doing}: "
    match error.status:
        case 401:
            return FailedPrecondition(f"{start}the cluster does not know you ({said}); log in again")
        case 403 if "exceeded quota" in said:
            return FailedPrecondition(f"{start}{said}; free something, ask for more quota, or submit a smaller overlay")
        case 403:
            return FailedPrecondition(f"{start}{said}; ask the cluster's administrator for that right")
        case 404:
            return FailedPrecondition(f"{start}{said}; is the namespace the one that Lodestar was set up in?")
        case 409:
            return FailedPrecondition(f"{start}{said}; cancel that run first, or give this one another name")
        case 400 | 422:
            return InvalidArgument("", f"{start}{said}; the overlay does not fit this cluster's version or policies")
        case _:
            return Unavailable(f"{start}the API server answers {error.status} ({said}); try again")


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


OVER = ("Succeeded", "Failed")
"""Phases of a pod that runs no more."""


def condition(job: Any, kind: str) -> Any | None:
    """A Job's condition, Complete or Failed, where it is true."""
    return next((c for c in job.status.conditions or () if c.type == kind and c.status == "True"), None)


def ended_by(pod: Any) -> Any | None:
    """How a pod's container ended, now or the last time; None for one that has not."""
    for status in pod.status.container_statuses or ():
        if ended := status.state.terminated or (status.last_state and status.last_state.terminated):
            return ended
    return None


def failure_of(ended: Any) -> str:
    """What a container said as it ended: its error's sentence, else its last line."""
    lines = [line.strip() for line in (ended.message or "").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return [f"ended with exit status {ended.exit_code}", *lines, *errors][-1]


def pod_problem(pod: Any) -> str | None:
    """Why a pod (V1Pod) does not run, and what to do; None while nothing is wrong."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False" and condition.reason == "Unschedulable":
            return _unschedulable(condition.message or "")
    statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    images = {c.name: c for c in (*(pod.spec.init_containers or ()), *pod.spec.containers)}
    for status in statuses:
        problem = _container_problem(status, images[status.name])
        if problem:
            return problem
    return None


def refused_pods(message: str) -> str:
    """Why a workload may not have its pods, and what to do."""
    if "exceeded quota" in message:
        return f"no pod may be created ({message}); free something, ask for more quota, or submit a smaller overlay"
    if "violates PodSecurity" in message:
        return f"no pod may be created ({message}); the overlay has a pod that this namespace's standard forbids"
    return f"no pod may be created ({message})"


def event_problem(reason: str, message: str) -> str | None:
    """What a warning about a pod that has not started means; None for one that other places tell better."""
    match reason:
        case "FailedMount" if "secret" in message or "configmap" in message:
            return f"waits for what it mounts ({message}); is it there, and cert-manager well?"
        case "FailedMount" | "FailedAttachVolume":
            return f"its volume cannot be mounted ({message}); on several nodes it must be ReadWriteMany"
        case _:
            return None


def _unschedulable(message: str) -> str:
    if "Insufficient nvidia.com/gpu" in message:
        return f"no node has a free GPU ({message}); add GPU nodes, free some, or submit an overlay with fewer replicas"
    if "persistentvolumeclaim" in message:
        return f"its volume is not there ({message}); kubectl apply -f k8s/base/runs-volume.yaml makes one"
    if "unbound immediate PersistentVolumeClaims" in message:
        return f"its volume is not there ({message}); is there a storage class for ReadWriteMany?"
    return f"cannot be scheduled ({message}); add nodes or ask for less"


def _container_problem(status: Any, container: Any) -> str | None:
    waiting, ended = (
        status.state.waiting,
        status.state.terminated or (status.last_state and status.last_state.terminated),
    )
    if ended is not None and ended.reason == "OOMKilled":
        limit = (container.resources.limits or {}).get("memory", "none")
        return f"{status.name} ran out of memory (limit {limit}); raise the limit or make batches and cache smaller"
    if status.state.terminated is not None and ended.exit_code not in (0, Terminated.exit_code):
        return f"{status.name} ended with exit status {ended.exit_code}: {failure_of(ended)}"
    if waiting is None:
        return None
    match waiting.reason:
        case "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName":
            return f"image {container.image} cannot be pulled ({waiting.message}); push it, or set --image"
        case "CreateContainerConfigError":
            return f"{status.name} cannot start ({waiting.message}); create what is missing, see docs/operations.md"
        case "CrashLoopBackOff":
            code = ended.exit_code if ended is not None else "unknown"
            said = f": {failure_of(ended)}" if ended is not None and ended.message else ""
            return f"{status.name} keeps ending with exit status {code}{said}"
        case _:
            return None
