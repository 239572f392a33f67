"""Submit, watch, read and cancel runs against an API server that speaks the real protocol."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from lodestar.config import load_config
from lodestar.config.load import parse_config
from lodestar.errors import ConfigError, FailedPrecondition, InvalidArgument, Unavailable
from lodestar.kubernetes import Fleet, Namespace, cancel, logs, render, status, submit, watch

OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"
PODS = {"lodestar.dev/run": "mine", "app.kubernetes.io/component": "learner", "lodestar.dev/stage": "ppo"}
FLEETS = ("policy", "against", "filtered", "previous", "reward", "reference", "rollout")
WORKLOADS = ("conductor", "stage", "learner", "redis", *FLEETS)


@pytest.fixture(scope="module")
def fleet(kustomize: object, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text("name: mine\nseed: 3\n")
    return render(load_config(path), OVERLAYS / "gpu", image="registry/lodestar-cuda:1")


@pytest.fixture(scope="module")
def tls_fleet(kustomize: object, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text("name: mine\n")
    return render(load_config(path), OVERLAYS / "cpu-dev-tls", namespace="team")


@pytest.fixture
def server(api: Any) -> Any:
    return api


@pytest.fixture
def cluster(server: Any) -> Iterator[Namespace]:
    configuration = client.Configuration(host=server.url)
    configuration.retries = False
    with client.ApiClient(configuration) as api:
        yield Namespace(api, "lodestar")


def pod(name: str = "mine-ppo-1-x", **status: Any) -> dict[str, Any]:
    container = {"name": "lodestar", "image": "registry/lodestar-cuda:1", "resources": {"limits": {"memory": "32Gi"}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(PODS)},
        "spec": {"initContainers": [container | {"name": "train-sft"}], "containers": [container]},
        "status": status,
    }


def container(state: dict[str, Any], last: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "containerStatuses": [
            {"name": "lodestar", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
            | {"lastState": last or {}, "containerID": "c://9"}
        ]
    }


def fleet_map(fleet: Fleet) -> dict[str, str]:
    return next(m["data"] for m in fleet.objects if m["kind"] == "ConfigMap" and "SUFFIX" in m.get("data", {}))


def conductor_pod(**status: Any) -> dict[str, Any]:
    made = pod("conductor-mine-x", **status)
    made["metadata"]["labels"] = {"lodestar.dev/run": "mine", "app.kubernetes.io/component": "conductor"}
    return made


def stage_of(server: Any, kind: str | None = None) -> None:
    """A stage's Job as the conductor makes it, as it stands: kind of its true condition."""
    conditions = [{"type": kind, "status": "True", "message": "m", "reason": "r"}] if kind else []
    template = server.objects["jobs", "learner-mine"]
    labels = template["metadata"]["labels"] | {"lodestar.dev/stage": "ppo"}
    metadata = {"name": "mine-ppo-1", "labels": labels}
    server.put("jobs", template | {"metadata": metadata, "status": {"conditions": conditions}})


def over(server: Any, kind: str = "Complete", message: str = "m") -> None:
    """The conductor's Job has ended."""
    ended = {"type": kind, "status": "True", "message": message, "reason": "r"}
    server.put("jobs", server.objects["jobs", "conductor-mine"] | {"status": {"conditions": [ended]}})


def test_a_fleet_is_named_and_labelled_by_its_run(fleet: Fleet) -> None:
    assert all(m["metadata"]["name"].endswith("-mine") for m in fleet.objects)
    assert all(m["metadata"]["labels"]["lodestar.dev/run"] == "mine" for m in fleet.objects)
    assert (fleet.conductor["kind"], fleet.conductor["metadata"]["name"]) == ("Job", "conductor-mine")
    assert not {m["kind"] for m in fleet.objects} & {"Namespace", "PersistentVolumeClaim", "Secret"}


