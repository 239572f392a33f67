"""What a run's folder says, read once for the report. Parts that a run has not reached are empty."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lodestar.errors import DataError
from lodestar.layout import RunFolder

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """``read_facts(RunFolder(Path("runs/demo")))``."""

    name: str
    config: Row
    config_text: str
    summary: Row
    """summary.json; empty before the run is finished."""
    results: Row
    """What the launcher kept: best-of-n, running win rates."""
    steps: list[Row]
    """metrics.jsonl."""
    samples: list[Row]
    """samples.jsonl."""
    card: Row
    """The reward model's."""
    training: dict[str, list[Row]]
    """Stage → figures of its supervised training, in order."""

    @property
    def judged_pairs(self) -> list[tuple[float, float]]:
        """Judgements before and after, of the prompts that have both."""
        return [
            (judgement(row["before"], self.judge), judgement(row["after"], self.judge))
            for row in self.samples
            if "after" in row
        ]

    @property
    def judge(self) -> str:
        """gold or reward."""
        return str(self.config.get("evaluation", {}).get("judge", "reward"))

    @property
    def offset(self) -> float:
        """What PPO subtracted from every score, as far as the files tell."""
        wanted = self.config.get("ppo", {}).get("score", {}).get("offset", "none")
        if isinstance(wanted, int | float):
            return float(wanted)
        if wanted == "demonstrations":
            return float(self.card.get("offset", 0.0))
        if wanted == "samples":
            return float(self.results.get("baseline", {}).get("reward_before", 0.0))
        return 0.0


def judgement(reply: Row, judge: str) -> float:
    """The number by which a reply was compared."""
    return float(reply["gold"] if judge == "gold" else reply["score"])


def read_facts(folder: RunFolder) -> Facts:
    """Reads the folder.

    Raises:
        DataError: a file of the run is damaged (file:line).
    """
    config_text = folder.config.read_text(encoding="utf-8")
    config = yaml.safe_load(config_text)
    state = _json(folder.state)
    training = {}
    for stage in ("pretrain", "sft", "reward"):
        lines = _lines(folder.logs / f"{stage}.jsonl")
        training[stage] = [line for line in lines if set(line) - {"stage", "seconds", "done", "total"}]
    return Facts(
        name=config["name"],
        config=config,
        config_text=config_text,
        summary=_json(folder.summary),
        results=state.get("results", {}),
        steps=_lines(folder.metrics),
        samples=_lines(folder.samples),
        card=_json(folder.reward_model / "card.json"),
        training={stage: lines for stage, lines in training.items() if lines},
    )


def _json(path: Path) -> Row:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise DataError(path, f"is not JSON: {error.msg}", error.lineno) from None


def _lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(path, f"is not JSON: {error.msg}", number) from None
    return rows
