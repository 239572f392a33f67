"""What every pod we deploy must hold to, whatever else its manifest says."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lodestar.config import RunConfig, load_config
from lodestar.config.load import read_tree
from lodestar.errors import ModelError, NonFinite, RunPaused, Terminated
from lodestar.recipe.plan import calls_of, plan
from lodestar.recipe.written import written_as_before

Manifest = dict[str, Any]
Workloads = Callable[[str], dict[str, tuple[Manifest, Manifest]]]

OVERLAYS = ("cpu-dev", "cpu-dev-tls", "gpu", "dev")
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
PRE_STOP_SECONDS = 5
MARGIN_SECONDS = 10
HEALTH_PORT = 50054
"""Plaintext in every overlay: the kubelet has no certificate."""


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def containers(pod: Manifest) -> Iterator[Manifest]:
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def selects(selector: dict[str, str], pod: Manifest) -> bool:
    return selector.items() <= pod["metadata"]["labels"].items()


def test_the_fleet_is_complete(workloads: Workloads, overlay: str) -> None:
    assert set(workloads(overlay)) == {
        "conductor", "stage", "learner", "policy", "against", "filtered", "previous", "reward", "reference", "rollout",
        "redis",
    }  # fmt: skip


def test_nothing_but_the_conductor_and_redis_runs_until_it_is_told_to(workloads: Workloads, overlay: str) -> None:
    for name, (workload, _) in workloads(overlay).items():
        if workload["kind"] == "Deployment":
            assert workload["spec"]["replicas"] == 0, name
        if workload["kind"] == "Job":
            assert workload["spec"].get("suspend", False) == (name != "conductor"), name


def test_pods_meet_the_restricted_standard(workloads: Workloads, overlay: str) -> None:
    for name, (_, pod) in workloads(overlay).items():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & spec.keys(), name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for volume in spec["volumes"]:
            assert volume.keys() - {"name"} <= RESTRICTED_VOLUMES, name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, (name, container["name"])
            assert context["capabilities"] == {"drop": ["ALL"]}, (name, container["name"])
            assert "privileged" not in context, (name, container["name"])
            assert not any("hostPort" in port for port in container.get("ports", [])), name


def test_the_namespace_enforces_the_restricted_standard(render: Callable[[str], list[Manifest]], overlay: str) -> None:
    namespace = next(m for m in render(overlay) if m["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_root_file_systems_are_read_only_and_scratch_is_bounded(workloads: Workloads, overlay: str) -> None:
    for name, (_, pod) in workloads(overlay).items():
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, (name, container["name"])
        for volume in pod["spec"]["volumes"]:
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"], (name, volume["name"])


def test_every_process_is_probed_by_its_own_health_name(workloads: Workloads, overlay: str, repository: Path) -> None:
    protos = "".join(p.read_text() for p in (repository / "proto" / "lodestar" / "v1").glob("*.proto"))
    services = {f"lodestar.v1.{name}" for name in re.findall(r"^service (\w+)", protos, re.MULTILINE)}
    for name, (_, pod) in workloads(overlay).items():
        (container,) = pod["spec"]["containers"]
        if name == "stage":  # it serves nothing, and ends
            assert not {"startupProbe", "livenessProbe", "readinessProbe", "ports"} & container.keys()
            continue
        assert {"startupProbe", "livenessProbe"} <= container.keys(), name
        if name == "redis":
            assert "readinessProbe" in container
            continue
        # Liveness asks for the process as a whole: a replica that refused weights is not restarted for it.
        assert container["livenessProbe"]["grpc"] == {"port": HEALTH_PORT}, name
        if name == "rollout":
            continue  # called by nobody, so never taken out of a Service
        assert container["readinessProbe"]["grpc"]["port"] == HEALTH_PORT, name
        assert container["readinessProbe"]["grpc"]["service"] in services, name
        others = dict.fromkeys(("against", "filtered", "previous"), "Policy") | {"conductor": "Run"}
        service = others.get(name, name.capitalize())
        assert container["readinessProbe"]["grpc"]["service"] == f"lodestar.v1.{service}Service", name


def test_resources_are_asked_for_and_bounded(workloads: Workloads, overlay: str) -> None:
    for name, (_, pod) in workloads(overlay).items():
        for container in containers(pod):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert requests["cpu"], name
            assert requests["memory"] == limits["memory"], (name, container["name"])
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), name


def test_gpus_go_to_models_and_not_to_workers(workloads: Workloads) -> None:
    with_gpu = {
        name
        for name, (_, pod) in workloads("gpu").items()
        if any("nvidia.com/gpu" in c["resources"]["limits"] for c in pod["spec"]["containers"])
    }
    assert with_gpu == {"policy", "against", "filtered", "previous", "reward", "reference", "learner", "stage"}
    for name in with_gpu:
        _, pod = workloads("gpu")[name]
        assert any(t["key"] == "nvidia.com/gpu" for t in pod["spec"]["tolerations"]), name


def test_images_are_pinned(workloads: Workloads, overlay: str, repository: Path) -> None:
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    for _, pod in workloads(overlay).values():
        for container in containers(pod):
            image = container["image"]
            ours = re.fullmatch(r"lodestar(-cuda)?:(.+)", image)
            if ours:
                assert ours[2] == version
                assert bool(ours[1]) == (overlay == "gpu")
            else:
                assert re.fullmatch(r".+:[^:@]+@sha256:[0-9a-f]{64}", image), image


def test_accounts_are_their_own_and_the_conductors_alone_carries_a_token(
    workloads: Workloads, render: Callable[[str], list[Manifest]], overlay: str
) -> None:
    accounts = {m["metadata"]["name"]: m for m in render(overlay) if m["kind"] == "ServiceAccount"}
    for name, (_, pod) in workloads(overlay).items():
        assert pod["spec"]["serviceAccountName"] == name
        assert accounts[name]["automountServiceAccountToken"] is False
        assert pod["spec"]["automountServiceAccountToken"] is (name == "conductor"), name


def test_secrets_are_referred_to_and_never_written(render: Callable[[str], list[Manifest]], overlay: str) -> None:
    objects = render(overlay)
    assert not [m for m in objects if m["kind"] == "Secret"]
    referred = re.findall(r"'secretKeyRef': {[^}]*'name': '(\w+)'", str(objects))
    assert "redis" in referred


def test_variables_in_command_lines_are_defined(
    workloads: Workloads, render: Callable[[str], list[Manifest]], overlay: str
) -> None:
    config_maps = {m["metadata"]["name"]: m.get("data", {}) for m in render(overlay) if m["kind"] == "ConfigMap"}
    for name, (_, pod) in workloads(overlay).items():
        for container in containers(pod):
            defined = {entry["name"] for entry in container.get("env", [])}
            for source in container.get("envFrom", []):
                defined |= config_maps[source["configMapRef"]["name"]].keys()
            words = container.get("command", []) + container.get("args", [])
            words += [entry["value"] for entry in container.get("env", []) if "value" in entry]
            assert set(re.findall(r"\$\((\w+)\)", " ".join(words))) <= defined, (name, container["name"])


def test_mounts_name_volumes_of_the_pod(workloads: Workloads, overlay: str) -> None:
    for name, (workload, pod) in workloads(overlay).items():
        claims = workload["spec"].get("volumeClaimTemplates", [])
        volumes = {v["name"] for v in pod["spec"]["volumes"]} | {c["metadata"]["name"] for c in claims}
        for container in containers(pod):
            mounts = container.get("volumeMounts", [])
            assert {mount["name"] for mount in mounts} <= volumes, (name, container["name"])
            paths = [mount["mountPath"] for mount in mounts]
            assert len(set(paths)) == len(paths), (name, container["name"])


def test_services_select_pods_that_listen(
    workloads: Workloads, render: Callable[[str], list[Manifest]], overlay: str
) -> None:
    for service in (m for m in render(overlay) if m["kind"] == "Service"):
        assert service["spec"]["clusterIP"] == "None", "clients balance, so they must see every replica"
        pods = [pod for _, pod in workloads(overlay).values() if selects(service["spec"]["selector"], pod)]
        assert len(pods) == 1, service["metadata"]["name"]
        ports = {p["name"]: p["containerPort"] for c in pods[0]["spec"]["containers"] for p in c["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], service["metadata"]["name"]


def test_endpoints_name_services_and_their_ports(render: Callable[[str], list[Manifest]], overlay: str) -> None:
    ports = {
        m["metadata"]["name"]: {p["port"] for p in m["spec"]["ports"]}
        for m in render(overlay)
        if m["kind"] == "Service"
    }
    fleet = next(m["data"] for m in render(overlay) if m["metadata"]["name"].startswith("fleet-"))
    for target in (value for value in fleet.values() if ":" in value):
        host, _, port = target.removeprefix("dns:///").rpartition(":")
        assert int(port) in ports[host], target


def test_disruption_budgets_cover_every_fleet(
    workloads: Workloads, render: Callable[[str], list[Manifest]], overlay: str
) -> None:
    budgets = [m["spec"]["selector"]["matchLabels"] for m in render(overlay) if m["kind"] == "PodDisruptionBudget"]
    for name, (workload, pod) in workloads(overlay).items():
        # A Job's pods may go at any time: the next one goes on, and a budget cannot count them.
        assert sum(selects(selector, pod) for selector in budgets) == (workload["kind"] != "Job"), name


def test_replicas_spread_over_nodes(workloads: Workloads, overlay: str) -> None:
    for name, (workload, pod) in workloads(overlay).items():
        if workload["kind"] == "Job":
            continue
        (constraint,) = pod["spec"]["topologySpreadConstraints"]
        assert constraint["topologyKey"] == "kubernetes.io/hostname"
        assert selects(constraint["labelSelector"]["matchLabels"], pod), name


def run_config(render: Callable[[str], list[Manifest]], overlay: str, folder: Path) -> RunConfig:
    (text,) = (
        m["data"]["run.yaml"] for m in render(overlay) if m["kind"] == "ConfigMap" and "run.yaml" in m.get("data", {})
    )
    path = folder / "run.yaml"
    path.write_text(text)
    return load_config(path)


def test_the_fleet_belongs_to_the_run_of_its_configuration(
    render: Callable[[str], list[Manifest]], workloads: Workloads, overlay: str, tmp_path: Path
) -> None:
    name = run_config(render, overlay, tmp_path).name
    for _, pod in workloads(overlay).values():
        assert pod["metadata"]["labels"]["lodestar.dev/run"] == name


def test_the_run_of_an_overlay_is_a_recipe_and_finds_a_workload_for_all_that_it_calls(
    render: Callable[[str], list[Manifest]], workloads: Workloads, overlay: str, tmp_path: Path
) -> None:
    run = run_config(render, overlay, tmp_path)
    assert written_as_before(read_tree(tmp_path / "run.yaml")) == []
    for step in plan(run).steps:
        wanted = {*calls_of(step), step.stage.serves or "stage", *(["rollout"] if step.stage.rolls_out else [])}
        assert wanted <= set(workloads(overlay)), step.name


def test_grace_periods_outlast_the_drain(
    workloads: Workloads, render: Callable[[str], list[Manifest]], overlay: str, tmp_path: Path
) -> None:
    services = run_config(render, overlay, tmp_path).services
    drains = {
        "policy": services.policy.drain_seconds,
        "against": services.policy.drain_seconds,
        "filtered": services.policy.drain_seconds,
        "previous": services.policy.drain_seconds,
        "reward": services.reward.drain_seconds,
        "reference": services.reference.drain_seconds,
        "rollout": RunConfig(name="any").services.policy.drain_seconds,  # workers take the servers' default
    }
    (told,) = [
        word.partition("=")[2]
        for word in workloads(overlay)["conductor"][1]["spec"]["containers"][0]["args"]
        if word.startswith("services.learner.drain_seconds=")
    ]
    drains["learner"] = float(told)
    assert drains["learner"] > 10 * services.policy.drain_seconds, "a step and its checkpoint take longer than a call"
    for name, drain in drains.items():
        spec = workloads(overlay)[name][1]["spec"]
        pre_stop = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pre_stop == PRE_STOP_SECONDS
        assert spec["terminationGracePeriodSeconds"] >= pre_stop + drain + MARGIN_SECONDS, name


def test_redis_has_memory_for_the_copy_that_rewriting_its_file_makes(
    workloads: Workloads, overlay: str, repository: Path
) -> None:
    (mib,) = re.findall(r"^maxmemory (\d+)mb$", (repository / "k8s/base/redis.conf").read_text(), re.MULTILINE)
    (container,) = workloads(overlay)["redis"][1]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == f"{2 * int(mib)}Mi"


def test_the_queues_volume_goes_with_the_fleet(workloads: Workloads, overlay: str) -> None:
    retention = workloads(overlay)["redis"][0]["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert retention == {"whenDeleted": "Delete", "whenScaled": "Retain"}


def test_pods_that_are_applied_by_hand_meet_the_same_standard(repository: Path, workloads: Workloads) -> None:
    (redis,) = workloads("cpu-dev")["redis"][1]["spec"]["containers"]
    _, learner = workloads("cpu-dev")["learner"]
    for path in ("volume-shell.yaml", "verify/client-smoke.yaml"):
        manifest = yaml.safe_load((repository / "k8s" / path).read_text())
        spec = manifest["spec"] if manifest["kind"] == "Pod" else manifest["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False, path
        assert spec["securityContext"]["runAsNonRoot"] is True, path
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, path
        assert spec["securityContext"]["fsGroup"] == learner["spec"]["securityContext"]["fsGroup"], path
        (container,) = spec["containers"]
        assert container["securityContext"] == learner["spec"]["containers"][0]["securityContext"], path
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"], path
        assert container["image"] in (redis["image"], "lodestar:0.1.0"), path


def test_only_stages_and_their_conductor_write_the_run(workloads: Workloads, overlay: str) -> None:
    for name, (_, pod) in workloads(overlay).items():
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                if mount["name"] == "runs":
                    writes = name in ("learner", "stage", "conductor")
                    assert mount.get("readOnly", False) != writes, (name, container["name"])


def test_a_moved_pod_is_no_failure_and_a_hopeless_one_is_not_tried_again(workloads: Workloads, overlay: str) -> None:
    hopeless = sorted({error.exit_code for error in (ModelError, NonFinite, RunPaused)})
    for name in ("conductor", "stage", "learner"):
        spec = workloads(overlay)[name][0]["spec"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy wants it"
        assert spec["podReplacementPolicy"] == "Failed", "two pods never work on one stage"
        moved, stopped, given_up = spec["podFailurePolicy"]["rules"]
        assert (moved["action"], moved["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
        assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [Terminated.exit_code])
        assert (given_up["action"], given_up["onExitCodes"]["values"]) == ("FailJob", hopeless)