def test_references_inside_a_fleet_point_into_it(fleet: Fleet) -> None:
    names = {(m["kind"], m["metadata"]["name"]) for m in fleet.objects}
    for manifest in fleet.objects:
        if manifest["kind"] == "RoleBinding":
            assert ("Role", manifest["roleRef"]["name"]) in names
            assert [("ServiceAccount", subject["name"]) in names for subject in manifest["subjects"]] == [True]
        for rule in manifest.get("rules", ()):
            for resource, name in ((r, n) for r in rule["resources"] for n in rule.get("resourceNames", ())):
                assert ({"deployments": "Deployment", "configmaps": "ConfigMap"}[resource], name) in names
        spec = manifest["spec"].get("template", {}).get("spec") if "spec" in manifest else None
        if spec is None:
            continue
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
    told = fleet_map(fleet)
    assert ("Service", told["REDIS_HOST"].split(":")[0]) in names
    for fleet_name in ("policy", "against", "filtered", "previous", "reward", "reference", "learner"):
        assert ("Service", fleet_name + told["SUFFIX"]) in names


def test_two_fleets_of_one_namespace_do_not_select_each_others_pods(fleet: Fleet) -> None:
    for manifest in fleet.objects:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if selector is not None and selector.get("matchLabels", selector).keys() - {"lodestar.dev/caller"}:
            assert selector.get("matchLabels", selector)["lodestar.dev/run"] == "mine", manifest["metadata"]["name"]


def test_name_servers_are_reached_from_every_fleet(fleet: Fleet) -> None:
    names = next(m for m in fleet.objects if m["metadata"]["name"] == "names-mine")
    assert names["spec"]["egress"][0]["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}


def test_shared_reward_servers_are_reached_and_not_deployed_again(kustomize: object, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: mine\n")
    fleet = render(load_config(tmp_path / "run.yaml"), OVERLAYS / "gpu", shared={"reward": "dns:///reward.other:50051"})
    assert "reward-mine" not in {m["metadata"]["name"] for m in fleet.objects}
    elsewhere = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "reward"}},
    }
    (policy,) = [m for m in fleet.objects if (m["kind"], m["metadata"]["name"]) == ("NetworkPolicy", "clients-mine")]
    assert {"to": [elsewhere], "ports": [{"port": 50051}]} in policy["spec"]["egress"]
    for name in ("learner-mine", "stage-mine", "rollout-mine"):
        (workload,) = [m for m in fleet.objects if m["kind"] in ("Job", "Deployment") and m["metadata"]["name"] == name]
        assert workload["spec"]["template"]["metadata"]["labels"]["lodestar.dev/caller"] == "true"
    assert fleet_map(fleet)["REWARD"] == "dns:///reward.other:50051"
    with pytest.raises(ConfigError, match="policy belongs to one run"):
        render(load_config(tmp_path / "run.yaml"), OVERLAYS / "gpu", shared={"policy": "dns:///policy:50051"})


def test_a_dry_run_prints_what_would_be_created(fleet: Fleet) -> None:
    assert list(yaml.safe_load_all(fleet.to_yaml())) == list(fleet.objects)


def test_submitting_creates_valid_objects_and_cancelling_removes_them(
    server: Any, cluster: Namespace, fleet: Fleet
) -> None:
    server.put("persistentvolumeclaims", {"metadata": {"name": "runs"}})
    submit(cluster, fleet)
    assert server.names("jobs") == {"conductor-mine", "stage-mine", "learner-mine"}
    assert server.names("deployments") == {f"{name}-mine" for name in FLEETS}
    for manifest in fleet.objects:
        (stored,) = [
            m
            for m in server.objects.values()
            if (m.get("kind"), m["metadata"]["name"]) == (manifest["kind"], manifest["metadata"]["name"])
        ]
        assert {key: stored[key] for key in manifest if key != "metadata"} == {
            key: value for key, value in manifest.items() if key != "metadata"
        }, "the client changed it on the way"
    lease = server.objects["leases", "run-mine"]
    assert lease["metadata"]["ownerReferences"][0]["uid"] == server.objects["jobs", "conductor-mine"]["metadata"]["uid"]
    cancel(cluster, "mine")
    assert set(server.objects) == {("persistentvolumeclaims", "runs")}
    with pytest.raises(FailedPrecondition, match="there is no run mine"):
        cancel(cluster, "mine")


