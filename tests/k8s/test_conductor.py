"""A whole run on a cluster: the conductor against an API server, with pods that are ready and stages that work."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubelet import Kubelet, write_outputs
from kubernetes import client

from lodestar.cli.serve import told as told_by
from lodestar.config import RunConfig, load_config
from lodestar.config.load import parse_config
from lodestar.config.serve import Listening
from lodestar.crew import local
from lodestar.crew.cluster import Site
from lodestar.crew.local import Local
from lodestar.crew.there import run_there
from lodestar.errors import ConfigError, DataError, FailedPrecondition, NonFinite, RunPaused
from lodestar.kubernetes.namespace import Namespace
from lodestar.local.board import Board, StageRow
from lodestar.local.ports import free_ports
from lodestar.local.signals import Interrupted
from lodestar.recipe.conduct import conduct
from lodestar.recipe.plan import Plan, plan
from lodestar.recipe.stage import registry
from lodestar.recipe.store import Store

ROOT = Path(__file__).parents[2]
Manifest = dict[str, Any]
PORT, METRICS = free_ports(2)
SITE = Site(Listening(port=PORT, metrics_port=METRICS, weights_port=50052, linger_seconds=0))
PLURALS = {"Deployment": "deployments", "Job": "jobs", "ConfigMap": "configmaps"}


@pytest.fixture
def deployed(api: Any, render: Callable[[str], list[Manifest]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An API server with what the overlay cpu-dev deploys, of the run `mine`."""
    monkeypatch.setattr("lodestar.crew.cluster.POLL_SECONDS", 0.01)
    for manifest in json.loads(
        json.dumps(render("cpu-dev")).replace('"lodestar.dev/run": "dev"', '"lodestar.dev/run": "mine"')
    ):
        if manifest["kind"] in PLURALS:
            api.put(PLURALS[manifest["kind"]], manifest | {"status": {}})
    return api


@pytest.fixture
def namespace(deployed: Any) -> Iterator[Namespace]:
    configuration = client.Configuration(host=deployed.url)
    configuration.retries = False
    with client.ApiClient(configuration) as connection:
        yield Namespace(connection, "lodestar")


def run_of(tmp_path: Path, **tree: Any) -> RunConfig:
    return parse_config({"name": "mine", "runs_dir": str(tmp_path), **tree})


def conducted(run: RunConfig, api: Namespace) -> Path:
    return run_there(run, plan(run), api, SITE)


def replicas(api: Any) -> dict[str, int]:
    return {name: found["spec"]["replicas"] for (kind, name), found in api.objects.items() if kind == "deployments"}


def test_every_stage_of_the_plan_runs_and_evaluation_and_report_are_among_them(
    deployed: Any, namespace: Namespace, tmp_path: Path, render: Callable[[str], list[Manifest]]
) -> None:
    run = run_of(tmp_path, pretrain={"epochs": 2.0})
    with Kubelet(deployed) as kubelet:
        root = conducted(run, namespace)
    assert [name for name, _, _ in kubelet.history] == [
        "data",
        "pretrain",
        "sft",
        "reward",
        "filtered",
        "ppo",
        "evaluate",
        "report",
    ]
    for step in plan(run).steps:
        assert (root / step.name / "seal.json").exists(), step.name
    assert {name: set(served) for name, _, served in kubelet.history} == {
        "data": set(), "pretrain": set(), "sft": set(), "reward": set(), "report": set(),
        "filtered": {"reward"},
        "ppo": {"policy", "reward", "reference", "rollout"},
        "evaluate": {"policy", "against", "reference", "filtered", "reward"},
    }  # fmt: skip
    assert set(replicas(deployed).values()) == {0}, "nothing is left that holds a GPU"
    (role,) = [m for m in render("cpu-dev") if m["kind"] == "Role"]
    permitted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert permitted - {("batch", "jobs", "delete")} == deployed.rights


