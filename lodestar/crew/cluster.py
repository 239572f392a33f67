"""The crew of a Kubernetes cluster. Manifests have deployed a Deployment of no replicas for each fleet, and templates
of Jobs; this says what each fleet works on and how many it is, and makes a Job of each stage.

A conductor may die at any moment: what it began goes on, and its successor finds it by the run's folder and the API.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lodestar import metrics
from lodestar.config.run import RunConfig
from lodestar.config.serve import Endpoints, Listening
from lodestar.crew.follow import StatusFollower
from lodestar.crew.port import Servers, rollout_task, server_task
from lodestar.crew.work import argument_of
from lodestar.errors import ConfigError, FailedPrecondition, LodestarError, NonFinite, RunPaused, Unavailable
from lodestar.files import write_atomically
from lodestar.kubernetes.labels import COMPONENT_LABEL, RUN_LABEL, STAGE_LABEL, TASK, TASKS, TOOK
from lodestar.kubernetes.namespace import Namespace
from lodestar.kubernetes.problems import OVER, condition, ended_by, failure_of, pod_problem
from lodestar.local.board import Board, ServiceRow
from lodestar.local.progress import ProgressReader
from lodestar.recipe.plan import Plan, Step, calls_of
from lodestar.recipe.store import Store

WORKERS = "rollout"
POLL_SECONDS = 3.0
SCRATCH = Path("/tmp/run")
"""Where servers write; the runs volume is read-only to them."""
SCALED_BY = "lodestar.dev/scaled-by"
"""Annotation of a Deployment whose number of replicas is an autoscaler's."""
GIVEN_UP = {2: FailedPrecondition, 3: NonFinite, 4: RunPaused}
"""Exit codes after which a process would end the same way again."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Site:
    """What the manifests decided: names, and where processes listen."""

    listening: Listening
    """Of every pod."""
    suffix: str = ""
    """After the names of this fleet's objects."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Fleet → gRPC target of servers elsewhere that serve this run's models already."""

    def address(self, name: str, port: int | None = None) -> str:
        """gRPC target of a Service of this fleet."""
        return f"dns:///{name}{self.suffix}:{port or self.listening.port}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fleet is to be."""

    task: str
    """JSON."""
    took: str
    """Digest of the artifact that it serves: made anew, it lies where it lay."""
    replicas: int

    @property
    def marks(self) -> dict[str, str]:
        """Annotations of its pods."""
        return {TASK: hashlib.sha256(self.task.encode()).hexdigest(), TOOK: self.took}