def test_a_second_submission_is_refused_and_the_first_left_alone(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    before = dict(server.objects)
    with pytest.raises(FailedPrecondition, match="lodestar cancel mine first"):
        submit(cluster, fleet)
    assert server.objects == before


def test_of_two_submissions_at_once_one_gets_the_lease(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    def faster(method: str, plural: str, name: str) -> tuple[int, str] | None:
        return (409, 'leases "run-mine" already exists') if (method, plural) == ("POST", "leases") else None

    server.refuse = faster
    with pytest.raises(FailedPrecondition, match="already exists; cancel"):
        submit(cluster, fleet)
    assert not server.objects


@pytest.mark.parametrize("renewed", [{}, {"renewTime": "2026-01-01T00:00:00.000000Z"}])
def test_a_lease_whose_submission_died_is_taken_over(
    server: Any, cluster: Namespace, fleet: Fleet, renewed: dict[str, str]
) -> None:
    labels = {"lodestar.dev/run": "mine", "app.kubernetes.io/managed-by": "lodestar"}
    lease = {"metadata": {"name": "run-mine", "labels": labels}, "spec": {"holderIdentity": "gone@host"} | renewed}
    server.put("leases", lease)
    server.put("services", {"metadata": {"name": "policy-mine", "labels": labels}})
    submit(cluster, fleet)
    assert server.objects["leases", "run-mine"]["spec"]["holderIdentity"] != "gone@host"
    assert server.objects["services", "policy-mine"]["spec"]["clusterIP"] == "None", "not the dead submission's"


def test_a_submission_in_progress_is_left_alone(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    server.put("leases", {"metadata": {"name": "run-mine"}, "spec": {"holderIdentity": "her@host", "renewTime": now}})
    with pytest.raises(FailedPrecondition, match="is being submitted by her@host"):
        submit(cluster, fleet)
    assert set(server.objects) == {("leases", "run-mine")}


def test_a_stage_that_still_ends_or_is_another_deployments_is_not_joined(
    server: Any, cluster: Namespace, fleet: Fleet
) -> None:
    submit(cluster, fleet)
    server.put("pods", pod())
    cancel(cluster, "mine")
    with pytest.raises(FailedPrecondition, match="pod mine-ppo-1-x works on run mine already"):
        submit(cluster, fleet)
    ending = pod()
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    server.put("pods", ending)
    with pytest.raises(FailedPrecondition, match="ppo of run mine is still ending"):
        submit(cluster, fleet)
    server.put("pods", pod(phase="Succeeded"))
    submit(cluster, fleet)


def test_a_run_name_that_kubernetes_cannot_carry_is_refused(kustomize: object, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"name: {'n' * 47}\n")
    with pytest.raises(ConfigError, match="46 is the most"):
        render(load_config(tmp_path / "run.yaml"), OVERLAYS / "gpu")


def test_a_fleet_with_tls_has_certificates_for_its_own_names(tls_fleet: Fleet) -> None:
    certificates = {m["metadata"]["name"]: m["spec"] for m in tls_fleet.objects if m["kind"] == "Certificate"}
    assert set(certificates) == {f"{name}-mine" for name in WORKLOADS}
    assert "Issuer" not in {m["kind"] for m in tls_fleet.objects}
    assert certificates["policy-mine"]["uris"] == ["spiffe://lodestar/worker/policy-mine"]
    assert {"policy-mine", "policy-mine.team.svc.cluster.local", "localhost"} <= set(
        certificates["policy-mine"]["dnsNames"]
    )
    for host in ("policy-mine", "against-mine", "learner-mine", "redis-mine"):
        assert host in certificates[host]["dnsNames"]
    assert certificates["conductor-mine"]["uris"] == ["spiffe://lodestar/operator/conductor-mine"]
    for manifest in tls_fleet.objects:
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            volumes = manifest["spec"]["template"]["spec"]["volumes"]
            secrets = {v["secret"]["secretName"] for v in volumes if "secret" in v} - {"tokens"}
            assert secrets == {certificates[manifest["metadata"]["name"]]["secretName"]}
    assert len({spec["secretName"] for spec in certificates.values()}) == len(WORKLOADS)


def test_a_fleet_with_tls_is_submitted_and_cancelled_with_its_secrets(
    server: Any, cluster: Namespace, tls_fleet: Fleet
) -> None:
    server.installed = {"cert-manager.io"}
    server.put("issuers", {"metadata": {"name": "lodestar"}})
    server.put("secrets", {"metadata": {"name": "redis"}})
    cluster.namespace = "team"
    submit(cluster, tls_fleet)
    for name in server.names("certificates"):  # cert-manager's part
        server.put("secrets", {"metadata": {"name": server.objects["certificates", name]["spec"]["secretName"]}})
    assert server.names("secrets") == {"redis"} | {f"{name}-tls-mine" for name in WORKLOADS}
    cancel(cluster, "mine")
    assert set(server.objects) == {("issuers", "lodestar"), ("secrets", "redis")}


@pytest.mark.parametrize("installed", [set(), {"cert-manager.io"}])
def test_a_namespace_without_an_authority_is_said_to_have_none(
    server: Any, cluster: Namespace, tls_fleet: Fleet, installed: set[str]
) -> None:
    server.installed = installed
    with pytest.raises(FailedPrecondition, match=r"no Issuer lodestar.*k8s/components/tls/authority\.yaml"):
        submit(cluster, tls_fleet)
    assert not server.objects


def test_an_autoscaler_is_of_its_fleet(kustomize: Any, tmp_path: Path, server: Any, cluster: Namespace) -> None:
    (tmp_path / "run.yaml").write_text("name: mine\n")
    parts = [os.path.relpath(OVERLAYS / "cpu-dev", tmp_path.resolve())]
    components = [os.path.relpath(OVERLAYS.parent / "components" / "keda", tmp_path.resolve())]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": parts, "components": components}))
    fleet = render(load_config(tmp_path / "run.yaml"), tmp_path)
    scaler = next(m for m in fleet.objects if m["kind"] == "ScaledObject")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "rollout-mine"
    assert scaler["spec"]["triggers"][0]["metadata"]["query"] == (
        'max(lodestar_queue_waiting{namespace="lodestar", run="mine"})'
    )
    server.installed = {"keda.sh"}
    submit(cluster, fleet)
    cancel(cluster, "mine")
    assert not server.objects


def test_the_role_for_submitters_permits_what_is_asked_and_no_more(
    server: Any, cluster: Namespace, tls_fleet: Fleet
) -> None:
    server.installed = {"cert-manager.io", "keda.sh"}
    server.put("issuers", {"metadata": {"name": "lodestar"}})
    submit(cluster, tls_fleet)
    stage_of(server)
    server.put("pods", pod(**container({"running": {}})))
    list(logs(cluster, "mine"))
    server.put("pods", pod(phase="Pending"))
    seen = watch(cluster, "mine")
    next(seen)
    server.put("pods", pod(conditions=[UNSCHEDULABLE]))
    next(seen)
    with pytest.raises(FailedPrecondition):
        submit(cluster, tls_fleet)
    cancel(cluster, "mine")
    server.put("pods", pod(phase="Succeeded"))
    server.put("leases", {"metadata": {"name": "run-mine"}, "spec": {"holderIdentity": "gone@host"}})
    submit(cluster, tls_fleet)
    (role,) = yaml.safe_load_all((OVERLAYS.parent / "submitter.yaml").read_text())
    permitted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    # The API server above sees neither a ScaledObject's creation nor kubectl port-forward.
    unseen = {("keda.sh", "scaledobjects", "create"), ("keda.sh", "scaledobjects", "delete")}
    unseen |= {("", "pods/portforward", "create"), ("", "pods", "get")}
    # Nobody gives away a right that he has not: the conductor's.
    (conductor,) = [m for m in tls_fleet.objects if m["kind"] == "Role"]
    given = {
        (group, resource, verb)
        for rule in conductor["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert given <= permitted
    assert permitted - unseen - given == server.rights - unseen - given


def test_a_submission_that_fails_half_way_leaves_nothing(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    quota = 'jobs.batch "conductor-mine" is forbidden: exceeded quota: gpus'
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
    server: Any, cluster: Namespace, fleet: Fleet, answer: tuple[int, str], error: type[Exception], sentence: str
) -> None:
    server.refuse = lambda method, plural, name: answer if method == "POST" else None
    with pytest.raises(error, match=sentence):
        submit(cluster, fleet)


def test_a_cluster_that_is_away_is_said_to_be(fleet: Fleet) -> None:
    configuration = client.Configuration(host="http://127.0.0.1:1")
    configuration.retries = False
    with client.ApiClient(configuration) as api, pytest.raises(Unavailable, match="cannot be reached"):
        submit(Namespace(api, "lodestar"), fleet)


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
}
NO_VOLUME = UNSCHEDULABLE | {"message": 'persistentvolumeclaim "runs" not found'}
CRASHING = {"waiting": {"reason": "CrashLoopBackOff"}}
NO_SECRET = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "redis" not found'}}
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"conditions": [UNSCHEDULABLE]}, "no node has a free GPU"),
        ({"conditions": [NO_VOLUME]}, "kubectl apply -f k8s/base/runs-volume.yaml"),
        (container({"terminated": {"reason": "Error", "exitCode": 3}}), "ended with exit status 3"),
        (
            container({"terminated": {"reason": "Error", "exitCode": 2, "message": "a\nerror: ppo.clip: is 9\n"}}),
            "ended with exit status 2: ppo.clip: is 9",
        ),
        (container(NO_IMAGE), "image registry/lodestar-cuda:1 cannot be pulled"),
        (container(NO_SECRET), 'secret "redis" not found); create what is missing'),
        (container(CRASHING, {"terminated": {"reason": "OOMKilled", "exitCode": 137}}), "out of memory (limit 32Gi)"),
        (container(CRASHING, {"terminated": {"reason": "Error", "exitCode": 2}}), "keeps ending with exit status 2"),
    ],
)
def test_status_says_why_pods_do_not_run(
    server: Any, cluster: Namespace, fleet: Fleet, state: dict[str, Any], sentence: str
) -> None:
    submit(cluster, fleet)
    stage_of(server)
    server.put("pods", pod(**state))
    (working,) = [w for w in status(cluster, "mine").workloads if w.role == "ppo"]
    (problem,) = working.problems
    assert problem.startswith("mine-ppo-1-x: ")
    assert sentence in problem


