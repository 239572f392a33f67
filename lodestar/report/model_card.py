"""A model's card for a hub, from what its run measured: README.md with the hub's metadata on top."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from lodestar.errors import FailedPrecondition
from lodestar.files import read_json
from lodestar.recipe.folder import RunFolder
from lodestar.tracking.follow import table

SAMPLES = 4
"""Prompts with replies before and after."""


def model_card(folder: RunFolder, artifact: str, *, repository: str, licence: str | None) -> str:
    """Markdown of the model ``STAGE/PORT`` of a run.

    Raises:
        FailedPrecondition: the artifact is not finished.
    """
    name, _, port = artifact.partition("/")
    step = folder.plan.step(name)
    if not folder.store.seal_of(name):
        raise FailedPrecondition(f"{artifact} is not finished")
    kind, run = step.makes[port], folder.run
    evaluated = folder.last("evaluate")
    found = folder.figures(evaluated, "evaluation.json")
    reward = folder.newest("reward_model")
    card = read_json(reward / "card.json") if reward and (reward / "card.json").exists() else {}
    summary = folder.root / "summary.json"
    samples = [row for row in folder.rows(evaluated, "samples.jsonl") if "after" in row][:SAMPLES]
    metadata = {
        **({"license": licence} if licence else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if kind == "reward_model" else "text-generation",
        "tags": ["lodestar", "rlhf", "reward-model" if kind == "reward_model" else step.kind],
        **({"base_model": run.model.path} if _is_hub_id(run.model.path) else {}),
    }
    stages = [one for one in folder.plan.steps if folder.store.seal_of(one.name)]
    text = (resources.files("lodestar.report") / "model_card.md.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(text).render(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        repository=repository,
        artifact=artifact,
        kind=kind,
        run=run,
        stages=[(one.name, one.kind, folder.store.seal_of(one.name)["seconds"]) for one in stages],
        options=yaml.safe_dump(step.stage.model_dump(mode="json", exclude={"use"}), sort_keys=False),
        evaluation=found,
        summary=read_json(summary) if summary.exists() else {},
        card=card,
        samples=table([_shown(row) for row in samples]) if samples else "",
    )


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Of a sample what a reader judges by: texts, without their scores."""
    return {
        "prompt": row.get("prompt", ""),
        **{side: row[side]["text"] if isinstance(row[side], dict) else row[side] for side in ("before", "after")},
    }


def _is_hub_id(path: str | None) -> bool:
    return path is not None and path.count("/") <= 1 and not Path(path).exists()
