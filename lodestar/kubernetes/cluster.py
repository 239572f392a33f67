"""The few calls of the Kubernetes API that runs need, in one namespace, by the official client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes.config
import kubernetes.watch
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from lodestar.errors import ConfigError
from lodestar.kubernetes.problems import explained

Manifest = dict[str, Any]

load_kube_config: Callable[..., None] = kubernetes.config.load_kube_config
load_incluster_config: Callable[..., None] = kubernetes.config.load_incluster_config
new_watch: Callable[[], Any] = kubernetes.watch.Watch

_APIS = {
    "ConfigMap": (client.CoreV1Api, "config_map"),
    "Deployment": (client.AppsV1Api, "deployment"),
    "Job": (client.BatchV1Api, "job"),
    "Lease": (client.CoordinationV1Api, "lease"),
    "NetworkPolicy": (client.NetworkingV1Api, "network_policy"),
    "Pod": (client.CoreV1Api, "pod"),
    "PodDisruptionBudget": (client.PolicyV1Api, "pod_disruption_budget"),
    "PersistentVolumeClaim": (client.CoreV1Api, "persistent_volume_claim"),
    "Service": (client.CoreV1Api, "service"),
    "ServiceAccount": (client.CoreV1Api, "service_account"),
    "StatefulSet": (client.AppsV1Api, "stateful_set"),
}
GONE = 410
_WATCH_SECONDS = 300
"""A watch is asked for this long, then again: proxies cut longer ones."""
_RETRY_SECONDS = 1.0


class Cluster:
    """A namespace of a cluster. Errors come as LodestarError, saying what was tried and what to do."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    @classmethod
    def connect(cls, namespace: str, context: str | None = None) -> Cluster:
        """By KUBECONFIG or ~/.kube/config, or from inside a pod.

        Raises:
            Unavailable: there is no configuration.
        """
        with explained("connect"):
            configuration = client.Configuration()
            try:
                load_kube_config(context=context, client_configuration=configuration)
            except ConfigException:
                if context is not None:
                    raise
                load_incluster_config(client_configuration=configuration)
            return cls(client.ApiClient(configuration), namespace)

    def create(self, manifest: Manifest) -> Any:
        """Creates an object; kinds of operators (KEDA, Prometheus) are the namespace's, not a run's."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        with explained(f"create {kind} {name}"):
            return self._method("create", kind)(self.namespace, manifest)

    def read(self, kind: str, name: str) -> Any | None:
        """The object, or None."""
        with explained(f"read {kind} {name}"):
            try:
                return self._method("read", kind)(name, self.namespace)
            except ApiException as error:
                if error.status == 404:
                    return None
                raise

    def replace(self, kind: str, name: str, body: Any) -> Any:
        """Replaces the object if nobody changed it since ``body`` was read (its resourceVersion)."""
        with explained(f"replace {kind} {name}"):
            return self._method("replace", kind)(name, self.namespace, body)

    def list(self, kind: str, selector: str) -> list[Any]:
        """Objects of a kind with these labels."""
        with explained(f"list {kind}s"):
            return list(self._method("list", kind)(self.namespace, label_selector=selector).items)

    def delete_all(self, kind: str, selector: str) -> int:
        """Deletes the objects with these labels, and what they own; how many there were."""
        names = [found.metadata.name for found in self.list(kind, selector)]
        for name in names:
            with explained(f"delete {kind} {name}"):
                try:
                    self._method("delete", kind)(name, self.namespace, propagation_policy="Background")
                except ApiException as error:
                    if error.status != 404:
                        raise
        return len(names)

    def changes(self, kind: str, selector: str) -> Iterator[None]:
        """Yields at once and after every change of the objects, for as long as the caller goes on.

        A dropped watch goes on where it was; when the server has forgotten that place (410 Gone) it starts again.
        """
        version: str | None = None
        while True:
            if version is None:
                with explained(f"list {kind}s"):
                    version = self._method("list", kind)(
                        self.namespace, label_selector=selector
                    ).metadata.resource_version
                yield
            try:
                for event in new_watch().stream(
                    self._method("list", kind),
                    self.namespace,
                    label_selector=selector,
                    resource_version=version,
                    timeout_seconds=_WATCH_SECONDS,
                ):
                    version = event["object"].metadata.resource_version
                    yield
            except ApiException as error:
                if error.status != GONE:
                    with explained(f"watch {kind}s"):
                        raise
                version = None
            except HTTPError:
                time.sleep(_RETRY_SECONDS)

    def logs(self, pod: str, container: str, *, follow: bool) -> Iterator[str]:
        """Lines of a container's log."""
        with explained(f"read the log of {pod}"):
            answer: Any = client.CoreV1Api(self._api).read_namespaced_pod_log(
                pod, self.namespace, container=container, follow=follow, _preload_content=False
            )
            rest = b""
            try:
                for chunk in answer.stream(decode_content=True):
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode(errors="replace") for line in lines)
            finally:
                answer.release_conn()
            if rest:
                yield rest.decode(errors="replace")

    def _method(self, verb: str, kind: str) -> Any:
        if kind not in _APIS:
            raise ConfigError(
                kind, "is not a kind that belongs to a run; install it beside the fleets with kubectl apply -k"
            )
        api, name = _APIS[kind]
        return getattr(api(self._api), f"{verb}_namespaced_{name}")