QUOTA = 'pods "policy-mine-1" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'


def event(name: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.1"},
        "involvedObject": {"name": name},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }


def test_status_says_why_there_are_no_pods(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}
    deployment = server.objects["deployments", "policy-mine"]
    wanted = deployment["spec"] | {"replicas": 1}
    server.put("deployments", deployment | {"spec": wanted, "status": {"conditions": [refused]}})
    violation = 'pods "conductor-mine-x" is forbidden: violates PodSecurity "restricted:latest"'
    server.put("events", event("conductor-mine", "FailedCreate", violation))
    problems = {w.role: w.problems for w in status(cluster, "mine").workloads}
    assert "exceeded quota: gpus" in problems["policy"][0]
    assert "ask for more quota" in problems["policy"][0]
    assert "this namespace's standard forbids" in problems["conductor"][0]
    assert problems["reward"] == ()


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            'MountVolume.SetUp failed for volume "tls": secret "learner-tls-mine" not found',
            "is it there, and cert-manager",
        ),
        ("Unable to attach: Multi-Attach error for volume", "it must be ReadWriteMany"),
    ],
)
def test_status_says_what_a_pod_waits_to_mount(
    server: Any, cluster: Namespace, fleet: Fleet, message: str, sentence: str
) -> None:
    submit(cluster, fleet)
    stage_of(server)
    server.put("pods", pod(phase="Pending", **container({"waiting": {"reason": "ContainerCreating"}})))
    server.put("events", event("mine-ppo-1-x", "FailedMount", message))
    (working,) = [w for w in status(cluster, "mine").workloads if w.role == "ppo"]
    assert sentence in working.problems[0]


