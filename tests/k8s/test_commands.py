"""The command lines of our manifests are ones that the program understands, and skaffold names what exists."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lodestar.cli.app import app

Manifest = dict[str, Any]
Workloads = Callable[[str], dict[str, tuple[Manifest, Manifest]]]

COMMAND = typer.main.get_command(app)


def parse(words: list[str]) -> dict[str, Any]:
    """Parameters of the subcommand, as click reads them; raises click's usage errors."""
    name, *rest = words
    subcommand = COMMAND.commands[name]  # type: ignore[attr-defined]
    return dict(subcommand.make_context(name, rest, resilient_parsing=False).params)


def our_commands(pod: Manifest) -> Iterator[list[str]]:
    """Arguments after ``lodestar``: the image's entry point, or a launcher's program."""
    for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
        if not container["image"].startswith("lodestar"):
            continue
        command, args = container.get("command", []), container.get("args", [])
        if not command or command[-1] == "lodestar":
            yield args


@pytest.mark.parametrize("overlay", ["cpu-dev", "cpu-dev-tls", "gpu", "dev"])
def test_command_lines_are_understood(workloads: Workloads, overlay: str) -> None:
    seen: dict[str, set[str]] = {}
    for name, (_, pod) in workloads(overlay).items():
        for words in our_commands(pod):
            given = parse(words)
            seen.setdefault(words[0], set()).add(name)
            if words[0] == "conduct":
                ports = [given[f"{key}port"] for key in ("", "weights_", "health_", "metrics_")]
                assert (given["host"], ports) == ("0.0.0.0", [50051, 50052, 50054, 9090])
            elif words[0] == "serve":
                assert (given["role"], given["what"]) == ("task", "/etc/lodestar/task.json")
            else:
                assert str(given["file"]) == "/etc/lodestar/task.json"
    assert seen == {
        "conduct": {"conductor"},
        "serve": {"policy", "against", "filtered", "previous", "reward", "reference", "rollout"},
        "work": {"learner", "stage"},
    }


def test_each_sees_its_own_task_and_no_other(workloads: Workloads) -> None:
    for name, (_, pod) in workloads("gpu").items():
        for volume in pod["spec"]["volumes"]:
            if volume.get("configMap", {}).get("name") == "tasks":
                key = "stage" if name in ("stage", "learner") else name
                assert volume["configMap"]["items"] == [{"key": f"{key}.json", "path": "task.json"}], name


def test_whoever_works_with_the_queue_gets_its_password_from_the_secret(workloads: Workloads) -> None:
    for name, (_, pod) in workloads("gpu").items():
        environment = {entry["name"]: entry for entry in pod["spec"]["containers"][0].get("env", [])}
        assert ("LODESTAR_REDIS" in environment) == (name in ("rollout", "learner", "stage")), name
        if "LODESTAR_REDIS" in environment:
            assert "secretKeyRef" in environment["REDIS_PASSWORD"]["valueFrom"]
            assert "$(REDIS_PASSWORD)" in environment["LODESTAR_REDIS"]["value"]


def profiled(skaffold: Manifest, name: str) -> Manifest:
    """skaffold.yaml under a profile: its JSON patches applied."""
    result = copy.deepcopy(skaffold)
    (profile,) = [p for p in skaffold["profiles"] if p["name"] == name]
    for patch in profile.get("patches", []):
        *parents, last = patch["path"].strip("/").split("/")
        node = result
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node[key]
        if last == "-":
            node.append(patch["value"])
        elif isinstance(node, list):
            node[int(last)] = patch["value"]
        else:
            assert patch["op"] == "add" or last in node, patch
            node[last] = patch["value"]
    return result


@pytest.fixture(scope="module")
def skaffold(repository: Path) -> Manifest:
    return dict(yaml.safe_load((repository / "skaffold.yaml").read_text()))


