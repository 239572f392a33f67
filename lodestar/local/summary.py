"""summary.json: a run's figures, from the files that the run left."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import lodestar
from lodestar.config import RunConfig
from lodestar.layout import RunFolder
from lodestar.local.state import RunLog

VERSIONS = ("torch", "transformers", "grpcio", "redis")


def write_summary(config: RunConfig, folder: RunFolder, log: RunLog) -> None:
    """Writes summary.json; every figure is read back from disk."""
    results, seconds = log.results, log.seconds
    baseline, evaluation = results["baseline"], results["evaluation"]
    steps = read_jsonl(folder.metrics)
    card_file = folder.reward_model / "card.json"  # no source may be the run's own reward model
    card = json.loads(card_file.read_text(encoding="utf-8")) if card_file.exists() else None
    summary = {
        "win_rate": {**evaluation["win_rate"], "judge": config.evaluation.judge},
        "best_of_n": {n: rate["value"] for n, rate in baseline["best_of_n"].items()},
        "reward": {"before": baseline["reward_before"], "after": evaluation["reward_after"]},
        "kl": steps[-1]["kl_sequence"],
        "reward_model": {
            "accuracy": card["accuracy"]["value"],
            **{k: card["accuracy"][k] for k in ("low", "high", "n")},
        }
        if card
        else None,
        "over_optimised_at": next((step["step"] for step in steps if step.get("over_optimised")), None),
        "steps": len(steps),
        "wall_seconds": round(results["wall_seconds"], 3),
        "seconds": seconds,
        "response_tokens_per_second": _tokens_per_second(steps),
        "rollouts": rollouts(steps),
        "services": [_with_restarts(service, log) for service in results["services"]],
        "seed": config.seed,
        "versions": versions(),
    }
    temporary = folder.summary.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    os.replace(temporary, folder.summary)


def rollouts(steps: list[dict[str, Any]]) -> dict[str, int]:
    """How the issued tickets ended, over all steps of the lineage."""
    tickets = steps[-1]["tickets"]  # counted from the run's beginning, over all starts of the learner
    return {name: tickets[name] for name in ("issued", "trained", "failed", "superseded", "duplicates_refused")}


def versions() -> dict[str, str]:
    """Of what computed the run."""
    return {
        "lodestar": lodestar.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in VERSIONS},
    }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that the run itself wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _tokens_per_second(steps: list[dict[str, Any]]) -> float:
    """Response tokens of the whole of PPO by its wall time: the steps' rates, each weighed by its tokens."""
    seconds = sum(step["response_length"] / step["tokens_per_second"] for step in steps)
    return round(float(sum(step["response_length"] for step in steps) / seconds), 1)


def _with_restarts(service: dict[str, Any], log: RunLog) -> dict[str, Any]:
    """Restarts over all starts of the launcher."""
    return service | {"restarts": log.restarts.get(service["name"], 0)}