def test_failed_pods_are_forgotten_once_a_successor_runs(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    stage_of(server)
    server.put("pods", pod(phase="Failed", **container({"terminated": {"reason": "Error", "exitCode": 1}})))
    (working,) = [w for w in status(cluster, "mine").workloads if w.role == "ppo"]
    assert "exit status 1" in working.problems[0]
    server.put("pods", pod("mine-ppo-1-y", phase="Running", **container({"running": {}})))
    (working,) = [w for w in status(cluster, "mine").workloads if w.role == "ppo"]
    assert working.problems == ()


def test_a_watch_ends_with_the_job_although_no_pod_changes_any_more(
    server: Any, cluster: Namespace, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lodestar.kubernetes.namespace.RESYNC_SECONDS", 1)
    submit(cluster, fleet)
    server.put("pods", pod(phase="Succeeded"))
    seen = watch(cluster, "mine")
    assert not next(seen).finished
    over(server)
    assert next(seen).finished
    assert list(seen) == []


def test_a_dropped_watch_goes_on_where_it_was(
    server: Any, cluster: Namespace, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lodestar.kubernetes.namespace._RETRY_SECONDS", 0.0)
    submit(cluster, fleet)
    stage_of(server)
    server.drop_watches = 1
    seen = watch(cluster, "mine")
    assert next(seen).workloads
    server.put("pods", pod(conditions=[UNSCHEDULABLE]))
    assert "free GPU" in str(next(seen))
    cut_at = server.version
    server.put("pods", pod(**container(NO_IMAGE)))
    assert "cannot be pulled" in str(next(seen))
    server.put("pods", pod(**container(CRASHING, {"terminated": {"reason": "Error", "exitCode": 2}})))
    assert "exit status 2" in str(next(seen))
    assert server.watches[-1] == str(cut_at)


def test_a_watch_whose_place_is_forgotten_starts_again(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    stage_of(server)
    server.put("pods", pod(conditions=[UNSCHEDULABLE]))
    seen = watch(cluster, "mine")
    assert "free GPU" in str(next(seen))
    over(server)
    server.forgotten_below = server.version
    assert next(seen).finished
    assert list(seen) == []


def test_logs_are_of_what_runs_now(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    with pytest.raises(FailedPrecondition, match="no pod of its own"):
        list(logs(cluster, "mine"))
    server.put("pods", conductor_pod(phase="Running", **container({"waiting": {"reason": "PodInitializing"}})))
    with pytest.raises(FailedPrecondition, match="conductor-mine-x has no log yet"):
        list(logs(cluster, "mine"))
    server.put("pods", pod(phase="Running", **container({"running": {}})))
    assert list(logs(cluster, "mine")) == ["one", "two"]
    assert server.logs_read[-1] == "mine-ppo-1-x"


def test_logs_are_of_the_stage_or_fleet_that_is_named(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    server.put("pods", conductor_pod(phase="Running", **container({"running": {}})))
    server.put("pods", pod(phase="Succeeded", **container({"terminated": {"exitCode": 0}})))
    for what, read in (("ppo", "mine-ppo-1-x"), ("conductor", "conductor-mine-x"), ("", "conductor-mine-x")):
        assert list(logs(cluster, "mine", what)) == ["one", "two"]
        assert server.logs_read[-1] == read
    with pytest.raises(FailedPrecondition, match="no pod of sft"):
        list(logs(cluster, "mine", "sft"))


def test_followed_logs_go_on_with_the_next_stage_until_the_run_ends(
    server: Any, cluster: Namespace, fleet: Fleet
) -> None:
    submit(cluster, fleet)
    first = pod("mine-sft-1-x", phase="Running", **container({"running": {}}))
    first["metadata"]["labels"]["lodestar.dev/stage"] = "sft"
    first["status"]["containerStatuses"][0]["containerID"] = "c://1"
    server.put("pods", first)
    lines = logs(cluster, "mine", follow=True)
    assert [next(lines), next(lines)] == ["one", "two"]
    server.log_lines = ["three"]
    server.put("pods", first | {"status": first["status"] | {"phase": "Succeeded"}})
    server.put("pods", pod(phase="Running", **container({"running": {}})))
    assert next(lines) == "three"
    over(server)
    server.put("pods", pod(phase="Succeeded", **container({"terminated": {"exitCode": 0}})))
    assert list(lines) == []


def test_followed_logs_of_a_stage_end_with_it(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    stage_of(server)
    server.put("pods", pod(phase="Running", **container({"running": {}})))
    lines = logs(cluster, "mine", "ppo", follow=True)
    assert [next(lines), next(lines)] == ["one", "two"]
    stage_of(server, "Complete")
    assert list(lines) == []


def test_a_run_that_failed_is_said_to_in_its_conductors_words(server: Any, cluster: Namespace, fleet: Fleet) -> None:
    submit(cluster, fleet)
    stage_of(server, "Failed")
    ended = {"terminated": {"exitCode": 3, "message": "12:00 INFO x\nerror: ppo: the loss is NaN\n"}}
    server.put("pods", conductor_pod(phase="Failed", **container(ended)))
    over(server, "Failed", "Container lodestar failed with exit code 3")
    got = status(cluster, "mine")
    assert (got.failed, got.finished) == ("ppo: the loss is NaN", False)
    assert [(stage.name, stage.state) for stage in got.stages] == [("ppo", "failed")]


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"model": {"path": "./here"}}, r"model\.path: \./here is a path of this machine.*pods see /lodestar/runs"),
        ({"model": {"path": "/data/model"}}, r"model\.path: /data/model is a path of this machine"),
        ({"given": {"prompts": "/data/p"}}, r"given\.prompts: /data/p is a path of this machine"),
        ({"data": {"kind": "hh", "root": "/data/hh"}}, r"stages\.data\.root: /data/hh is a path of this machine"),
        ({"queue": {"url": "redis://here"}}, r"services\.queue\.url: is said by the overlay"),
        ({"stages": {"ppo": {}}}, r"stages\.ppo\.policy: nothing before it makes model"),
        ({"stages": {"data": {}, "sft": {}, "evaluate": {"judge": "reward"}}}, r"nothing before it makes reward_model"),
        ({"stages": {"data": {}, "sft-": {"kind": "sft"}}}, r"stages\.sft-: ends in a sign that no label"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_anything(
    kustomize: object, tree: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        render(parse_config({"name": "mine", **tree}), OVERLAYS / "gpu")


def test_paths_of_the_runs_volume_are_paths_of_every_pod(kustomize: object) -> None:
    tree = {"name": "mine", "model": {"path": "/lodestar/runs/other/ppo/policy"}, "sft": None}
    assert render(parse_config(tree), OVERLAYS / "gpu").run == "mine"


def test_an_overlay_without_a_fleet_that_a_stage_calls_is_refused(kustomize: object, tmp_path: Path) -> None:
    parts = [os.path.relpath(OVERLAYS / "cpu-dev", tmp_path.resolve())]
    patch = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: against}\n$patch: delete\n"
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": parts, "patches": [{"patch": patch}]}))
    with pytest.raises(ConfigError, match=r"stages\.evaluate: needs a Deployment against, and .* has none"):
        render(parse_config({"name": "mine"}), tmp_path)
