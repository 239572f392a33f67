"""Evaluates the rendered NetworkPolicies as a cluster would, and compares with who has to talk to whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Manifest = dict[str, Any]
Workloads = Callable[[str], dict[str, tuple[Manifest, Manifest]]]

NAMESPACE = {"kubernetes.io/metadata.name": "lodestar"}
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
OTHER = {"kubernetes.io/metadata.name": "other"}
CALLER = {"lodestar.dev/caller": "true"}
PORTS = {"grpc": 50051, "weights": 50052, "callers": 50053, "health": 50054, "metrics": 9090, "redis": 6379}

CLIENTS = ("rollout", "learner", "stage")
SERVERS = ("policy", "against", "filtered", "previous", "reward", "reference")
FLOWS = {
    *((client, server, 50051) for client in CLIENTS for server in SERVERS),
    *((client, "redis", 6379) for client in CLIENTS),
    ("policy", "learner", 50052),
    ("policy", "reward", 50051),  # best of n
    ("conductor", "learner", 50051),
}
"""(from, to, port): the design's data flow, and nothing else."""


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] in ("In", "NotIn")
        if (labels.get(expression["key"]) in expression["values"]) != (expression["operator"] == "In"):
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def peer_matches(peer: Manifest, labels: dict[str, str], namespace: dict[str, str]) -> bool:
    if "ipBlock" in peer:
        return False  # addresses outside the cluster
    in_namespace = (
        matches(peer["namespaceSelector"], namespace) if "namespaceSelector" in peer else namespace == NAMESPACE
    )
    return in_namespace and matches(peer.get("podSelector", {}), labels)


def allowed(
    policies: list[Manifest],
    direction: str,
    pod: dict[str, str],
    peer: dict[str, str],
    namespace: dict[str, str],
    port: int,
) -> bool:
    """Whether the policies that select ``pod`` let ``peer`` through in the direction (Ingress or Egress)."""
    selecting = [
        p["spec"] for p in policies if direction in p["spec"]["policyTypes"] and matches(p["spec"]["podSelector"], pod)
    ]
    if not selecting:
        return True
    peers_key = "from" if direction == "Ingress" else "to"
    for rule in (rule for spec in selecting for rule in spec.get(direction.lower(), [])):
        ports = [PORTS.get(p["port"], p["port"]) for p in rule.get("ports", [])]
        if ports and port not in ports:
            continue
        if peers_key not in rule or any(peer_matches(p, peer, namespace) for p in rule[peers_key]):
            return True
    return False


@pytest.fixture(params=["cpu-dev", "cpu-dev-tls", "gpu"])
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policies(render: Callable[[str], list[Manifest]], overlay: str) -> list[Manifest]:
    return [m for m in render(overlay) if m["kind"] == "NetworkPolicy"]


@pytest.fixture
def labels(workloads: Workloads, overlay: str) -> dict[str, dict[str, str]]:
    return {name: pod["metadata"]["labels"] for name, (_, pod) in workloads(overlay).items()}


def test_pods_reach_what_the_data_flow_needs_and_nothing_else(
    policies: list[Manifest], labels: dict[str, dict[str, str]]
) -> None:
    reached = {
        (source, target, port)
        for source in labels
        for target in labels
        for port in PORTS.values()
        if allowed(policies, "Egress", labels[source], labels[target], NAMESPACE, port)
        and allowed(policies, "Ingress", labels[target], labels[source], NAMESPACE, port)
    }
    assert reached == FLOWS


def test_everyone_resolves_names(policies: list[Manifest], labels: dict[str, dict[str, str]]) -> None:
    dns, system = {"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"}
    for name in labels:
        assert allowed(policies, "Egress", labels[name], dns, system, 53), name


def test_prometheus_reaches_metrics_alone(policies: list[Manifest], labels: dict[str, dict[str, str]]) -> None:
    for name in labels:
        scraped = {p for p in PORTS.values() if allowed(policies, "Ingress", labels[name], {}, MONITORING, p)}
        assert scraped == (set() if name == "redis" else {9090}), name


def test_callers_reach_grpc_alone_and_strangers_nothing(
    policies: list[Manifest], labels: dict[str, dict[str, str]]
) -> None:
    for name in labels:
        called = {p for p in PORTS.values() if allowed(policies, "Ingress", labels[name], CALLER, OTHER, p)}
        assert called == ({50051, 50053} if name in {*SERVERS, "learner", "conductor"} else set()), name
        assert not [p for p in PORTS.values() if allowed(policies, "Ingress", labels[name], {}, OTHER, p)], name


def test_a_pod_of_no_policy_of_its_own_is_shut_in(policies: list[Manifest]) -> None:
    for direction in ("Ingress", "Egress"):
        assert not allowed(policies, direction, {"app": "new"}, {"app": "new"}, NAMESPACE, 50051)


def test_only_what_loads_models_and_data_of_a_hub_run_leaves_the_cluster(
    policies: list[Manifest], labels: dict[str, dict[str, str]], overlay: str
) -> None:
    outward = [p["spec"] for p in policies if "ipBlock" in str(p)]
    selected = {name for name in labels for spec in outward if matches(spec["podSelector"], labels[name])}
    assert selected == ({*SERVERS, "learner", "stage"} if overlay == "gpu" else set())
    for spec in outward:
        assert [rule["ports"] for rule in spec["egress"]] == [[{"port": 443}]]


def test_the_conductor_alone_reaches_the_api_server(
    policies: list[Manifest], labels: dict[str, dict[str, str]]
) -> None:
    for name in labels:
        reached = {port for port in (443, 6443) if allowed(policies, "Egress", labels[name], {}, OTHER, port)}
        assert reached == ({443, 6443} if name == "conductor" else set()), name
