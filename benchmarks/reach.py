"""How far the demo gets over seeds, and that it gets nowhere on labels that say nothing.

    python benchmarks/reach.py --seeds 1 2 3 4 5     # five minutes per seed on two cores with nothing beside them
    python benchmarks/reach.py --small               # a minute; proves that the script runs

A seed is one observation: it draws another corpus, other weights and other samples. The control is the first seed with
each label of the comparisons turned with probability ½. Runs lie in ``--runs-dir``; what is done is only read, and a
killed benchmark goes on with the stage that it was in. A resumed stage's wall time is of
its last start alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import mean_with_interval, parser, report

from lodestar.evaluation import clopper_pearson
from lodestar.files import read_json

HERE = Path(__file__).parents[1]
LODESTAR = Path(sys.executable).with_name("lodestar")
DEMO = HERE / "lodestar" / "local" / "demo.yaml"
SMALL = (
    "stages.data.demonstration_rows=600", "stages.data.comparison_rows=600", "stages.data.evaluation_rows=48",
    "stages.sft.epochs=1", "stages.reward.epochs=1", "stages.ppo.steps=2", "stages.ppo.batch=32",
)  # fmt: skip
SHUFFLED = "stages.data.shuffle_labels=true"
RIVALS = ("sft_temperature", "sft_greedy", "sft_on_best", "best_of_8")
GOALS = {"sft_temperature": 0.70, "greedy": 0.75}
"""What the mean over seeds should reach: against the SFT model's best temperature, and greedy against greedy."""


def main() -> None:
    """Runs what is not done, seed by seed."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", help="default 1 2 3 4 5; with --small 1 2")
    options.add_argument("--runs-dir", type=Path, default=Path("runs/benchmark-reach"))
    options.add_argument("options", nargs="*", help="over the demo's: stages.ppo.steps=30")
    arguments = options.parse_args()
    seeds = arguments.seeds or ([1, 2] if arguments.small else [1, 2, 3, 4, 5])
    folder = (arguments.runs_dir / "small" if arguments.small else arguments.runs_dir).absolute()
    told = [*(SMALL if arguments.small else ()), *arguments.options]
    rows = [row_of(seed, conducted(folder, f"seed-{seed}", seed, told)) for seed in seeds]
    control = row_of(seeds[0], conducted(folder, "shuffled", seeds[0], [*told, SHUFFLED]))
    report("reach", rows, arguments, in_words(rows, control), control=control, over_seeds=over_seeds(rows), goals=GOALS)


def conducted(folder: Path, name: str, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """summary.json of the demo with these options, run to its end.

    Raises:
        CalledProcessError: it failed; it says so itself.
    """
    resume = ["--resume"] if (folder / name / "config.yaml").exists() else []
    told = [f"name={name}", f"seed={seed}", f"runs_dir={folder}", *options]
    if not (folder / name / "summary.json").exists():
        subprocess.run([LODESTAR, "run", DEMO, *told, "--plain", *resume], check=True, stdout=sys.stderr)
    found: dict[str, Any] = read_json(folder / name / "summary.json")
    return found


def row_of(seed: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A run's figures: how often the policy wins against SFT at temperature 1 and against each rival."""
    against = {name: summary["rivals"][name]["against_policy"]["value"] for name in RIVALS}
    return {
        "seed": seed,
        "prompts": summary["win_rate"]["n"],
        "win_rate": summary["win_rate"]["value"],
        **against,
        "greedy": summary["greedy"]["value"],
        "kl": summary["policy"]["kl"],
        "gold": summary["policy"]["judgement"],
        "reward_model": summary["reward_model"]["accuracy"],
        "verdict": summary["learned"]["verdict"],
        "cut_short": ", ".join(summary["cut_short"]) or "-",
        "wall_seconds": summary["wall_seconds"],
    }


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Each share's mean with Student's 95% interval over seeds, or that of all prompts together where that is wider:
    seeds that agree to the last prompt are no certainty.
    """
    found = {}
    for name in ("win_rate", *RIVALS, "greedy"):
        seeds = mean_with_interval([row[name] for row in rows])
        n = sum(row["prompts"] for row in rows)
        prompts = clopper_pearson(seeds.value * n, n)
        low, high = min(seeds.low, prompts.low), max(seeds.high, prompts.high)
        found[name] = {"value": seeds.value, "low": max(0.0, low), "high": min(1.0, high)}
    return found


def in_words(rows: Sequence[Mapping[str, Any]], control: Mapping[str, Any]) -> str:
    """The policy's wins with intervals over seeds, then the control's."""
    lines = [
        f"{name}: {rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        + (f", goal {GOALS[name]:.2f}" if name in GOALS else "")
        for name, rate in over_seeds(rows).items()
    ]
    lines.append(
        f"shuffled labels: reward model {control['reward_model']:.3f}, win rate {control['win_rate']:.3f}, "
        f"greedy {control['greedy']:.3f}, gold {control['gold']:.2f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