@pytest.mark.parametrize("profile", ["cpu-dev", "cpu-dev-tls", "dev", "gpu", "monitoring"])
def test_a_profile_builds_the_image_that_its_overlay_runs(
    skaffold: Manifest,
    render: Callable[[str], list[Manifest]],
    pod_of: Callable[[Manifest], Manifest | None],
    repository: Path,
    profile: str,
) -> None:
    result = profiled(skaffold, profile)
    (artifact,) = result["build"]["artifacts"]
    dockerfile = (repository / artifact["docker"]["dockerfile"]).read_text()
    assert f"AS {artifact['docker']['target']}\n" in dockerfile
    assert result["verify"][0]["container"]["image"] == artifact["image"]
    images = set()
    for path in result["manifests"]["kustomize"]["paths"]:
        assert (repository / path / "kustomization.yaml").exists(), path
        for pod in filter(None, map(pod_of, render(Path(path).name))):
            images |= {
                c["image"].split(":")[0] for c in pod["spec"]["containers"] + pod["spec"].get("initContainers", [])
            }
    assert images == {artifact["image"], "docker.io/library/redis"}


def test_forwarded_ports_are_those_of_services(skaffold: Manifest, render: Callable[[str], list[Manifest]]) -> None:
    services = {m["metadata"]["name"]: m for m in render("cpu-dev") if m["kind"] == "Service"}
    local = [forward["localPort"] for forward in skaffold["portForward"]]
    assert len(set(local)) == len(local)
    for forward in skaffold["portForward"]:
        service = services[forward["resourceName"]]
        assert service["metadata"]["namespace"] == forward["namespace"]
        assert forward["port"] in {port["port"] for port in service["spec"]["ports"]}


def test_synced_files_land_where_python_looks_first(skaffold: Manifest, repository: Path, workloads: Workloads) -> None:
    for rule in skaffold["build"]["artifacts"][0]["sync"]["manual"]:
        sources = list(repository.glob(rule["src"]))
        assert sources
        package = str(sources[0].relative_to(repository)).removeprefix(rule.get("strip", "")).split("/")[0]
        assert package.startswith("lodestar")
        for name, (_, pod) in workloads("dev").items():
            if name != "redis":
                environment = {e["name"]: e.get("value") for e in pod["spec"]["containers"][0].get("env", [])}
                assert environment["PYTHONPATH"] == rule["dest"]


def test_the_smoke_test_is_a_caller_and_its_command_is_understood(skaffold: Manifest, repository: Path) -> None:
    (verify,) = skaffold["verify"]
    container = verify["container"]
    assert container["command"] == ["lodestar"]
    assert parse(container["args"])["model"] == "policy:50051"
    job = yaml.safe_load((repository / verify["executionMode"]["kubernetesCluster"]["jobManifestPath"]).read_text())
    pod = job["spec"]["template"]
    assert pod["metadata"]["labels"]["lodestar.dev/caller"] == "true"
    assert [c["name"] for c in pod["spec"]["containers"]] == [container["name"]], "skaffold merges by name"
    assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_smoke_test_of_a_fleet_with_tls_shows_a_callers_certificate(
    skaffold: Manifest, repository: Path, render: Callable[[str], list[Manifest]]
) -> None:
    (verify,) = profiled(skaffold, "cpu-dev-tls")["verify"]
    environment = {entry["name"]: entry["value"] for entry in verify["container"]["env"]}
    job = yaml.safe_load((repository / verify["executionMode"]["kubernetesCluster"]["jobManifestPath"]).read_text())
    pod = job["spec"]["template"]["spec"]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == environment["LODESTAR_TLS"]]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    (certificate,) = [
        m["spec"]
        for m in render("cpu-dev-tls")
        if m["kind"] == "Certificate" and m["spec"]["secretName"] == volume["secret"]["secretName"]
    ]
    assert certificate["uris"] == ["spiffe://lodestar/caller/caller"]
    assert volume["secret"]["optional"] is True, "cpu-dev has none"


def test_base_images_are_pinned_by_digest_and_can_be_replaced(repository: Path) -> None:
    dockerfile = (repository / "Dockerfile").read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    for base in re.findall(r"^FROM (\S+) AS", dockerfile, re.MULTILINE):
        argument = re.fullmatch(r"\$\{(\w+)\}", base)
        if argument:
            assert re.fullmatch(r".+@sha256:[0-9a-f]{64}", defaults[argument[1]]), base
        else:
            assert base in stages, base
    for target in ("cpu", "cuda"):
        stage = dockerfile.split(f"AS {target}\n")[1].split("\nFROM")[0]
        assert "USER 10001:10001" in stage
        assert 'ENTRYPOINT ["lodestar"]' in stage
