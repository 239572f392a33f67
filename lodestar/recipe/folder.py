"""A run's folder as others find it: its configuration, plan and artifacts, from config.yaml alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodestar.config.load import load_config
from lodestar.config.run import RunConfig
from lodestar.errors import FailedPrecondition
from lodestar.files import read_json, read_jsonl
from lodestar.recipe.plan import Plan, Step, plan
from lodestar.recipe.store import Store

CONFIG = "config.yaml"
PEOPLE = "feedback"
"""What the people whom the run asked have said; --fresh leaves it, for it cannot be made again."""
_OLD = ("state.json", "models")
"""What runs of before recipes have."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``RunFolder.open(Path("runs/demo")).model()`` is the newest model that the run made."""

    root: Path
    run: RunConfig
    plan: Plan
    store: Store

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """
        Raises:
            FailedPrecondition: it is no run's folder, or one of an older version.
            ConfigError: its config.yaml is damaged.
        """
        refuse_old(root)
        if not (root / CONFIG).exists():
            raise FailedPrecondition(f"{root} is not a run's folder: it has no {CONFIG}")
        run = load_config(root / CONFIG)
        return cls(root, run, plan(run), Store(root, run))

    def done(self) -> list[Step]:
        """Steps that are sealed, in order."""
        return [step for step in self.plan.steps if self.store.seal_of(step.name)]

    def last(self, kind: str) -> Step | None:
        """The last stage of a kind that has begun."""
        begun = [s for s in self.plan.steps if s.kind == kind and (self.root / s.name).exists()]
        return begun[-1] if begun else None

    def newest(self, kind: str) -> Path | None:
        """Where the newest finished artifact of a kind lies."""
        made = [f"{step.name}/{port}" for step in self.done() for port, one in step.makes.items() if one == kind]
        return self.store.path(made[-1]) if made else None

    def model(self) -> Path | None:
        """The newest model that a stage has finished."""
        return self.newest("model")

    def rows(self, step: Step | None, name: str) -> list[dict[str, Any]]:
        """Lines of a file of a stage's figures; none where there is no such file yet.

        Raises:
            DataError: the file is damaged.
        """
        path = self._figures(step, name)
        return read_jsonl(path) if path else []

    def figures(self, step: Step | None, name: str) -> dict[str, Any]:
        """A JSON file of a stage's figures; empty where there is none yet; raises as :meth:`rows`."""
        path = self._figures(step, name)
        return read_json(path) if path else {}

    def seals(self) -> Iterator[tuple[Step, dict[str, Any]]]:
        """The finished steps with their seals."""
        for step in self.done():
            yield step, self.store.seal_of(step.name)

    def _figures(self, step: Step | None, name: str) -> Path | None:
        path = self.store.path(f"{step.name}/figures") / name if step else None
        return path if path and path.exists() else None


def people_of(folder: Path) -> Path:
    """Where a feedback service keeps what people said: in a run's folder below it, in any other there."""
    return folder / PEOPLE if (folder / CONFIG).exists() else folder


def refuse_old(root: Path) -> None:
    """
    Raises:
        FailedPrecondition: the folder is a run of a version before recipes.
    """
    if (root / CONFIG).exists() and any((root / name).exists() for name in _OLD):
        raise FailedPrecondition(
            f"{root} is a run of an older version, whose stages had no seals: finish it with that version, start it "
            "under another name=…, or --fresh throws it away (its models are folders: model.path takes them)"
        )
