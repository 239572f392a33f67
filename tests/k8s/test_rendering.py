"""Every overlay and every combination of two components renders to objects that a real API server would take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

Manifest = dict[str, Any]

OVERLAYS = ("cpu-dev", "cpu-dev-tls", "gpu", "monitoring", "dev")
COMPONENTS = (
    "feedback",
    "gateway",
    "gpu",
    "hub",
    "keda",
    "learner-ranks",
    "live-sync",
    "monitoring",
    "networkpolicies",
    "tls",
)
KUBERNETES_VERSIONS = ("1.30", "1.37")  # 1.30 brought preStop.sleep, which we use
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
"""It would read and parse megabytes of JSON again for every object."""
CUSTOM_KINDS = yaml.load((Path(__file__).parent / "custom_kinds.yaml").read_text(), yaml.CSafeLoader)


def check(manifest: Manifest, version: str) -> None:
    """Strict validation: unknown fields are errors, of built-in kinds and of the operators' kinds alike."""
    custom = CUSTOM_KINDS.get(f"{manifest['apiVersion']}/{manifest['kind']}")
    if custom is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.validate(manifest, custom)


def identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def test_every_overlay_is_named_here(repository: Path) -> None:
    assert {path.name for path in (repository / "k8s" / "overlays").iterdir()} == set(OVERLAYS)
    assert {path.name for path in (repository / "k8s" / "components").iterdir()} == set(COMPONENTS)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_overlays_are_valid_against_the_kubernetes_schemas(
    render: Callable[[str], list[Manifest]], overlay: str, version: str
) -> None:
    objects = render(overlay)
    assert objects
    for manifest in objects:
        check(manifest, version)
    assert len({identity(m) for m in objects}) == len(objects), "two objects of one name"


def test_every_pair_of_components_renders_to_valid_objects(
    compose: Callable[[tuple[str, ...]], list[Manifest]],
) -> None:
    combinations = [*itertools.combinations(COMPONENTS, 2), COMPONENTS]
    with ThreadPoolExecutor(4) as threads:
        unique = {json.dumps(m, sort_keys=True) for objects in threads.map(compose, combinations) for m in objects}
    for text in unique:
        check(json.loads(text), KUBERNETES_VERSIONS[-1])


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replicaz"), 2),
        ("StatefulSet", ("spec", "template", "spec", "containers", 0, "livenessProbe", "gprc"), {"port": 1}),
        ("NetworkPolicy", ("spec", "egress"), "all"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "intervall"), "5s"),
    ],
)
def test_a_misspelt_field_is_noticed(
    compose: Callable[[tuple[str, ...]], list[Manifest]], kind: str, path: tuple[str | int, ...], value: object
) -> None:
    manifest = next(m for m in compose(("monitoring", "networkpolicies")) if m["kind"] == kind)
    target: Any = manifest
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(manifest, KUBERNETES_VERSIONS[-1])


@pytest.mark.parametrize("components", [(), ("learner-ranks",), ("live-sync", "gpu")])
def test_config_maps_that_pods_mention_exist(
    compose: Callable[[tuple[str, ...]], list[Manifest]],
    pod_of: Callable[[Manifest], Manifest | None],
    components: tuple[str, ...],
) -> None:
    objects = compose(components)
    present = {m["metadata"]["name"] for m in objects if m["kind"] == "ConfigMap"}
    for manifest in objects:
        if (pod := pod_of(manifest)) is None:
            continue
        spec = pod["spec"]
        wanted = {v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v}
        wanted |= {e["configMapRef"]["name"] for c in spec["containers"] for e in c.get("envFrom", [])}
        assert wanted
        assert wanted <= present, manifest["metadata"]["name"]


@pytest.mark.parametrize(
    "path", ["verify/client-smoke.yaml", "volume-shell.yaml", "submitter.yaml", "components/tls/authority.yaml"]
)
def test_what_is_applied_by_itself_is_valid(repository: Path, path: str) -> None:
    for manifest in yaml.safe_load_all((repository / "k8s" / path).read_text()):
        check(manifest, KUBERNETES_VERSIONS[0])


def test_the_learner_of_several_nodes_is_the_same_template_with_an_index(
    compose: Callable[[tuple[str, ...]], list[Manifest]],
) -> None:
    one, several = (
        next(m for m in compose(components) if m["kind"] == "Job" and m["metadata"]["name"] == "learner")
        for components in (("gpu",), ("gpu", "learner-ranks"))
    )
    assert several["spec"]["completionMode"] == "Indexed"
    assert several["spec"]["completions"] == several["spec"]["parallelism"] == 2
    (single,), (ranks,) = (m["spec"]["template"]["spec"]["containers"] for m in (one, several))
    assert ranks["command"][-1] == "lodestar"
    assert "--nnodes=2" in ranks["command"]
    for key in ("args", "securityContext", "startupProbe", "livenessProbe"):
        assert ranks[key] == single[key], key
    requests, limits = ranks["resources"]["requests"], ranks["resources"]["limits"]
    assert (requests["memory"], requests["nvidia.com/gpu"]) == (limits["memory"], limits["nvidia.com/gpu"])


def test_the_autoscaler_owns_the_number_of_workers(compose: Callable[[tuple[str, ...]], list[Manifest]]) -> None:
    objects = compose(("keda",))
    target = next(m for m in objects if m["kind"] == "ScaledObject")["spec"]["scaleTargetRef"]["name"]
    deployment = next(m for m in objects if identity(m) == ("apps/v1", "Deployment", target))
    assert "replicas" not in deployment["spec"]
