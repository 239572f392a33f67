"""What the small API server of these tests answers, a real one answers too.

Where KUBECONFIG names a cluster, or KUBEBUILDER_ASSETS the folder of a kube-apiserver and an etcd, each test also runs
against that, in a namespace that it makes and deletes.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.config
import pytest
from kubernetes import client

from lodestar.config import load_config
from lodestar.crew.cluster import stage_job
from lodestar.errors import FailedPrecondition, InvalidArgument
from lodestar.kubernetes import Namespace, cancel, render, status, submit, watch
from lodestar.kubernetes.labels import selector_of

OVERLAY = Path(__file__).parents[2] / "k8s" / "overlays" / "gpu"
SERVERS = ["small", *(["real"] if {"KUBECONFIG", "KUBEBUILDER_ASSETS"} & os.environ.keys() else [])]
KINDS = (
    *("Job", "Deployment", "StatefulSet", "NetworkPolicy", "Service", "ServiceAccount"),
    *("Role", "RoleBinding", "ConfigMap", "Lease"),
)


def real_configuration(folder: Path) -> Iterator[client.Configuration]:
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        spec = importlib.util.spec_from_file_location("real", Path(__file__).parent / "real_api_server.py")
        assert spec is not None
        assert spec.loader is not None
        real = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(real)
        with real.running(Path(assets), folder) as configuration:
            yield configuration
    else:
        configuration = client.Configuration()
        kubernetes.config.load_kube_config(client_configuration=configuration)
        yield configuration


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[client.Configuration]:
    yield from real_configuration(tmp_path_factory.mktemp("apiserver"))


@pytest.fixture(params=SERVERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    if request.param == "small":
        server: Any = request.getfixturevalue("api")
        with client.ApiClient(client.Configuration(host=server.url)) as api:
            yield Namespace(api, "lodestar")
        return
    namespace = f"lodestar-check-{uuid.uuid4().hex[:6]}"
    with client.ApiClient(request.getfixturevalue("real")) as api:
        client.CoreV1Api(api).create_namespace({"metadata": {"name": namespace}})
        try:
            yield Namespace(api, namespace)
        finally:
            client.CoreV1Api(api).delete_namespace(namespace)


@pytest.fixture
def fleet(cluster: Namespace, kustomize: object, tmp_path: Path) -> Any:
    (tmp_path / "run.yaml").write_text("name: mine\n")
    return render(load_config(tmp_path / "run.yaml"), OVERLAY, namespace=cluster.namespace)


def test_a_run_is_submitted_seen_refused_a_second_time_and_cancelled(cluster: Namespace, fleet: Any) -> None:
    submit(cluster, fleet)
    for kind in KINDS:
        assert cluster.list(kind, selector_of("mine")), kind
    assert {w.role for w in status(cluster, "mine").workloads} == {
        "policy", "against", "filtered", "previous", "reward", "reference", "rollout", "conductor", "redis",
    }  # fmt: skip
    assert not next(watch(cluster, "mine")).finished
    with pytest.raises(FailedPrecondition, match="lodestar cancel mine first"):
        submit(cluster, fleet)
    cancel(cluster, "mine")
    for kind in KINDS:
        assert not [m for m in cluster.list(kind, selector_of("mine")) if m.metadata.deletion_timestamp is None], kind


def test_a_patch_lays_a_change_over_what_is_there(cluster: Namespace, fleet: Any) -> None:
    submit(cluster, fleet)
    marks = {"lodestar.dev/task": "abc"}
    change = {"spec": {"replicas": 3, "template": {"metadata": {"annotations": marks}}}}
    cluster.patch("Deployment", "policy-mine", change)
    got = cluster.read("Deployment", "policy-mine")
    assert got is not None
    assert (got.spec.replicas, got.spec.template.metadata.annotations) == (3, marks)
    assert got.spec.template.spec.containers[0].name == "lodestar"
    cluster.patch("ConfigMap", "tasks-mine", {"data": {"policy.json": "{}"}})
    cluster.patch("ConfigMap", "tasks-mine", {"data": {"reward.json": "[]"}})
    tasks = cluster.read("ConfigMap", "tasks-mine")
    assert tasks is not None
    assert tasks.data == {"policy.json": "{}", "reward.json": "[]"}
    cancel(cluster, "mine")


def test_a_stages_job_is_made_of_its_template(cluster: Namespace, fleet: Any) -> None:
    submit(cluster, fleet)
    made = stage_job(cluster.manifest(cluster.read("Job", "learner-mine")), "mine-r2-ppo-1", "r2.ppo", "abc")
    cluster.create(made)
    job = cluster.read("Job", "mine-r2-ppo-1")
    assert job is not None
    assert job.spec.suspend is False
    assert job.spec.template.metadata.labels["lodestar.dev/stage"] == "r2.ppo"
    assert [one.metadata.name for one in cluster.list("Job", "lodestar.dev/run=mine,lodestar.dev/stage")] == [
        "mine-r2-ppo-1"
    ]
    assert [(stage.name, stage.state) for stage in status(cluster, "mine").stages] == [("r2.ppo", "running")]
    cancel(cluster, "mine")
    assert not [one for one in cluster.list("Job", "lodestar.dev/run=mine") if one.metadata.deletion_timestamp is None]


def test_a_replace_of_what_has_changed_is_a_conflict(cluster: Namespace, fleet: Any) -> None:
    submit(cluster, fleet)
    stale = cluster.read("Lease", "run-mine")
    fresh = cluster.read("Lease", "run-mine")
    assert stale is not None
    assert fresh is not None
    fresh.spec.holder_identity = "somebody"
    cluster.replace("Lease", "run-mine", fresh)
    with pytest.raises(FailedPrecondition, match="modified"):
        cluster.replace("Lease", "run-mine", stale)
    cancel(cluster, "mine")


def test_an_object_that_breaks_the_schema_is_refused(cluster: Namespace) -> None:
    for wrong, sentence in (
        ({"ports": [{"port": "many"}]}, "spec.ports.0.port"),
        ({"ports": [{}]}, "does not fit this"),
    ):
        with pytest.raises(InvalidArgument, match=sentence):
            cluster.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": wrong})


def test_what_is_not_there_is_none(cluster: Namespace) -> None:
    assert cluster.read("Job", "nothing") is None
    assert cluster.read("Issuer", "nothing") is None
    assert cluster.list("ScaledObject", selector_of("mine")) == []
    cluster.delete("Job", "nothing")