def test_the_fleets_serve_what_the_plan_says(deployed: Any, namespace: Namespace, tmp_path: Path) -> None:
    with Kubelet(deployed) as kubelet:
        root = conducted(run_of(tmp_path), namespace)
    served = {name: tasks for name, _, tasks in kubelet.history}
    assert served["ppo"]["policy"]["model"] == str(root / "sft" / "policy")
    assert served["ppo"]["policy"]["endpoints"]["weights"] == "dns:///learner:50052"
    assert served["evaluate"]["policy"]["model"] == str(root / "ppo" / "policy")
    assert served["evaluate"]["policy"]["endpoints"]["weights"] is None
    assert served["evaluate"]["against"]["model"] == str(root / "sft" / "policy")
    assert served["ppo"]["rollout"]["endpoints"]["policy"] == [f"dns:///policy:{PORT}"]
    argument = next(argument for name, argument, _ in kubelet.history if name == "ppo")
    assert argument["endpoints"]["redis"] is None, "its password would stand in a ConfigMap"
    assert argument["listening"]["weights_port"] == 50052


def test_a_fleet_whose_task_is_the_same_goes_on_between_stages(
    deployed: Any, namespace: Namespace, tmp_path: Path
) -> None:
    pods: dict[str, set[str]] = {}

    def do(argument: Manifest) -> int:
        pods[argument["step"]] = {name for name in deployed.names("pods") if name.startswith(("reward-", "policy-"))}
        return write_outputs(argument)

    with Kubelet(deployed, do):
        conducted(run_of(tmp_path), namespace)
    kept = pods["ppo"] & pods["evaluate"]
    assert {name.partition("-")[0] for name in kept} == {"reward"}
    assert len(pods["ppo"]) == len(pods["evaluate"]) == 2


def test_a_model_that_is_made_anew_where_it_lay_is_served_anew(
    deployed: Any, namespace: Namespace, tmp_path: Path
) -> None:
    run = run_of(tmp_path)
    text = ["first"]

    def do(argument: Manifest) -> int:
        write_outputs(argument)
        if argument["step"] == "reward":
            Path(argument["root"], "reward/unfinished/reward/made").write_text(text[0])
        return 0

    with Kubelet(deployed, do) as kubelet:
        root = conducted(run, namespace)
        before = deployed.objects["deployments", "reward"]["spec"]["template"]["metadata"]["annotations"]
        store = Store(root, run)
        for name in (made := ("reward", "filtered", "ppo", "evaluate", "report")):
            store.clear(plan(run).step(name))
        text[0] = "second"
        conducted(run, namespace)
    after = deployed.objects["deployments", "reward"]["spec"]["template"]["metadata"]["annotations"]
    assert before["lodestar.dev/task"] == after["lodestar.dev/task"]
    assert before["lodestar.dev/took"] != after["lodestar.dev/took"]
    assert [name for name, _, _ in kubelet.history][7:] == list(made)


def test_replicas_that_somebody_sets_back_are_set_again(deployed: Any, namespace: Namespace, tmp_path: Path) -> None:
    looked = [0]

    def do(argument: Manifest) -> int:
        if argument["step"] != "ppo" or looked[0] > 2:
            return write_outputs(argument)
        looked[0] += replicas(deployed)["policy"]
        if looked[0] == 1:
            with deployed.changed:
                found = deployed.objects["deployments", "policy"]
                deployed.put("deployments", found | {"spec": found["spec"] | {"replicas": 0}})
        return -1

    with Kubelet(deployed, do):
        conducted(run_of(tmp_path, services={"policy": {"replicas": 1}}), namespace)
    assert looked[0] > 2


def test_an_autoscalers_replicas_are_left_alone(deployed: Any, namespace: Namespace, tmp_path: Path) -> None:
    found = deployed.objects["deployments", "rollout"]
    meta = found["metadata"] | {"annotations": {"lodestar.dev/scaled-by": "keda"}}
    deployed.put("deployments", found | {"metadata": meta, "spec": found["spec"] | {"replicas": 3}})
    with Kubelet(deployed) as kubelet:
        kubelet._served = lambda job: {}  # type: ignore[method-assign]  # pods that wait for their first task
        conducted(run_of(tmp_path), namespace)
    assert replicas(deployed)["rollout"] == 3
    assert (
        "lodestar.dev/task" in deployed.objects["deployments", "rollout"]["spec"]["template"]["metadata"]["annotations"]
    )


