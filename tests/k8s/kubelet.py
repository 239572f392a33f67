"""Controllers and nodes of a cluster, as far as a conductor sees them: pods of Deployments that are ready at once, and
Jobs whose work is done here.

    with Kubelet(api, do) as kubelet: ...

``do(argument)`` gets what the pod of a stage finds in its file, and returns its exit code.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lodestar.config import RunConfig
from lodestar.recipe.plan import plan

Manifest = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"


def write_outputs(argument: Manifest) -> int:
    """A stage's outputs as files of one line; the exit code."""
    step = plan(RunConfig.model_validate(argument["config"])).step(argument["step"])
    folder = Path(argument["root"]) / step.name / "unfinished"
    for port in step.makes:
        (folder / port).mkdir(parents=True, exist_ok=True)
        (folder / port / "made").write_text(f"{step.name}/{port}\n")
    return 0


class Kubelet:
    """A context manager; looks whenever something changes."""

    def __init__(self, api: Any, do: Callable[[Manifest], int] = write_outputs) -> None:
        self.api = api
        self.do = do
        self.said = ""
        """Termination message of a stage that fails."""
        self.history: list[tuple[str, Manifest, dict[str, Manifest]]] = []
        """Of every stage that worked: its name, its argument, and the tasks of the pods that were ready then."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            with self.api.changed:
                self._deployments()
                jobs = [m for (kind, _), m in self.api.objects.items() if kind == "jobs"]
            for job in jobs:
                stage = "lodestar.dev/stage" in job["metadata"]["labels"] and not job["spec"].get("suspend")
                if stage and not job.get("status", {}).get("conditions"):
                    self._job(job)

    def _deployments(self) -> None:
        for (kind, name), found in list(self.api.objects.items()):
            if kind != "deployments":
                continue
            template = found["spec"]["template"]
            revision = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
            wanted = {f"{name}-{revision}-{i}" for i in range(found["spec"].get("replicas", 1))}
            there = {
                pod for plural, pod in self.api.objects if plural == "pods" and pod.rpartition("-")[0][:-9] == name
            }
            for pod in there - wanted:
                del self.api.objects["pods", pod]
            for pod in wanted - there:
                ready = [{"type": "Ready", "status": "True"}]
                self.api.put("pods", self._pod(pod, template, {"phase": "Running", "conditions": ready}))

    def _job(self, job: Manifest) -> None:
        name, template = job["metadata"]["name"], job["spec"]["template"]
        text = self._tasks(job)["stage.json"]
        assert template["metadata"]["annotations"]["lodestar.dev/task"] == hashlib.sha256(text.encode()).hexdigest()
        argument = json.loads(text)
        if ("pods", f"{name}-a") not in self.api.objects:
            self.history.append((argument["step"], argument, self._served(job)))
            self.api.put("pods", self._pod(f"{name}-a", template, {"phase": "Running"}))
        code = self.do(argument)
        if code < 0:
            return  # it goes on
        ended = {"terminated": {"exitCode": code, "message": self.said, "reason": "x"}}
        status = {"name": "lodestar", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": ended}
        phase = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]}
        kind = {"type": "Failed" if code else "Complete", "status": "True", "reason": "r", "message": "m"}
        with self.api.changed:
            self.api.put("pods", self._pod(f"{name}-a", template, phase))
            if ("jobs", name) in self.api.objects:
                self.api.put("jobs", job | {"status": {"conditions": [kind], "succeeded": int(not code)}})

    def _tasks(self, of: Manifest) -> dict[str, str]:
        (task,) = [v for v in of["spec"]["template"]["spec"]["volumes"] if v["name"] == "task"]
        return dict(self.api.objects["configmaps", task["configMap"]["name"]]["data"])

    def _served(self, job: Manifest) -> dict[str, Manifest]:
        """Fleet → task, of those that have pods; the page where people judge has none, and is up always."""
        found = {}
        for (kind, _), pod in self.api.objects.items():
            fleet = pod["metadata"].get("labels", {}).get("app.kubernetes.io/component")
            is_stage = "lodestar.dev/stage" in pod["metadata"].get("labels", {})
            if kind == "pods" and not is_stage and fleet != "feedback":
                text = self._tasks(job)[f"{fleet}.json"]
                digest = hashlib.sha256(text.encode()).hexdigest()
                assert pod["metadata"]["annotations"]["lodestar.dev/task"] == digest
                found[fleet] = json.loads(text)
        return found

    def _pod(self, name: str, template: Manifest, status: Manifest) -> Manifest:
        meta = {"name": name, "labels": template["metadata"]["labels"]}
        meta["annotations"] = template["metadata"].get("annotations", {})
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"], "status": status}