class Cluster:
    """See lodestar.crew.port.Crew. The conductor's thread calls it."""

    def __init__(self, run: RunConfig, plan: Plan, store: Store, board: Board, api: Namespace, site: Site) -> None:
        self._run = run
        self._plan = plan
        self._store = store
        self._board = board
        self._api = api
        self._site = site
        self._wanted: dict[str, Wanted] = {}
        self._fleets = sorted({*(name for step in plan.steps for name in self._ours(step)), WORKERS})
        self._endpoints = Endpoints()
        self._said: set[str] = set()
        self._restarts: dict[str, int] = {}

    # --- the port ------------------------------------------------------------------------------------------------
    def serve(self, step: Step) -> Servers:
        """See Crew: a fleet that serves what is wanted goes on; waits until no pod serves anything else."""
        calls, site = calls_of(step), self._site
        weights = site.address(step.stage.serves, site.listening.weights_port) if step.stage.serves else None
        servers = {name: (site.shared.get(name) or site.address(name),) for name in calls}
        rewards = servers.get("reward", ())
        self._wanted = {name: self._server(step, name, weights, rewards) for name in self._ours(step)}
        self._endpoints = Endpoints()
        if step.stage.rolls_out:
            self._endpoints = Endpoints(
                policy=servers.get("policy", ()),
                reward=servers.get("reward", ()),
                reference=servers.get("reference", ()),
                weights=weights,
            )
            self._wanted[WORKERS] = self._worker()
        while not self._patiently(lambda: self._hold() and self._serving(list(calls))):
            time.sleep(POLL_SECONDS)
        return servers

    def work(self, step: Step, servers: Servers) -> None:
        """See Crew: the stage's Job, or the one that an earlier conductor made of it."""
        listening = self._site.listening
        if not step.stage.serves:
            listening = Listening(tls=listening.tls, tokens=listening.tokens, insecure=listening.insecure)
        argument = json.dumps(argument_of(self._run, self._store, step.name, servers, self._endpoints, listening))
        reader = ProgressReader(self._store.root / "logs" / f"{step.name}.jsonl")
        name = self._patiently(lambda: self._job(step, argument, reader))
        with self._following(step):
            while not self._patiently(lambda: self._hold() and self._over(step, name)):
                self._board.progress(step.name, reader.new())
                time.sleep(POLL_SECONDS)
        self._board.progress(step.name, reader.new())
        if self._wanted.pop(WORKERS, None):
            self._patiently(self._hold)

    def figures(self, step: Step) -> Mapping[str, Any]:
        """See Crew; what services did is Prometheus's to tell."""
        return {"restarts": dict(self._restarts)} if calls_of(step) or step.stage.serves else {}

    def release(self) -> None:
        """Leaves no replica of any fleet."""
        self._wanted = {}
        self._patiently(self._hold)

    def _ours(self, step: Step) -> list[str]:
        """The fleets of a step that this scales: neither shared ones nor the page where people judge."""
        calls = calls_of(step)
        return [name for name, call in calls.items() if name not in self._site.shared and call.role != "feedback"]

    # --- fleets --------------------------------------------------------------------------------------------------
    def _server(self, step: Step, fleet: str, weights: str | None, rewards: Sequence[str]) -> Wanted:
        call = step.stage.calls[fleet]
        task = server_task(
            self._run,
            self._plan,
            self._store,
            step,
            fleet,
            folder=SCRATCH,
            weights=weights,
            rewards=rewards,
            listening=self._site.listening,
        )
        took = self._store.digest(step.inputs[call.port][0]) if call.port in step.inputs else ""
        return Wanted(task.model_dump_json(), took, getattr(self._run.services, call.role).replicas)

    def _worker(self) -> Wanted:
        task = rollout_task(self._run, self._endpoints, folder=SCRATCH, listening=self._site.listening)
        return Wanted(task.model_dump_json(), "", self._run.services.rollout.replicas)

    def _hold(self) -> bool:
        """Makes every Deployment what is wanted, whoever has changed it since; a fleet that is so is left alone."""
        for fleet in self._fleets:
            wanted, name = self._wanted.get(fleet), fleet + self._site.suffix
            metrics.FLEET_WANTED.labels(fleet).set(wanted.replicas if wanted else 0)
            live = self._api.read("Deployment", name)
            if live is None:
                if wanted:
                    raise FailedPrecondition(f"there is no Deployment {name}; the overlay must have one for each fleet")
                continue
            if live.metadata.labels.get(RUN_LABEL) != self._run.name:
                raise ConfigError(
                    "name", f"is {self._run.name}, and Deployment {name} is labelled {RUN_LABEL}: "
                    f"{live.metadata.labels.get(RUN_LABEL)}; the overlay's labels must say the run's name"
                )  # fmt: skip
            change: dict[str, Any] = {}
            marks = live.spec.template.metadata.annotations or {}
            if wanted and any(marks.get(key, "") != value for key, value in wanted.marks.items()):
                self._api.patch("ConfigMap", TASKS + self._site.suffix, {"data": {f"{fleet}.json": wanted.task}})
                change["template"] = {"metadata": {"annotations": wanted.marks}}
            replicas = wanted.replicas if wanted else 0
            if SCALED_BY not in (live.metadata.annotations or {}) and live.spec.replicas != replicas:
                change["replicas"] = replicas
            if change:
                self._api.patch("Deployment", name, {"spec": change})
        return True

    def _serving(self, fleets: list[str]) -> bool:
        """Whether as many pods as wanted are ready, and none is left that serves anything else."""
        pods = self._look()
        for fleet in (name for name in fleets if name in self._wanted):
            wanted = self._wanted[fleet]
            own = [pod for pod in pods if pod.metadata.labels.get(COMPONENT_LABEL) == fleet]
            right = [pod for pod in own if wanted.marks.items() <= (pod.metadata.annotations or {}).items()]
            for pod in right:
                if (ended := ended_by(pod)) and ended.exit_code in GIVEN_UP:
                    raise GIVEN_UP[ended.exit_code](f"{fleet}: {failure_of(ended)}")
            if len(right) < len(own) or sum(map(_ready, right)) < wanted.replicas:
                return False
        return True

    # --- the stage -----------------------------------------------------------------------------------------------
    def _job(self, step: Step, argument: str, reader: ProgressReader) -> str:
        """The name of the Job that does the stage's work: of the one there is, else of a new one.

        Its name is noted in the stage's folder before it is made, and goes when the stage is made anew.
        """
        note, digest = self._store.unfinished(step) / "job.txt", hashlib.sha256(argument.encode()).hexdigest()
        name = note.read_text(encoding="utf-8") if note.exists() else ""
        job = self._api.read("Job", name) if name else None
        if job and job.spec.template.metadata.annotations[TASK] == digest and not condition(job, "Failed"):
            self._board.say(f"{step.name}: goes on as Job {name}")
            return name
        self._end_others()
        template = self._api.read("Job", (step.stage.serves or "stage") + self._site.suffix)
        if template is None:
            raise FailedPrecondition(f"there is no Job {step.stage.serves or 'stage'}{self._site.suffix} to copy")
        words = f"{self._run.name}-{step.name}".replace(".", "-").replace("_", "-")
        name = f"{words[:50].rstrip('-')}-{secrets.token_hex(4)}"
        write_atomically(note, name)
        reader.forget()
        self._api.patch("ConfigMap", TASKS + self._site.suffix, {"data": {"stage.json": argument}})
        self._api.create(stage_job(self._api.manifest(template), name, step.name, digest))
        return name

    def _end_others(self) -> None:
        """No stage of this run may work while another begins: a Job of an earlier plan, or of other options."""
        mine = f"{RUN_LABEL}={self._run.name},{STAGE_LABEL}"
        for job in self._api.list("Job", mine):
            if not (condition(job, "Complete") or condition(job, "Failed")):
                self._board.say(f"ends Job {job.metadata.name}, which nobody waits for any more", "warning")
                self._api.delete("Job", job.metadata.name)
        while any(pod.status.phase not in OVER for pod in self._api.list("Pod", mine)):
            time.sleep(POLL_SECONDS)

    def _over(self, step: Step, name: str) -> bool:
        """Whether the stage's Job has done its work.

        Raises:
            LodestarError: it was given up, or deleted.
        """
        job = self._api.read("Job", name)
        if job is None:
            raise FailedPrecondition(f"{step.name}: Job {name} was deleted; submit the run again to go on")
        own = [pod for pod in self._look() if pod.metadata.labels.get(STAGE_LABEL) == step.name]
        if (failed := condition(job, "Failed")) is not None:
            ends = [ended for pod in sorted(own, key=_age) if (ended := ended_by(pod)) and ended.exit_code]
            code = ends[-1].exit_code if ends else 0
            said = failure_of(ends[-1]) if ends else failed.message
            if code in GIVEN_UP:
                raise GIVEN_UP[code](f"{step.name}: {said}")
            raise RunPaused(f"{step.name} was tried {len(own)} times ({failed.message}): {said}; submit it again")
        return condition(job, "Complete") is not None

    def _look(self) -> list[Any]:
        """The run's pods; puts them on the board, and says once what is wrong with each."""
        pods = self._api.list("Pod", f"{RUN_LABEL}={self._run.name}")
        rows = []
        for pod in sorted(pods, key=lambda pod: str(pod.metadata.name)):
            role, name = pod.metadata.labels.get(COMPONENT_LABEL), pod.metadata.name
            restarts = sum(status.restart_count for status in pod.status.container_statuses or ())
            if restarts:
                self._restarts[name] = restarts
            if role in (*self._fleets, "learner") and pod.status.phase not in OVER:
                state = "ready" if _ready(pod) else "restarting" if restarts else "starting"
                rows.append(ServiceRow(name, self._site.listening.port, state=state, restarts=restarts))  # type: ignore[arg-type]
            if (problem := pod_problem(pod)) and (text := f"{name}: {problem}") not in self._said:
                self._said.add(text)
                self._board.say(text, "warning")
        self._board.services = rows
        return pods

    @contextlib.contextmanager
    def _following(self, step: Step) -> Iterator[None]:
        """Follows the status of a stage that serves it."""
        if not step.stage.serves:
            yield
            return
        watched = self._store.unfinished(step) / "figures" / "watched.jsonl"
        address = self._site.address(step.stage.serves)
        metrics.FLEET_WANTED.labels(step.stage.serves).set(1)
        try:
            with StatusFollower(self._board, step.name, address, watched, tls=self._site.listening.tls):
                yield
        finally:
            metrics.FLEET_WANTED.labels(step.stage.serves).set(0)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Asks until the API server can be reached: stages and fleets go on without it."""
        while True:
            try:
                return ask()
            except Unavailable as error:
                if str(error) not in self._said:
                    self._said.add(str(error))
                    self._board.say(str(error), "warning")
                time.sleep(POLL_SECONDS)


def stage_job(template: dict[str, Any], name: str, stage: str, digest: str) -> dict[str, Any]:
    """A Job of a template's: not suspended, and of a stage."""
    pod = template["spec"]["template"]
    controlled = ("batch.kubernetes.io/", "controller-uid", "job-name")
    labels = {key: value for key, value in pod["metadata"]["labels"].items() if not key.startswith(controlled)}
    meta = {
        "labels": labels | {STAGE_LABEL: stage},
        "annotations": {**pod["metadata"].get("annotations", {}), TASK: digest},
    }
    spec = {key: value for key, value in template["spec"].items() if key not in ("selector", "manualSelector")}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": template["metadata"].get("labels", {}) | {STAGE_LABEL: stage}},
        "spec": spec | {"suspend": False, "template": {"metadata": meta, "spec": pod["spec"]}},
    }


def hopeless(error: LodestarError) -> bool:
    """Whether a conductor that is started again would end the same way."""
    return error.exit_code in GIVEN_UP


def _ready(pod: Any) -> bool:
    return pod.metadata.deletion_timestamp is None and any(
        condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions or ()
    )


def _age(pod: Any) -> Any:
    return pod.metadata.creation_timestamp
