"""summary.json: a run's figures, from the files that its stages left."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lodestar
from lodestar.files import read_json, write_atomically
from lodestar.recipe.folder import RunFolder
from lodestar.report.rounds import round_rows

VERSIONS = ("torch", "transformers", "grpcio", "redis")


def write_summary(root: Path) -> dict[str, Any]:
    """Writes ``root/summary.json`` and returns it; what a run has no stage for is null.

    Raises:
        DataError: a file of the run is damaged.
    """
    folder = RunFolder.open(root)
    ppo, evaluated = folder.last("ppo"), folder.last("evaluate")
    steps, found = folder.rows(ppo, "metrics.jsonl"), folder.figures(evaluated, "evaluation.json")
    seals = {step.name: seal for step, seal in folder.seals()}
    seconds = {name: seal["seconds"] for name, seal in seals.items()}
    summary = {
        "win_rate": {**found["win_rate"], "judge": found["judge"]} if "win_rate" in found else None,
        **{name: found.get(name) for name in ("rivals", "greedy", "policy", "learned")},
        "reward": {"before": found.get("reward_before"), "after": found.get("reward_after")},
        "kl": steps[-1]["kl_after"] if steps else None,
        "reward_model": _accuracy(folder),
        "over_optimised_at": next((step["step"] for step in steps if step.get("over_optimised")), None),
        "rounds": round_rows(folder),
        "steps": len(steps),
        "wall_seconds": round(sum(seconds.values()), 3),
        "seconds": seconds,
        "cut_short": {name: cut for name in seconds if (cut := _cut_short(folder, name))},
        "response_tokens_per_second": _tokens_per_second(steps),
        "rollouts": rollouts(steps),
        "services": _services(seals.values()),
        "seed": folder.run.seed,
        "versions": versions(),
    }
    write_atomically(root / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
    return summary


def rollouts(steps: list[dict[str, Any]]) -> dict[str, int]:
    """How the issued tickets ended, over all steps of the lineage."""
    tickets = (
        steps[-1]["tickets"] if steps else {}
    )  # counted from the stage's beginning, over all starts of the learner
    return {name: tickets.get(name, 0) for name in ("issued", "trained", "failed", "superseded", "duplicates_refused")}


def versions() -> dict[str, str]:
    """Of what computed the run."""
    return {
        "lodestar": lodestar.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in VERSIONS},
    }


def _cut_short(folder: RunFolder, stage: str) -> dict[str, int] | None:
    """``{"done", "total"}`` steps of a training that its max_seconds ended."""
    found = folder.figures(folder.plan.step(stage), "fit.json").get("cut_short")
    return None if found is None else dict(found)


def _services(seals: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every process that served, with what the stage says of it that saw most of it: later stages of one start add to
    what earlier ones counted, those of another start count anew."""
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for seal in seals for row in seal.get("services", ())):
        if row["name"] not in rows or row["rpcs"] >= rows[row["name"]]["rpcs"]:
            rows[row["name"]] = row
    return [rows[name] for name in sorted(rows)]


def _accuracy(folder: RunFolder) -> dict[str, Any] | None:
    """Of the newest reward model on pairs that no stage has seen; None where no reward model is the run's own."""
    model = folder.newest("reward_model")
    if model is None or not (model / "card.json").exists():
        return None
    accuracy = read_json(model / "card.json")["accuracy"]
    return {"accuracy": accuracy["value"], **{name: accuracy[name] for name in ("low", "high", "n")}}


def _tokens_per_second(steps: list[dict[str, Any]]) -> float | None:
    """Response tokens of the whole of PPO by its wall time: the steps' rates, each weighed by its tokens."""
    if not steps:
        return None
    seconds = sum(step["response_length"] / step["tokens_per_second"] for step in steps)
    return round(float(sum(step["response_length"] for step in steps) / seconds), 1)
