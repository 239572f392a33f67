"""Checkpoints: all that the next step depends on, on disk, atomically.

    checkpoints/step-000020/
      state.json            everything but tensors; {"$tensor": name} stands where one belongs
      tensors.safetensors
      digests.json          sha256 of the two

A checkpoint is written under a temporary name, fsynced, renamed, and its folder fsynced: a folder named
``step-…`` was written whole. Disks fail all the same: what is read must have its digest, and what has not is renamed to
``damaged-step-…`` and the checkpoint before it is taken. Tensors are safetensors and the rest is JSON, so that reading
one runs no code.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lodestar import metrics
from lodestar.errors import LodestarError, ResumeRefused
from lodestar.files import digest, remove, remove_leftovers, replacing
from lodestar.model.weights import tensor_digests, weights_digest

log = logging.getLogger(__name__)

FILES, DIGESTS = ("state.json", "tensors.safetensors"), "digests.json"
_NAME = re.compile(r"step-\d+")


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes the state after ``step`` and deletes all but the newest ``keep``.

        Raises:
            LodestarError: the disk is full or cannot be written; older checkpoints are untouched.
        """
        target = self._folder / f"step-{step:06d}"
        try:
            self.sweep()
            write_checkpoint(target, state)
        except Exception as error:  # safetensors raises its own type for a full disk
            kept = self.latest()
            raise LodestarError(
                f"the checkpoint of step {step} could not be written to {self._folder}: {error}; "
                f"{f'{kept.name} is intact' if kept else 'there is no older one'}. Free space and resume"
            ) from error
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_STEP.set(step)
        for old in self.all()[: -self._keep]:
            remove(old)
        return target

    def keep_newest(self) -> None:
        """Deletes all but the newest: what a run that is over can go on from when more steps are asked for."""
        for old in self.all()[:-1]:
            remove(old)

    def sweep(self) -> None:
        """Deletes what a start that was killed left half-written."""
        remove_leftovers(self._folder)

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its state; those that are damaged are set aside, and it says so.

        Raises:
            ResumeRefused: there are checkpoints, and every one is damaged.
        """
        self.sweep()
        damaged: list[str] = []
        for path in reversed(self.all()):
            try:
                state = load_checkpoint(path)
            except ResumeRefused as error:
                aside = path.with_name(f"damaged-{path.name}-{time.time_ns()}")
                path.rename(aside)
                damaged.append(str(error))
                log.error("%s; it is %s now, and the checkpoint before it is tried", error, aside)
            else:
                return path, state
        if damaged:
            raise ResumeRefused(
                f"no checkpoint in {self._folder} is whole: {'; '.join(damaged)}. Restore one from a copy, or start "
                "the run again under another name"
            )
        return None

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        steps = {path: _NAME.fullmatch(path.name) for path in self._folder.glob("step-*")}
        return sorted((path for path, found in steps.items() if found), key=lambda path: int(path.name[len("step-") :]))

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        return self.all()[-1] if self.all() else None


def write_checkpoint(target: Path, state: Mapping[str, Any]) -> None:
    """Writes a state whole or not at all, in place of what is there."""
    with replacing(target) as partial:
        partial.mkdir()
        tensors: dict[str, Tensor] = {}
        tree = _without_tensors(state, "", tensors, set())
        save_file(tensors, partial / "tensors.safetensors")
        (partial / "state.json").write_text(json.dumps(tree), encoding="utf-8")
        (partial / DIGESTS).write_text(json.dumps({name: digest(partial / name) for name in FILES}))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that write_checkpoint was given (tuples come back as lists).

    Raises:
        ResumeRefused: a file is missing, cut, or not what was written; the message names it.
    """
    try:
        digests = json.loads((path / DIGESTS).read_text(encoding="utf-8"))
        if missing := [name for name in FILES if not (path / name).exists()]:
            raise ResumeRefused(f"{path / missing[0]} is missing")
        wrong = [name for name in FILES if digest(path / name) != digests[name]]
        if wrong:
            raise ResumeRefused(f"{path / wrong[0]} is damaged: its digest is not that of what was written")
        tree = json.loads((path / "state.json").read_text(encoding="utf-8"))
        state: dict[str, Any] = _with_tensors(tree, load_file(path / "tensors.safetensors"))
    except FileNotFoundError as error:
        raise ResumeRefused(f"{error.filename} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ResumeRefused(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return state


def check_weights(state: Mapping[str, Any], policy: Any) -> None:
    """Compares the policy that a checkpoint brought back with the manifest under which it was published.

    Raises:
        ResumeRefused: they differ: the files were damaged, or another model's weights were put there.
    """
    published, restored = state["weights"]["version"]["digest"], weights_digest(tensor_digests(policy))
    if restored != published:
        raise ResumeRefused(
            f"the checkpoint of step {state['step']} is damaged: its policy hashes to {restored[:12]}, and "
            f"{published[:12]} was published; delete it to resume from an older one"
        )


def refuse_changes(saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Compares what a run depends on with what its checkpoint was made from.

    Raises:
        ResumeRefused: names every difference.
    """
    changed = sorted(name for name in saved.keys() | present.keys() if saved.get(name) != present.get(name))
    if changed:
        details = ", ".join(f"{name} ({_short(saved.get(name))} → {_short(present.get(name))})" for name in changed)
        raise ResumeRefused(
            f"changed since the checkpoint: {details}. Put it back, or start afresh under another name or with --fresh"
        )


def _short(value: str | None) -> str:
    if value is None:
        return "unset"
    return value if len(value) < 40 else value[:12] + "…"


def _without_tensors(node: Any, path: str, tensors: dict[str, Tensor], seen: set[int]) -> Any:
    if isinstance(node, Tensor):
        host = node.detach().cpu().contiguous()
        # Written from where it lies; a view would save the whole of its storage, and two names for one cannot be saved.
        alone = host.untyped_storage().nbytes() == host.nbytes and host.data_ptr() not in seen
        seen.add(host.data_ptr())
        tensors[path] = host if alone else host.clone()
        return {"$tensor": path}
    if isinstance(node, Mapping):
        return {"$map": [[key, _without_tensors(value, f"{path}/{key}", tensors, seen)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_without_tensors(value, f"{path}/{index}", tensors, seen) for index, value in enumerate(node)]
    return node


def _with_tensors(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if "$tensor" in node:
            return tensors[node["$tensor"]]
        return {key: _with_tensors(value, tensors) for key, value in node["$map"]}
    if isinstance(node, list):
        return [_with_tensors(value, tensors) for value in node]
    return node
