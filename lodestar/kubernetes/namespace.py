"""The few calls of the Kubernetes API that runs need, in one namespace, by the official client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes.config
import kubernetes.watch
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from lodestar.errors import ConfigError, Unavailable
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
    "Secret": (client.CoreV1Api, "secret"),
    "PodDisruptionBudget": (client.PolicyV1Api, "pod_disruption_budget"),
    "PersistentVolumeClaim": (client.CoreV1Api, "persistent_volume_claim"),
    "Role": (client.RbacAuthorizationV1Api, "role"),
    "RoleBinding": (client.RbacAuthorizationV1Api, "role_binding"),
    "Service": (client.CoreV1Api, "service"),
    "ServiceAccount": (client.CoreV1Api, "service_account"),
    "StatefulSet": (client.AppsV1Api, "stateful_set"),
}
_CUSTOM = {
    "Certificate": ("cert-manager.io", "v1", "certificates"),
    "Issuer": ("cert-manager.io", "v1", "issuers"),
    "ScaledObject": ("keda.sh", "v1alpha1", "scaledobjects"),
}
"""Group, version and plural of operators' kinds; the client has no classes for them, so their objects are dicts."""
HERE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
GONE = 410
RESYNC_SECONDS = 10
"""How long a watch lasts before things are looked at anew: a Job's status, say, changes after its last pod has."""
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
_RETRY_SECONDS = 1.0


class Namespace:
    """A namespace of a cluster. Errors come as LodestarError, saying what was tried and what to do."""

    def __init__(self, api: client.ApiClient, namespace: str, context: str | None = None) -> None:
        self._api = api
        self.namespace = namespace
        self.context = context
        """Of the kubeconfig; None is the current one."""

    @classmethod
    def connect(cls, namespace: str, context: str | None = None) -> Namespace:
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
            return cls(client.ApiClient(configuration), namespace, context)

    @classmethod
    def here(cls) -> Namespace:
        """The namespace that this pod is in; raises as :meth:`connect`."""
        if not HERE.exists():
            raise Unavailable("this is no pod with an API token, and only such a one conducts a run on a cluster")
        return cls.connect(HERE.read_text(encoding="utf-8").strip())

    def create(self, manifest: Manifest) -> Any:
        """Creates an object of a kind that belongs to a run."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        with explained(f"create {kind} {name}"):
            return self._call("create", kind, body=manifest)

    def read(self, kind: str, name: str) -> Any | None:
        """The object, or None: also where the cluster does not know the kind."""
        with explained(f"read {kind} {name}"):
            try:
                return self._call("read", kind, name=name)
            except ApiException as error:
                if error.status == 404:
                    return None
                raise

    def patch(self, kind: str, name: str, change: Manifest) -> Any:
        """Lays a change over the object, mapping by mapping; the object then."""
        with explained(f"patch {kind} {name}"):
            return self._call("patch", kind, name=name, body=change)

    def manifest(self, found: Any) -> Manifest:
        """An object that was read, as it would be written."""
        return dict(self._api.sanitize_for_serialization(found))  # type: ignore[no-untyped-call]

    def replace(self, kind: str, name: str, body: Any) -> Any:
        """Replaces the object if nobody changed it since ``body`` was read (its resourceVersion)."""
        with explained(f"replace {kind} {name}"):
            return self._call("replace", kind, name=name, body=body)

    def warnings(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of the warnings about the object of this name, the newest last."""
        with explained("list Events"):
            events = client.CoreV1Api(self._api).list_namespaced_event(
                self.namespace,
                field_selector=f"involvedObject.name={name},type=Warning",
                _request_timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            )
        found = sorted(events.items, key=lambda event: str(event.last_timestamp or event.event_time or ""))
        return [(event.reason or "", event.message or "") for event in found]

    def list(self, kind: str, selector: str) -> list[Any]:
        """Objects of a kind with these labels; none where the cluster does not know an operator's kind."""
        with explained(f"list {kind}s"):
            try:
                found = self._call("list", kind, label_selector=selector)
            except ApiException as error:
                if kind in _CUSTOM and error.status == 404:
                    return []
                raise
            return list(found["items"] if kind in _CUSTOM else found.items)

    def delete(self, kind: str, name: str) -> None:
        """Deletes an object and what it owns, if it is there."""
        with explained(f"delete {kind} {name}"):
            try:
                self._call("delete", kind, name=name, propagation_policy="Background")
            except ApiException as error:
                if error.status != 404:
                    raise

    def changes(self, kind: str, selector: str) -> Iterator[None]:
        """Yields at once, after every change of the objects, and every RESYNC_SECONDS without one.

        A dropped watch goes on where it was; when the server has forgotten that place (410 Gone) it starts again.
        """
        version: str | None = None
        while True:
            if version is None:
                with explained(f"list {kind}s"):
                    version = self._call("list", kind, label_selector=selector).metadata.resource_version
            yield
            try:
                for event in new_watch().stream(
                    self._method("list", kind),
                    self.namespace,
                    label_selector=selector,
                    resource_version=version,
                    timeout_seconds=RESYNC_SECONDS,
                    _request_timeout=(CONNECT_SECONDS, RESYNC_SECONDS + ANSWER_SECONDS),
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

    def _call(self, verb: str, kind: str, **arguments: Any) -> Any:
        timeout = (CONNECT_SECONDS, ANSWER_SECONDS)
        if kind in _CUSTOM:
            group, version, plural = _CUSTOM[kind]
            method = getattr(
                client.CustomObjectsApi(self._api), f"{verb.replace('read', 'get')}_namespaced_custom_object"
            )
            return method(group, version, self.namespace, plural, **arguments, _request_timeout=timeout)
        return self._method(verb, kind)(namespace=self.namespace, **arguments, _request_timeout=timeout)

    def _method(self, verb: str, kind: str) -> Any:
        if kind not in _APIS:
            raise ConfigError(
                kind, "is not a kind that belongs to a run; install it beside the fleets with kubectl apply -k"
            )
        api, name = _APIS[kind]
        return getattr(api(self._api), f"{verb}_namespaced_{name}")
