"""Submit, watch, read and cancel runs against an API server that speaks the real protocol."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from lodestar.config import load_config
from lodestar.errors import ConfigError, FailedPrecondition, InvalidArgument, Unavailable
from lodestar.kubernetes import Cluster, Fleet, cancel, logs, render, status, submit, watch

OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"
PODS = {"lodestar.dev/run": "mine", "app.kubernetes.io/component": "learner"}

_spec = importlib.util.spec_from_file_location("api_server", Path(__file__).parent / "api_server.py")
assert _spec is not None
assert _spec.loader is not None
api_server = importlib.util.module_from_spec(_spec)
sys.modules["api_server"] = api_server
_spec.loader.exec_module(api_server)


@pytest.fixture(scope="module")
def fleet(kustomize: object, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text("name: mine\nseed: 3\n")
    return render(load_config(path), OVERLAYS / "gpu", image="registry/lodestar-cuda:1")


@pytest.fixture
def server() -> Iterator[Any]:
    with api_server.ApiServer() as running:
        yield running


@pytest.fixture
def cluster(server: Any) -> Iterator[Cluster]:
    configuration = client.Configuration(host=server.url)
    configuration.retries = False
    with client.ApiClient(configuration) as api:
        yield Cluster(api, "lodestar")


def pod(name: str = "learner-mine-x", **status: Any) -> dict[str, Any]:
    container = {"name": "lodestar", "image": "registry/lodestar-cuda:1", "resources": {"limits": {"memory": "32Gi"}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(PODS)},
        "spec": {"containers": [container]},
        "status": status,
    }


def container(state: dict[str, Any], last: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "containerStatuses": [
            {"name": "lodestar", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
            | {"lastState": last or {}}
        ]
    }


def test_a_fleet_is_named_and_labelled_by_its_run(fleet: Fleet) -> None:
    assert all(m["metadata"]["name"].endswith("-mine") for m in fleet.objects)
    assert all(m["metadata"]["labels"]["lodestar.dev/run"] == "mine" for m in fleet.objects)
    assert fleet.learner["kind"] == "Job"
    assert not {m["kind"] for m in fleet.objects} & {"Namespace", "PersistentVolumeClaim", "Secret"}


def test_references_inside_a_fleet_point_into_it(fleet: Fleet) -> None:
    names = {(m["kind"], m["metadata"]["name"]) for m in fleet.objects}
    for manifest in fleet.objects:
        spec = manifest["spec"].get("template", {}).get("spec") if "spec" in manifest else None
        if spec is None:
            continue
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
    fleet_map = next(m["data"] for m in fleet.objects if m["kind"] == "ConfigMap" and "POLICY" in m["data"])
    for key, target in fleet_map.items():
        if ":" in target:
            assert ("Service", target.removeprefix("dns:///").split(":")[0]) in names, key
    assert fleet_map["RUN"] == "mine"


def test_two_fleets_of_one_namespace_do_not_select_each_others_pods(fleet: Fleet) -> None:
    for manifest in fleet.objects:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if selector is not None and selector.get("matchLabels", selector).keys() - {"lodestar.dev/caller"}:
            assert selector.get("matchLabels", selector)["lodestar.dev/run"] == "mine", manifest["metadata"]["name"]


def test_name_servers_are_reached_from_every_fleet(fleet: Fleet) -> None:
    names = next(m for m in fleet.objects if m["metadata"]["name"] == "names-mine")
    assert names["spec"]["egress"][0]["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}


def test_shared_reward_servers_are_not_deployed_again(kustomize: object, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: mine\n")
    fleet = render(load_config(tmp_path / "run.yaml"), OVERLAYS / "gpu", shared={"reward": "dns:///reward.other:50051"})
    assert "reward-mine" not in {m["metadata"]["name"] for m in fleet.objects}
    fleet_map = next(m["data"] for m in fleet.objects if m["kind"] == "ConfigMap" and "POLICY" in m["data"])
    assert fleet_map["REWARD"] == "dns:///reward.other:50051"
    with pytest.raises(ConfigError, match="policy belongs to one run"):
        render(load_config(tmp_path / "run.yaml"), OVERLAYS / "gpu", shared={"policy": "dns:///policy:50051"})


def test_a_dry_run_prints_what_would_be_created(fleet: Fleet) -> None:
    assert list(yaml.safe_load_all(fleet.to_yaml())) == list(fleet.objects)


def test_submitting_creates_valid_objects_and_cancelling_removes_them(
    server: Any, cluster: Cluster, fleet: Fleet
) -> None:
    server.put("persistentvolumeclaims", {"metadata": {"name": "runs"}})
    submit(cluster, fleet)
    assert server.names("jobs") == {"learner-mine"}
    assert server.names("deployments") == {f"{role}-mine" for role in ("policy", "reward", "reference", "rollout")}
    lease = server.objects["leases", "run-mine"]
    assert lease["metadata"]["ownerReferences"][0]["uid"] == server.objects["jobs", "learner-mine"]["metadata"]["uid"]
    cancel(cluster, "mine")
    assert set(server.objects) == {("persistentvolumeclaims", "runs")}
    with pytest.raises(FailedPrecondition, match="there is no run mine"):
        cancel(cluster, "mine")


def test_a_second_learner_is_refused_and_the_first_left_alone(server: Any, cluster: Cluster, fleet: Fleet) -> None:
    submit(cluster, fleet)
    before = dict(server.objects)
    with pytest.raises(FailedPrecondition, match="lodestar cancel mine first"):
        submit(cluster, fleet)
    assert server.objects == before


def test_of_two_submissions_at_once_one_gets_the_lease(server: Any, cluster: Cluster, fleet: Fleet) -> None:
    def faster(method: str, plural: str, name: str) -> tuple[int, str] | None:
        return (409, 'leases "run-mine" already exists') if (method, plural) == ("POST", "leases") else None

    server.refuse = faster
    with pytest.raises(FailedPrecondition, match="already exists; cancel"):
        submit(cluster, fleet)
    assert not server.objects


def test_a_lease_whose_submission_died_is_taken_over(server: Any, cluster: Cluster, fleet: Fleet) -> None:
    labels = {"lodestar.dev/run": "mine", "app.kubernetes.io/managed-by": "lodestar"}
    server.put("leases", {"metadata": {"name": "run-mine", "labels": labels}, "spec": {"holderIdentity": "gone@host"}})
    submit(cluster, fleet)
    assert server.objects["leases", "run-mine"]["spec"]["holderIdentity"] != "gone@host"


def test_a_submission_that_fails_half_way_leaves_nothing(server: Any, cluster: Cluster, fleet: Fleet) -> None:
    quota = 'jobs.batch "learner-mine" is forbidden: exceeded quota: gpus'
    server.refuse = lambda method, plural, name: (403, quota) if (method, plural) == ("POST", "jobs") else None
    with pytest.raises(FailedPrecondition, match="ask for more quota"):
        submit(cluster, fleet)
    assert not server.objects


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        ((401, "Unauthorized"), FailedPrecondition, "log in again"),
        ((403, "leases is forbidden: User cannot create"), FailedPrecondition, "ask the cluster's administrator"),
        ((404, 'namespaces "lodestar" not found'), FailedPrecondition, "is the namespace the one"),
        ((422, "is invalid"), InvalidArgument, "does not fit this cluster"),
        ((500, "etcd is away"), Unavailable, "try again"),
    ],
)
def test_refusals_say_what_to_do(
    server: Any, cluster: Cluster, fleet: Fleet, answer: tuple[int, str], error: type[Exception], sentence: str
) -> None:
    server.refuse = lambda method, plural, name: answer if method == "POST" else None
    with pytest.raises(error, match=sentence):
        submit(cluster, fleet)


def test_a_cluster_that_is_away_is_said_to_be(fleet: Fleet) -> None:
    configuration = client.Configuration(host="http://127.0.0.1:1")
    configuration.retries = False
    with client.ApiClient(configuration) as api, pytest.raises(Unavailable, match="cannot be reached"):
        submit(Cluster(api, "lodestar"), fleet)


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
}
CRASHING = {"waiting": {"reason": "CrashLoopBackOff"}}
NO_SECRET = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "redis" not found'}}
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"conditions": [UNSCHEDULABLE]}, "no node has a free GPU"),
        (container(NO_IMAGE), "image registry/lodestar-cuda:1 cannot be pulled"),
        (container(NO_SECRET), 'secret "redis" not found); create what is missing'),
        (container(CRASHING, {"terminated": {"reason": "OOMKilled", "exitCode": 137}}), "out of memory (limit 32Gi)"),
        (container(CRASHING, {"terminated": {"reason": "Error", "exitCode": 2}}), "keeps ending with exit status 2"),
    ],
)
def test_status_says_why_pods_do_not_run(
    server: Any, cluster: Cluster, fleet: Fleet, state: dict[str, Any], sentence: str
) -> None:
    submit(cluster, fleet)
    server.put("pods", pod(**state))
    (learner,) = [w for w in status(cluster, "mine").workloads if w.role == "learner"]
    (problem,) = learner.problems
    assert problem.startswith("learner-mine-x: ")
    assert sentence in problem


def test_a_dropped_watch_goes_on_where_it_was(
    server: Any, cluster: Cluster, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lodestar.kubernetes.cluster._RETRY_SECONDS", 0.0)
    submit(cluster, fleet)
    server.drop_watches = 1
    seen = watch(cluster, "mine")
    assert next(seen).workloads
    server.put("pods", pod(conditions=[UNSCHEDULABLE]))
    assert "free GPU" in str(next(seen))
    cut_at = server.version
    server.put("pods", pod(**container(NO_IMAGE)))
    assert "cannot be pulled" in str(next(seen))
    assert server.watches[-1] == str(cut_at)


def test_a_watch_whose_place_is_forgotten_starts_again(server: Any, cluster: Cluster, fleet: Fleet) -> None:
    submit(cluster, fleet)
    server.put("pods", pod(conditions=[UNSCHEDULABLE]))
    seen = watch(cluster, "mine")
    assert "free GPU" in str(next(seen))
    job = server.objects["jobs", "learner-mine"]
    server.put("jobs", job | {"status": {"succeeded": 1}})
    server.forgotten_below = server.version
    assert next(seen).finished
    assert list(seen) == []


def test_logs_are_of_the_container_that_runs(server: Any, cluster: Cluster, fleet: Fleet) -> None:
    submit(cluster, fleet)
    with pytest.raises(FailedPrecondition, match="no pod of learner"):
        list(logs(cluster, "mine"))
    server.put("pods", pod(**container({"waiting": {"reason": "PodInitializing"}})))
    with pytest.raises(FailedPrecondition, match="has no log yet"):
        list(logs(cluster, "mine"))
    server.put("pods", pod(**container({"running": {}})))
    assert list(logs(cluster, "mine", follow=True)) == ["one", "two"]
