"""A run's fleet: an overlay's objects, renamed and relabelled so that fleets of several runs live in one namespace.

Namespace, volume, secrets and the authority that signs certificates are the namespace's and are there before
(docs/operations.md).
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lodestar.config import RunConfig, dump
from lodestar.errors import ConfigError, FailedPrecondition
from lodestar.kubernetes.addresses import certify, mounted_secrets, observe, reach
from lodestar.kubernetes.checks import check_fleets, check_run
from lodestar.kubernetes.labels import COMPONENT_LABEL, MANAGED_BY, RUN_LABEL
from lodestar.recipe.plan import plan

Manifest = dict[str, Any]

SHARED_KINDS = frozenset({"Namespace", "PersistentVolumeClaim", "Issuer"})
"""Of the namespace, not of a run: the runs volume holds a folder per run, the authority signs for all fleets."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is: ten times as fast."""
LONGEST_NAME = 46
"""Of a run: pods of the StatefulSet ``redis-NAME`` get a label of that name and a hash, which may have 63 letters."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The objects of one run, in the order in which they are created; the conductor's Job is the last."""

    run: str
    namespace: str
    objects: tuple[Manifest, ...]

    @property
    def conductor(self) -> Manifest:
        """The Job that drives the run."""
        return self.objects[-1]

    def to_yaml(self) -> str:
        """What ``kubectl apply -f -`` takes."""
        return yaml.safe_dump_all(self.objects, sort_keys=False)


def render(
    config: RunConfig,
    overlay: Path,
    *,
    namespace: str = "lodestar",
    image: str | None = None,
    shared: Mapping[str, str] | None = None,
) -> Fleet:
    """The fleet of a run.

    Args:
        config: the run; it becomes the ConfigMap that the conductor reads.
        overlay: folder of a kustomization, for instance ``k8s/overlays/gpu``.
        namespace: where the fleet lives; its ``runs`` volume and its secrets are there already.
        image: in place of the overlay's Lodestar image.
        shared: role (``reward``, ``reference``) → gRPC target of servers that already serve the run's models, such
            as ``dns:///reward.team:50051``; the fleet then has none of its own.

    Raises:
        FailedPrecondition: kubectl is missing.
        ConfigError: the run cannot work (lodestar.kubernetes.checks), or the overlay cannot be rendered.
    """
    shared = dict(shared or {})
    if unknown := shared.keys() - {"reward", "reference"}:
        raise ConfigError(
            "shared", f"{', '.join(sorted(unknown))} belongs to one run; only reward and reference serve several"
        )
    if len(config.name) > LONGEST_NAME:
        raise ConfigError("name", f"has {len(config.name)} letters; on Kubernetes {LONGEST_NAME} is the most")
    planned = plan(config)
    check_run(config, planned)
    objects = [
        copy.deepcopy(manifest)
        for manifest in _kustomize(overlay)
        if manifest["kind"] not in SHARED_KINDS and _component(manifest) not in shared
    ]
    mounted = mounted_secrets(objects)
    objects = [m for m in objects if m["kind"] != "Certificate" or m["spec"]["secretName"] in mounted]
    _configure(objects, config, shared, overlay)
    renamed = {
        m["metadata"]["name"]
        for m in objects
        if m["kind"] in ("ConfigMap", "Service", "ServiceAccount", "Deployment", "Role")
    }
    renamed |= {m["spec"]["secretName"] for m in objects if m["kind"] == "Certificate"}
    for manifest in objects:
        _rename(manifest, renamed, config.name)
        if manifest["kind"] == "Certificate":
            certify(manifest, config.name, namespace, {RUN_LABEL: config.name, **MANAGED_BY})
        elif manifest["kind"] == "ScaledObject":
            observe(manifest, config.name, namespace)
        _relabel(manifest, config.name)
        manifest["metadata"] |= {"name": f"{manifest['metadata']['name']}-{config.name}", "namespace": namespace}
        manifest["metadata"]["labels"] = manifest["metadata"].get("labels", {}) | MANAGED_BY | {RUN_LABEL: config.name}
        if image is not None:
            _use_image(manifest, image)
    reach(objects, shared, config.name)
    conductors = [m for m in objects if m["kind"] == "Job" and _component(m) == "conductor"]
    if len(conductors) != 1:
        raise ConfigError(str(overlay), "must have one conductor's Job; take k8s/overlays/gpu as the start")
    check_fleets(planned, objects, shared, config.name, overlay)
    return Fleet(config.name, namespace, (*(m for m in objects if m is not conductors[0]), conductors[0]))


