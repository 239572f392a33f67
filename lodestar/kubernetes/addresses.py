"""What a fleet's names change elsewhere: certificates for them, policies towards shared servers, a query about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Manifest = dict[str, Any]

CALLER_LABEL = "lodestar.dev/caller"
"""Pods that carry it are let in by every fleet's model servers (k8s/components/networkpolicies)."""
CALLING = ("learner", "stage", "rollout")
"""Workloads that call model servers."""
GRPC_PORT = 50051
_COMPONENT_LABEL = "app.kubernetes.io/component"
_SERIES = re.compile(r"\b(lodestar_\w+)\{[^}]*\}")


def mounted_secrets(objects: Iterable[Manifest]) -> set[str]:
    """Names of the secrets that the pods of these objects mount."""
    return {
        volume["secret"]["secretName"]
        for manifest in objects
        for volume in manifest.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", ())
        if "secret" in volume
    }


def certify(certificate: Manifest, run: str, namespace: str, labels: Mapping[str, str]) -> None:
    """A workload's Certificate for the name that its Service has in this fleet; the secret carries ``labels``."""
    spec = certificate["spec"]
    hosts = dict.fromkeys(name.partition(".")[0] for name in spec.get("dnsNames", ()) if name != "localhost")
    suffixes = ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
    if hosts:
        spec["dnsNames"] = [f"{host}-{run}{suffix}" for host in hosts for suffix in suffixes] + ["localhost"]
    spec["commonName"] = f"{spec['commonName']}-{run}"
    spec["uris"] = [f"{uri}-{run}" for uri in spec.get("uris", ())]
    if not spec["uris"]:
        del spec["uris"]
    spec["secretTemplate"] = {"labels": dict(labels)}


def reach(objects: Iterable[Manifest], shared: Mapping[str, str], run: str) -> None:
    """Lets the fleet's callers out to shared servers of other fleets, which let them in by the callers' label."""
    if not shared:
        return
    ours = {f"{name}-{run}" for name in CALLING}
    servers = [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {_COMPONENT_LABEL: role}}} for role in sorted(shared)
    ]
    for manifest in objects:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "NetworkPolicy" and name == f"clients-{run}":
            manifest["spec"]["egress"].append({"to": servers, "ports": [{"port": GRPC_PORT}]})
        elif manifest["kind"] in ("Deployment", "Job") and name in ours:
            manifest["spec"]["template"]["metadata"]["labels"][CALLER_LABEL] = "true"


def observe(scaled_object: Manifest, run: str, namespace: str) -> None:
    """The autoscaler of a fleet looks at this fleet's figures alone."""
    for trigger in scaled_object["spec"]["triggers"]:
        if "query" in trigger["metadata"]:
            ours = rf'\1{{namespace="{namespace}", run="{run}"}}'
            trigger["metadata"]["query"] = _SERIES.sub(ours, trigger["metadata"]["query"])
