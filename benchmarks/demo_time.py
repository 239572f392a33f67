"""Wall time of `lodestar demo` of this tree against another checkout's, one after the other, again and again.

    git worktree add ../before 332280e && make -C ../before .venv/.runtime
    python benchmarks/demo_time.py --against ../before

Each tree runs by its own .venv, into a temporary folder. Wall time is of the whole command, imports included; a stage's
is what the tree's summary.json says of it. Options such as seed=2 go to both demos.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import median_ratio, parser, report

HERE = Path(__file__).parents[1]
STAGES = {"baseline": "evaluate", "evaluation": "evaluate", "reward_model": "reward"}
"""A stage of before recipes → the stage that does its work now; best-of-n was taken before PPO."""
TINY = (
    "data.demonstration_rows=600", "data.comparison_rows=600", "data.prompt_rows=300", "evaluation.prompts=48",
    "sft.epochs=1", "reward_model.epochs=1", "ppo.steps=2", "ppo.batch=32", "ppo.max_tokens=16",
)  # fmt: skip
"""Of --small, in words that trees of before recipes know too."""


@dataclass(frozen=True)
class Tree:
    """A checkout with an environment of its own."""

    root: Path

    def check(self) -> None:
        """
        Raises:
            SystemExit: it has no environment, or one that runs another tree.
        """
        if not self._bin("lodestar").exists():
            raise SystemExit(f"{self.root} has no .venv with lodestar in it: make -C {self.root} .venv/.runtime")
        code = "import lodestar; print(lodestar.__file__)"
        command = [str(self._bin("python")), "-P", "-c", code]
        found = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        if found.resolve().parents[1] != self.root.resolve():
            raise SystemExit(f"{self.root}/.venv runs {found.parents[1]}: make -C {self.root} clean .venv/.runtime")

    def commit(self) -> str:
        """What is checked out, ``-dirty`` where it was changed since."""
        command = ["git", "-C", str(self.root), "describe", "--always", "--dirty"]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip() or "no commit"

    def demo(self, options: Sequence[str]) -> dict[str, Any]:
        """Runs it once: ``{"wall": seconds, "stages": {name: seconds}, "win_rate": {value, low, high, n}}``."""
        with tempfile.TemporaryDirectory() as runs:
            command = [str(self._bin("lodestar")), "demo", "--plain", f"runs_dir={runs}", *options]
            began = time.perf_counter()
            done = subprocess.run(command, cwd=self.root, check=False, capture_output=True, text=True)
            wall = time.perf_counter() - began
            if done.returncode:
                last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
                raise SystemExit(f"the demo of {self.root} ended with exit code {done.returncode}:\n{last}")
            summary = json.loads((Path(runs) / "demo" / "summary.json").read_text())
        stages: dict[str, float] = {}
        for name, seconds in summary["seconds"].items():
            stages[STAGES.get(name, name)] = stages.get(STAGES.get(name, name), 0.0) + seconds
        rate = summary["win_rate"]
        return {"wall": wall, "stages": stages, "win_rate": {key: rate[key] for key in ("value", "low", "high", "n")}}

    def _bin(self, name: str) -> Path:
        return self.root / ".venv" / "bin" / name


def compared(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for the whole, for every stage that both tell of, and for the win rates; ratios are of pairs."""
    series = {"whole, s": [[run["wall"] for run in runs] for runs in (ours, theirs)]}
    for stage in ours[0]["stages"]:
        if all(stage in run["stages"] for run in (*ours, *theirs)):
            series[f"{stage}, s"] = [[run["stages"][stage] for run in runs] for runs in (ours, theirs)]
    series["win rate"] = [[run["win_rate"]["value"] for run in runs] for runs in (ours, theirs)]
    return [
        {
            "what": what,
            "ours": statistics.median(mine),
            "other's": statistics.median(others),
            "ratio": median_ratio(mine, others),
        }
        for what, (mine, others) in series.items()
    ]


def main() -> None:
    options = parser(__doc__, runs=3)
    options.add_argument("--against", type=Path, required=True, metavar="TREE", help="the other checkout")
    options.add_argument("options", nargs="*", metavar="KEY=VALUE", help="of both demos")
    arguments = options.parse_args()
    if arguments.runs < 3 and not arguments.small:
        options.error("--runs: a median wants 3 pairs at least")
    runs = 1 if arguments.small else arguments.runs
    demo = [*(TINY if arguments.small else ()), *arguments.options]
    trees = [Tree(HERE), Tree(arguments.against)]
    for tree in trees:
        tree.check()
    figures = [[tree.demo(demo) for tree in trees] for _ in range(runs)]
    ours, theirs = ([pair[side] for pair in figures] for side in (0, 1))
    notes = f"ours {trees[0].commit()} ÷ the other's {trees[1].commit()}, medians of {runs}; ratios of pairs"
    report("demo_time", compared(ours, theirs), arguments, notes, runs={"ours": ours, "other's": theirs})


if __name__ == "__main__":
    main()