def default_overlay() -> Path:
    """k8s/overlays/gpu of the folder that we are in, else the one that was installed with this package."""
    here = Path("k8s/overlays/gpu")
    return here if here.is_dir() else Path(__file__).parent / "manifests" / "overlays" / "gpu"


def _kustomize(overlay: Path) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise FailedPrecondition(
            "kubectl is not installed; it renders the manifests (https://kubernetes.io/docs/tasks/tools)"
        )
    done = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(str(overlay), f"cannot be rendered: {done.stderr.strip()}")
    return [document for document in yaml.load_all(done.stdout, _LOADER) if document]


def _component(manifest: Manifest) -> str | None:
    """The role an object belongs to: by its label, else by its name (Service, ServiceAccount, PDB, NetworkPolicy)."""
    labels = manifest["metadata"].get("labels", {})
    component = labels.get(COMPONENT_LABEL)
    return str(component) if component else str(manifest["metadata"]["name"])


def _configure(objects: list[Manifest], config: RunConfig, shared: Mapping[str, str], overlay: Path) -> None:
    """Puts the run and the names of its fleet into the two ConfigMaps."""
    maps = [m["data"] for m in objects if m["kind"] == "ConfigMap" and "data" in m]
    runs = [data for data in maps if "run.yaml" in data]
    fleets = [data for data in maps if "SUFFIX" in data]
    if len(runs) != 1 or len(fleets) != 1:
        raise ConfigError(str(overlay), "has no ConfigMap with run.yaml, or none with the fleet's names")
    runs[0]["run.yaml"] = dump(config)
    host, colon, port = fleets[0]["REDIS_HOST"].partition(":")
    fleets[0] |= {"SUFFIX": f"-{config.name}", "REDIS_HOST": f"{host}-{config.name}{colon}{port}"}
    fleets[0].update({role.upper(): target for role, target in shared.items()})


_REFERENCES = ("configMap", "configMapRef", "configMapKeyRef", "scaleTargetRef", "roleRef")


def _rename(node: Any, names: Iterable[str], run: str) -> None:
    """Follows references to the objects that get a new name."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("serviceAccountName", "serviceName", "secretName", "subdomain") and value in names:
                node[key] = f"{value}-{run}"
            elif key in _REFERENCES and value["name"] in names:
                value["name"] = f"{value['name']}-{run}"
                _rename(value, names, run)
            elif key == "subjects":
                node[key] = [subject | {"name": f"{subject['name']}-{run}"} for subject in value]
            elif key == "resourceNames":
                node[key] = [f"{name}-{run}" for name in value]
            else:
                _rename(value, names, run)
    elif isinstance(node, list):
        for value in node:
            _rename(value, names, run)


def _relabel(manifest: Manifest, run: str) -> None:
    """Adds the run to the labels of pods and to every selector of our pods; kube-dns and callers are not ours."""
    if manifest["kind"] == "NetworkPolicy" and not manifest["spec"]["podSelector"]:
        manifest["spec"]["podSelector"] = {"matchLabels": {RUN_LABEL: run}}
    for labels in _label_maps(manifest.get("spec", {})):
        if any(key.startswith("app.kubernetes.io/") for key in labels):
            labels[RUN_LABEL] = run


def _label_maps(node: Any) -> Iterator[dict[str, str]]:
    """Every mapping of labels below a node: ``labels``, ``matchLabels`` and a Service's ``selector``."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("labels", "matchLabels") or (key == "selector" and "matchLabels" not in value):
                yield value
            yield from _label_maps(value)
    elif isinstance(node, list):
        for value in node:
            yield from _label_maps(value)


def _use_image(manifest: Manifest, image: str) -> None:
    pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
    for container in (*pod.get("initContainers", ()), *pod.get("containers", ())):
        if container["image"].split(":")[0].rsplit("/", 1)[-1].startswith("lodestar"):
            container["image"] = image
