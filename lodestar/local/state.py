"""state.json: which stages of a run are done, what they cost, and what they left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lodestar.config import RunConfig, deciding_options, dump
from lodestar.errors import DataError, FailedPrecondition, ResumeRefused
from lodestar.layout import RunFolder


class RunLog:
    """The launcher's memory over its own restarts. Every change is on disk before the call returns."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._state: dict[str, Any] = {"stages": {}, "spent": {}, "restarts": {}, "results": {}}
        if folder.state.exists():
            try:
                self._state |= json.loads(folder.state.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise DataError(folder.state, f"is not JSON ({error.msg}); --fresh starts over", error.lineno) from None

    @property
    def finished(self) -> list[str]:
        """Stages that need not run again, in their order."""
        return list(self._state["stages"])

    @property
    def seconds(self) -> dict[str, float]:
        """Time per stage over all starts of the launcher."""
        return dict(self._state["spent"])

    @property
    def results(self) -> dict[str, Any]:
        """What finished stages found out, for the summary."""
        return dict(self._state["results"])

    @property
    def restarts(self) -> dict[str, int]:
        """Restarts per service over all starts of the launcher."""
        return dict(self._state["restarts"])

    def finish(self, stage: str, outputs: Iterable[Path]) -> None:
        """Marks a stage as done; its outputs must not change from now on."""
        digests = {str(path.relative_to(self._folder.root)): digest(path) for path in outputs}
        self._state["stages"][stage] = {"outputs": digests}
        self._save()

    def spend(self, stage: str, seconds: float) -> None:
        """Adds to a stage's time."""
        self._state["spent"][stage] = round(self._state["spent"].get(stage, 0.0) + seconds, 3)
        self._save()

    def restarted(self, service: str) -> None:
        """Counts a restart."""
        self._state["restarts"][service] = self._state["restarts"].get(service, 0) + 1
        self._save()

    def record(self, name: str, value: Any) -> None:
        """Keeps a result."""
        self._state["results"][name] = value
        self._save()

    def check_outputs(self) -> None:
        """Refuses to go on from files that changed since their stage finished.

        Raises:
            ResumeRefused: names the stage and the file.
        """
        for stage, entry in self._state["stages"].items():
            for name, expected in entry["outputs"].items():
                if digest(self._folder.root / name) != expected:
                    raise ResumeRefused(
                        f"{self._folder.root / name} changed since stage {stage} made it; put it back, or --fresh"
                    )

    def _save(self) -> None:
        temporary = self._folder.state.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._state, indent=1), encoding="utf-8")
        os.replace(temporary, self._folder.state)


def digest(path: Path) -> str:
    """Hex sha256 of a file, or of a folder's names and contents; empty when there is nothing."""
    if not path.exists():
        return ""
    whole = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(str(file.relative_to(path)).encode())
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


def open_folder(config: RunConfig, *, resume: bool, fresh: bool, may_change: tuple[str, ...] = ()) -> RunFolder:
    """The run's folder, emptied or checked as asked, with config.yaml in it.

    Args:
        may_change: further keys, or sections, whose change does not stand in the way of resuming.

    Raises:
        FailedPrecondition: it holds a run and neither resume nor fresh was said, or there is nothing to resume.
        ResumeRefused: the configuration differs; names the keys.
    """
    folder = RunFolder(Path(config.runs_dir) / config.name)
    held = folder.config.exists()
    if resume and not held:
        raise FailedPrecondition(f"{folder.root} holds no run to resume; leave --resume out to start it")
    if held and not resume and not fresh:
        raise FailedPrecondition(
            f"{folder.root} holds a run already: --resume goes on with it, --fresh starts over, name=… makes another"
        )
    if resume:
        refuse_changes(folder, config, may_change)
        folder.config.write_text(dump(config), encoding="utf-8")
        return folder
    if held:
        clear(folder)
    elif folder.root.exists() and any(path.name != ".lock" for path in folder.root.iterdir()):
        raise FailedPrecondition(f"{folder.root} is not empty and not a run; choose another name=… or runs_dir=…")
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(dump(config), encoding="utf-8")
    return folder


def clear(folder: RunFolder) -> None:
    """Removes what runs make, and nothing else that a person may have put there."""
    ours = [
        folder.config, folder.data, folder.sft.parent, folder.checkpoints, folder.weights, folder.served,
        folder.metrics, folder.ledger, folder.samples, folder.report, folder.summary, folder.logs, folder.services,
        folder.state, folder.root / "redis", folder.root / "failures", folder.root / "learner.lock",
        folder.root / "incarnations.txt",
    ]  # fmt: skip
    for path in ours:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def refuse_changes(folder: RunFolder, config: RunConfig, may_change: tuple[str, ...] = ()) -> None:
    """Compares a configuration with the one that the run's folder began with.

    Raises:
        ResumeRefused: names the options that differ and may not.
    """
    before = deciding_options(yaml.safe_load(folder.config.read_text(encoding="utf-8")), may_change)
    now = deciding_options(config.model_dump(mode="json"), may_change)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        changes = ", ".join(f"{key} (was {before.get(key)!r}, is {now.get(key)!r})" for key in changed)
        raise ResumeRefused(f"the configuration changed since {folder.root} began: {changes}; set it back, or --fresh")