def test_a_conductor_that_comes_after_another_takes_its_job_over(
    deployed: Any, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = [True]

    def do(argument: Manifest) -> int:
        return -1 if going[0] and argument["step"] == "ppo" else write_outputs(argument)

    def killed(seconds: float) -> None:
        if any("ppo" in name for name in deployed.names("jobs")):
            raise Interrupted(15)

    with Kubelet(deployed, do) as kubelet:
        with monkeypatch.context() as patched:
            patched.setattr("lodestar.crew.cluster.time.sleep", killed)
            with pytest.raises(Interrupted):
                conducted(run_of(tmp_path), namespace)
        assert replicas(deployed)["policy"] == 1, "what it began goes on"
        jobs, pods = deployed.names("jobs"), {name for name in deployed.names("pods") if name.startswith("policy")}
        going[0] = False
        conducted(run_of(tmp_path), namespace)
    assert [name for name, _, _ in kubelet.history].count("ppo") == 1
    assert {name for name in jobs if "ppo" in name} == {name for name in deployed.names("jobs") if "ppo" in name}
    assert pods


def test_a_job_that_nobody_waits_for_any_more_is_ended_first(
    deployed: Any, namespace: Namespace, tmp_path: Path
) -> None:
    stale = {"name": "mine-sft-0000", "labels": {"lodestar.dev/run": "mine", "lodestar.dev/stage": "sft"}}
    template = json.loads(json.dumps(deployed.objects["jobs", "stage"]["spec"]["template"]))
    template["metadata"] = {"labels": stale["labels"], "annotations": {"lodestar.dev/task": "old"}}
    with Kubelet(deployed) as kubelet:
        kubelet.api.put("jobs", {"metadata": stale, "spec": {"suspend": True, "template": template}, "status": {}})
        conducted(run_of(tmp_path), namespace)
    assert "mine-sft-0000" not in deployed.names("jobs")
    assert ("batch", "jobs", "delete") in deployed.rights


@pytest.mark.parametrize(("code", "error"), [(2, FailedPrecondition), (3, NonFinite), (4, RunPaused), (1, RunPaused)])
def test_a_stage_that_fails_ends_the_run_with_its_sentence(
    deployed: Any, namespace: Namespace, tmp_path: Path, code: int, error: type[Exception]
) -> None:
    with Kubelet(deployed, lambda argument: code if argument["step"] == "ppo" else write_outputs(argument)) as kubelet:
        kubelet.said = "a line\nerror: services.reward: no such thing\n"
        with pytest.raises(error, match=r"ppo.*services\.reward: no such thing"):
            conducted(run_of(tmp_path), namespace)
    assert set(replicas(deployed).values()) == {0}


def test_a_failed_stage_goes_on_in_a_new_job_when_the_run_is_submitted_again(
    deployed: Any, namespace: Namespace, tmp_path: Path
) -> None:
    codes = [3]
    with Kubelet(deployed, lambda argument: codes.pop() if codes else write_outputs(argument)) as kubelet:
        with pytest.raises(NonFinite):
            conducted(run_of(tmp_path), namespace)
        conducted(run_of(tmp_path), namespace)
    assert [name for name, _, _ in kubelet.history][:3] == ["data", "data", "sft"]


def test_a_job_that_is_deleted_ends_the_run(deployed: Any, namespace: Namespace, tmp_path: Path) -> None:
    def do(argument: Manifest) -> int:
        with deployed.changed:
            for name in deployed.names("jobs"):
                if name.startswith("mine-data"):
                    del deployed.objects["jobs", name]
        return -1

    with Kubelet(deployed, do), pytest.raises(FailedPrecondition, match=r"data: Job mine-data-\w+ was deleted"):
        conducted(run_of(tmp_path), namespace)


def test_an_api_server_that_is_away_for_a_while_is_waited_for(
    deployed: Any, namespace: Namespace, tmp_path: Path
) -> None:
    calls = [0]

    def away(method: str, plural: str, name: str) -> tuple[int, str] | None:
        calls[0] += 1
        return (503, "etcd is away") if calls[0] % 50 > 40 else None

    deployed.refuse = away
    with Kubelet(deployed) as kubelet:
        conducted(run_of(tmp_path), namespace)
    assert len(kubelet.history) == len(plan(run_of(tmp_path)).steps)


def test_labels_of_another_run_are_refused(deployed: Any, namespace: Namespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labelled lodestar\.dev/run: mine"):
        conducted(run_of(tmp_path, name="other"), namespace)


def test_a_run_without_sft_starts_from_its_model(deployed: Any, namespace: Namespace, tmp_path: Path) -> None:
    run = run_of(tmp_path, sft=None, model={"path": "org/model"})
    with Kubelet(deployed) as kubelet:
        conducted(run, namespace)
    served = {name: tasks for name, _, tasks in kubelet.history}
    assert "sft" not in served
    assert served["ppo"]["policy"]["model"] == served["ppo"]["reference"]["model"] == "org/model"


def test_a_reward_of_rules_trains_no_model_and_waits_for_none(
    deployed: Any, namespace: Namespace, tmp_path: Path
) -> None:
    rule = {"name": "ended", "kind": "rule", "rule": "ended"}
    run = run_of(tmp_path, reward={"sources": [rule]}, ppo={"critic": {"init": "policy"}})
    with Kubelet(deployed) as kubelet:
        conducted(run, namespace)
    served = {name: tasks for name, _, tasks in kubelet.history}
    assert "reward" not in served
    assert served["ppo"]["reward"]["model"] is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stages_work_for_real_by_the_command_of_their_pods(deployed: Any, namespace: Namespace, tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        model={"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4, "kv_heads": 4,
                                "context_tokens": 96}},
        stages={
            "data": {"demonstration_rows": 600, "comparison_rows": 600, "max_prompt_tokens": 32, "prompt_rows": 300},
            "sft": {"epochs": 1, "batch_tokens": 2048},
            "reward": {"epochs": 1, "batch_tokens": 2048},
            "report": {},
        },
    )  # fmt: skip

    def work(argument: Manifest) -> int:
        file = tmp_path / "task.json"
        file.write_text(text := json.dumps(argument))
        told = os.environ | {"LODESTAR_TASK": hashlib.sha256(text.encode()).hexdigest(), "OMP_NUM_THREADS": "1"}
        lodestar = str(Path(sys.executable).with_name("lodestar"))
        return subprocess.run([lodestar, "work", str(file)], env=told, check=False).returncode

    with Kubelet(deployed, work):
        root = conducted(run, namespace)
    assert (root / "sft" / "policy" / "config.json").exists()
    assert (root / "reward" / "reward" / "config.json").exists()
    assert (root / "report.html").exists()


@pytest.mark.parametrize("digest", ["0" * 64, None])
def test_a_pod_waits_for_the_task_that_its_annotation_names(tmp_path: Path, digest: str | None) -> None:
    file = tmp_path / "task.json"
    with pytest.raises(DataError, match="is not the task 000000000000" if digest else "the conductor writes it"):
        told_by(file, digest, patience=0.3)
    text = '{"role": "policy"}'
    writing = threading.Timer(0.3, lambda: file.write_text(text))
    writing.start()
    assert told_by(file, hashlib.sha256(text.encode()).hexdigest(), patience=30) == {"role": "policy"}


def test_a_conductor_loads_no_torch() -> None:
    program = "import sys, lodestar.crew.there; from lodestar.recipe.stage import registry; registry()"
    done = subprocess.run([sys.executable, "-c", f"{program}; sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


# --- both crews ----------------------------------------------------------------------------------------------------
class Recorded:
    """Stands in for the processes of this machine: notes what they are told, and writes what stages would make."""

    def __init__(self) -> None:
        self.tasks: dict[str, Manifest] = {}
        self.history: list[tuple[str, Manifest, dict[str, Manifest]]] = []
        self.members: list[Any] = []
        self.restarts: dict[str, int] = {}

    def serve(self, task: Any) -> None:
        self.tasks[task.name] = task.model_dump(mode="json")

    def start(self, name: str, target: str, argument: Manifest, **_: Any) -> Any:
        self.step = argument["step"]
        self.argument = argument

        class Member:
            fleet = name
            finished = False
            child = type("Child", (), {"wait": lambda *_: None, "alive": False})

        self.member = Member
        return Member

    def check(self) -> None:
        write_outputs(self.argument)
        self.history.append((self.step, self.argument, dict(self.tasks)))
        self.member.finished = True

    def stop(self, fleets: Any, *_: Any, **__: Any) -> None:
        for fleet in fleets:
            self.tasks.pop(fleet, None)

    def wait_ready(self, fleets: Any) -> None:
        """They are."""

    def scrape(self) -> None:
        """Nothing."""


def on_a_laptop(run: RunConfig, planned: Plan, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    import contextlib

    board = Board(run.name, [StageRow(step.name) for step in planned.steps])
    store = Store(Path(run.runs_dir) / run.name, run)
    crew = Local(run, planned, store, board)
    crew.fleet = recorded = Recorded()  # type: ignore[assignment]
    with monkeypatch.context() as patched:
        patched.setattr(local, "figures_of", lambda *_: [])
        patched.setattr(Local, "_following", lambda *_: contextlib.nullcontext())
        patched.setattr(Local, "_redis_url", lambda _: "redis://here")
        conduct(planned, store, crew, board)
    return recorded.history


def told(history: list[Any], root: Path) -> list[Any]:
    """What both crews must agree in: all but where processes listen and write."""
    here = ("listening", "folder", "cache", "endpoints")
    return [
        (
            step,
            {key: argument[key] for key in ("config", "step")},
            {
                fleet: {key: value for key, value in task.items() if key not in here}
                for fleet, task in sorted(tasks.items())
            },
            {
                fleet: sorted(key for key, value in task["endpoints"].items() if value and key != "redis")
                for fleet, task in tasks.items()
            },
            sorted(argument["servers"]),
        )
        for step, argument, tasks in json.loads(json.dumps(history).replace(str(root), "ROOT"))
    ]


def shipped() -> list[Path]:
    files = [*(ROOT / "lodestar" / "recipes").glob("*.yaml"), *(ROOT / "examples").glob("*.yaml")]
    return sorted([*files, *(ROOT / "k8s" / "overlays").glob("*/run.yaml"), ROOT / "lodestar" / "local" / "demo.yaml"])


@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_both_crews_conduct_the_same(
    path: Path, deployed: Any, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load(path.read_text()) | {"name": "mine"}
    stages = tree.get("stages", {})
    kinds = {*stages, *stages.get("rounds", {}).get("stages", {})} - {"rounds"}
    if unknown := kinds - registry().keys():
        pytest.skip(f"stages that are not there yet: {', '.join(sorted(unknown))}")
    monkeypatch.chdir(tmp_path)
    if data := stages.get("data", {}).get("root"):  # what a conductor looks for before anything runs
        turns = {side: f"\n\nHuman: hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
        for name in stages["data"].get("files", ["rows.jsonl"]):
            (tmp_path / data / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / data / name).write_text(json.dumps(turns) + "\n")
    laptop, cluster = (parse_config(tree | {"runs_dir": str(tmp_path / place)}) for place in ("laptop", "cluster"))
    planned = plan(laptop)
    expected = told(on_a_laptop(laptop, planned, monkeypatch), tmp_path / "laptop")
    with Kubelet(deployed) as kubelet:
        conducted(cluster, namespace)
    got = told(kubelet.history, tmp_path / "cluster")
    assert [step for step, *_ in got] == [step.name for step in planned.steps] == [step for step, *_ in expected]
    assert got == expected


def test_the_shipped_files_are_found() -> None:
    assert len(shipped()) > 5
    assert load_config(ROOT / "k8s" / "overlays" / "gpu" / "run.yaml").name == "qwen-half"
