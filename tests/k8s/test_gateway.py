"""The component gateway: OpenAI's API before the fleet's policy servers, and who reaches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from lodestar.config.load import parse_overrides
from lodestar.config.services import GatewayConfig
from lodestar.rpc.access import PERMITTED, Role

Manifest = dict[str, Any]
WITH_TLS = ("gateway", "networkpolicies", "tls")


@pytest.fixture(params=[("gateway", "networkpolicies"), WITH_TLS])
def objects(request: pytest.FixtureRequest, compose: Callable[[tuple[str, ...]], list[Manifest]]) -> list[Manifest]:
    return compose(request.param)


def of(objects: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pod_of(objects: list[Manifest]) -> Manifest:
    return of(objects, "Deployment", "gateway")["spec"]["template"]


def environment(objects: list[Manifest]) -> dict[str, str]:
    (container,) = pod_of(objects)["spec"]["containers"]
    maps = [source["configMapRef"]["name"] for source in container["envFrom"]]
    return {key: value for name in maps for key, value in of(objects, "ConfigMap", name)["data"].items()}


def test_the_pod_meets_the_restricted_standard(objects: list[Manifest]) -> None:
    spec = pod_of(objects)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["image"].startswith("lodestar:")
    assert {"requests", "limits"} <= container["resources"].keys()
    assert all("grpc" in container[f"{probe}Probe"] for probe in ("startup", "readiness", "liveness"))
    grace = spec["terminationGracePeriodSeconds"]
    assert grace >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + GatewayConfig().drain_seconds + 10


def test_services_budgets_and_policies_select_it(objects: list[Manifest]) -> None:
    pod = pod_of(objects)
    labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    service = of(objects, "Service", "gateway")["spec"]
    assert service["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in service["ports"]} <= ports.keys()
    budget = of(objects, "PodDisruptionBudget", "gateway")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    policy = of(objects, "NetworkPolicy", "gateway")["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == {"http", "metrics"}
    assert not any("from" not in rule for rule in policy["ingress"]), "nobody comes from everywhere"
    (out,) = policy["egress"]
    assert out["ports"] == [{"port": 50051}]
    server = of(objects, "Deployment", "policy")["spec"]["template"]["metadata"]["labels"]
    assert out["to"][0]["podSelector"]["matchLabels"].items() <= server.items()
    (let_in,) = of(objects, "NetworkPolicy", "gateway-policy")["spec"]["ingress"]
    assert let_in["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_command_line_is_the_services_own(objects: list[Manifest]) -> None:
    from typer.testing import CliRunner

    from lodestar.cli.app import app

    (container,) = pod_of(objects)["spec"]["containers"]
    command, role, target, *rest = container["args"]
    assert (command, role, target) == ("serve", "gateway", "$(POLICY)")
    said = CliRunner().invoke(app, ["serve", "--help"], terminal_width=300).output
    listed = environment(objects)
    for argument in rest:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in said
        else:
            for model in ("", "demo", "1e5"):
                section = parse_overrides([argument.replace("$(MODEL)", model)])
                assert GatewayConfig.model_validate(section).name == model
    assert listed["POLICY"].startswith("dns:///policy")


def test_with_tls_it_shows_a_callers_certificate_and_asks_for_tokens(
    compose: Callable[[tuple[str, ...]], list[Manifest]],
) -> None:
    objects = compose(WITH_TLS)
    (uri,) = of(objects, "Certificate", "gateway")["spec"]["uris"]
    role = Role(uri.split("/")[3])
    assert [service for service, roles in PERMITTED.items() if role in roles] == [
        "lodestar.v1.PolicyService",
        "lodestar.v1.RewardService",
        "lodestar.v1.ReferenceService",
        "lodestar.v1.TrainingService",
    ]
    volumes = pod_of(objects)["spec"]["volumes"]
    assert {"name": "tls", "secret": {"secretName": "gateway-tls", "defaultMode": 0o440}} in volumes
    listed = environment(objects)
    assert (listed["LODESTAR_TLS"], listed["LODESTAR_TOKENS"]) == ("/tls", "/tokens/tokens")
    assert yaml.safe_load(listed["LODESTAR_INSECURE"]) is False
