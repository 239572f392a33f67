"""What a run's folder says, read once for the report. Parts that a run has not reached are empty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodestar.files import read_json
from lodestar.recipe.folder import CONFIG, RunFolder
from lodestar.report.rounds import round_rows, score_shift
from lodestar.samples import judgement

Row = dict[str, Any]
BEST_OF_N = "best_of_"
"""What such a rival's name begins with."""


@dataclass(frozen=True, slots=True)
class Facts:
    """``read_facts(Path("runs/demo"))``."""

    name: str
    config: Row
    """Options of the last PPO stage as ``ppo``, of the last evaluation as ``evaluation``."""
    config_text: str
    synthetic: bool
    """Whether its prompts are the synthetic world's."""
    summary: Row
    """summary.json; empty before the run is finished."""
    results: Row
    """What the last evaluation, calibration, tasks and labelling found, and the running win rates."""
    steps: list[Row]
    """metrics.jsonl of the last PPO stage."""
    samples: list[Row]
    """samples.jsonl of the last evaluation."""
    card: Row
    """The last reward model's."""
    training: dict[str, list[Row]]
    """Stage → figures of its supervised training, in order."""
    rounds: list[Row]
    """Figures of each round (lodestar.report.rounds); empty where the run has none."""
    shift: list[Row]
    """Scores of the SFT model and of each round's policy."""

    @property
    def judged_pairs(self) -> list[tuple[float, float]]:
        """Judgements before and after, of the prompts that have both."""
        return [
            (judgement(row["before"], self.judge), judgement(row["after"], self.judge))
            for row in self.samples
            if "after" in row
        ]

    @property
    def method(self) -> str:
        """What made the policy that was judged, in words."""
        return str(self.results.get("evaluation", {}).get("method", "PPO"))

    @property
    def judge(self) -> str:
        """gold or reward."""
        return str(self.results.get("evaluation", {}).get("judge", "reward"))

    @property
    def best_of(self) -> dict[str, Row]:
        """By n, best-of-n of the SFT model among the last evaluation's rivals."""
        rivals: Row = self.results.get("evaluation", {}).get("rivals", {})
        return {name.removeprefix(BEST_OF_N): row for name, row in rivals.items() if name.startswith(BEST_OF_N)}

    @property
    def reference(self) -> str:
        """What PPO's KL is measured from: in rounds, each has its own."""
        return "the last round's reference" if self.rounds else "the SFT model"

    @property
    def offset(self) -> float | None:
        """What PPO subtracted from every score, as the learner recorded it; None where it did not."""
        found = self.steps[-1].get("offset") if self.steps else None
        return None if found is None else float(found)


def read_facts(root: Path) -> Facts:
    """Reads a run's folder.

    Raises:
        FailedPrecondition: it is no run's folder.
        DataError: a file of the run is damaged (file:line).
    """
    folder = RunFolder.open(root)
    ppo, evaluated = folder.last("ppo") or folder.plan.last("ppo"), folder.last("evaluate")
    card = folder.newest("reward_model")
    fits = {step.name: folder.figures(step, "fit.json") for step in folder.plan.steps if "figures" in step.makes}
    summary = root / "summary.json"
    return Facts(
        name=folder.run.name,
        config={"ppo": ppo.stage.model_dump(mode="json") if ppo else {}},
        synthetic=folder.plan.is_synthetic,
        config_text=(root / CONFIG).read_text(encoding="utf-8"),
        summary=read_json(summary) if summary.exists() else {},
        results={
            "evaluation": folder.figures(evaluated, "evaluation.json"),
            "watched": folder.rows(ppo, "watched.jsonl"),
            "calibration": folder.figures(folder.last("calibration"), "calibration.json"),
            "label": folder.figures(folder.last("label"), "label.json"),
            "tasks": folder.figures(folder.last("tasks"), "tasks.json"),
        },
        steps=folder.rows(ppo, "metrics.jsonl"),
        samples=folder.rows(evaluated, "samples.jsonl"),
        card=read_json(card / "card.json") if card and (card / "card.json").exists() else {},
        training={name: _curve(fit) for name, fit in fits.items() if fit.get("history")},
        rounds=round_rows(folder),
        shift=score_shift(folder),
    )


def _curve(fit: Row) -> list[Row]:
    """Evaluations of a training, and a last line where the clock ended it."""
    cut = fit.get("cut_short")
    return [*fit["history"], *([{"cut_short": cut["done"] / cut["total"], **cut}] if cut else [])]
