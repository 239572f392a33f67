"""The component feedback: the page, its volume, its backup and who reaches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lodestar.rpc.access import PERMITTED, Role

Manifest = dict[str, Any]


@pytest.fixture(params=[("feedback", "networkpolicies"), ("feedback", "networkpolicies", "tls")])
def objects(request: pytest.FixtureRequest, compose: Callable[[tuple[str, ...]], list[Manifest]]) -> list[Manifest]:
    return compose(request.param)


def of(objects: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pods(objects: list[Manifest]) -> dict[str, Manifest]:
    page = of(objects, "Deployment", "feedback")["spec"]["template"]
    backup = of(objects, "CronJob", "feedback-backup")["spec"]["jobTemplate"]["spec"]["template"]
    return {"page": page, "backup": backup}


def test_both_pods_meet_the_restricted_standard(objects: list[Manifest]) -> None:
    for name, pod in pods(objects).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["image"].startswith("lodestar:"), name
            assert {"requests", "limits"} <= container["resources"].keys(), name


def test_one_process_at_a_time_writes_the_sqlite_file(objects: list[Manifest]) -> None:
    page = of(objects, "Deployment", "feedback")["spec"]
    assert (page["replicas"], page["strategy"]["type"]) == (1, "Recreate")
    backup = pods(objects)["backup"]["spec"]
    term = backup["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    labels = page["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.items(), "a ReadWriteOnce volume is one node's"


def test_the_database_is_a_secret_that_is_written_nowhere(objects: list[Manifest]) -> None:
    assert not [one for one in objects if one["kind"] == "Secret"]
    for pod in pods(objects).values():
        (environment,) = [one for one in pod["spec"]["containers"][0]["env"] if "DATABASE" in one["name"]]
        assert environment["valueFrom"]["secretKeyRef"] == {"name": "feedback", "key": "database", "optional": True}


def test_services_budgets_and_policies_select_the_page(objects: list[Manifest]) -> None:
    pod = pods(objects)["page"]
    labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    service = of(objects, "Service", "feedback")["spec"]
    assert service["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in service["ports"]} <= ports
    budget = of(objects, "PodDisruptionBudget", "feedback")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    policy = of(objects, "NetworkPolicy", "feedback")["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == {"page", "grpc", "metrics"}
    assert not any("from" not in rule for rule in policy["ingress"]), "nobody comes from everywhere"
    assert policy["egress"] == [{"ports": [{"port": 5432}]}]
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert grace >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + 20 + 10


def test_the_stage_that_asks_reaches_the_page_and_is_let_in(objects: list[Manifest]) -> None:
    page = pods(objects)["page"]["metadata"]["labels"]
    stage = of(objects, "Job", "stage")["spec"]["template"]["metadata"]["labels"]
    outward = of(objects, "NetworkPolicy", "run-feedback")["spec"]
    inward = of(objects, "NetworkPolicy", "feedback")["spec"]
    key = "app.kubernetes.io/component"
    assert stage[key] in outward["podSelector"]["matchExpressions"][0]["values"]
    ((rule,), (peer,)) = outward["egress"], outward["egress"][0]["to"]
    assert peer["podSelector"]["matchLabels"].items() <= page.items()
    assert rule["ports"] == [{"port": 50051}]
    (let_in,) = [rule for rule in inward["ingress"] if {"port": "grpc"} in rule["ports"]]
    assert stage[key] in let_in["from"][0]["podSelector"]["matchExpressions"][0]["values"]


def test_over_tls_the_page_has_a_certificate_of_its_own_and_the_stage_one_that_it_takes(
    compose: Callable[[tuple[str, ...]], list[Manifest]],
) -> None:
    objects = compose(("feedback", "networkpolicies", "tls"))
    for kind, name in (("Deployment", "feedback"), ("Job", "stage")):
        spec = of(objects, kind, name)["spec"]["template"]["spec"]
        (secret,) = [one["secret"]["secretName"] for one in spec["volumes"] if one["name"] == "tls"]
        certificate = of(objects, "Certificate", name)["spec"]
        assert secret == certificate["secretName"] == f"{name}-tls"
        assert certificate["uris"] == [f"spiffe://lodestar/worker/{name}"]
    assert Role.WORKER in PERMITTED["lodestar.v1.FeedbackService"]
    assert "feedback" in of(objects, "Certificate", "feedback")["spec"]["dnsNames"], (
        "what dns:///feedback is checked for"
    )


def test_the_command_line_is_the_services_own(objects: list[Manifest]) -> None:
    from typer.testing import CliRunner

    from lodestar.cli.app import app
    from lodestar.config import FeedbackConfig, parse_overrides

    for name, commands in {"page": 1, "backup": 2}.items():
        (container,) = pods(objects)[name]["spec"]["containers"]
        assert "command" not in container, "the image's entry point is lodestar"
        arguments = container["args"]
        said = CliRunner().invoke(app, [*arguments[:commands], "--help"], terminal_width=300).output
        for argument in arguments:
            flag = argument.partition("=")[0]
            assert not flag.startswith("--") or flag in said, (name, flag)
    arguments = pods(objects)["page"]["spec"]["containers"][0]["args"]
    options = [one.replace("$(LINK)", "https://a.example") for one in arguments if "=" in one and one[0] != "-"]
    assert FeedbackConfig.model_validate(parse_overrides(options)).page_port == 8080
