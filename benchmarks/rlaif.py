"""What a judge's labels are worth: one that learned from 2,000 comparisons labels 20,000 fresh pairs, by gold.

    python benchmarks/rlaif.py --seeds 0 1 2 3 4       # about ten minutes per seed on two cores
    python benchmarks/rlaif.py --small                 # a minute; proves that the script runs

Three methods on the synthetic world have the same demonstrations, the same samples of the SFT model, the same PPO and
the same held-out prompts, and are judged by the hidden gold reward against the SFT model of their seed:

    people 2,000     a reward model of 2,000 pairs that the panel compared
    people 20,000    one of 20,000 pairs
    judge            the first one's reward model labels 20,000 pairs, softly; the reward model learns from these alone

What runs of a seed make alike is made once (lodestar.compare). Runs lie in ``--runs-dir``; a killed benchmark goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from harness import parser, report

from lodestar.compare.conduct import conduct
from lodestar.compare.methods import Comparison, Entry
from lodestar.compare.runs import read_outcome
from lodestar.compare.write import write_comparison
from lodestar.config import RunConfig
from lodestar.files import read_json
from lodestar.local.view import view_for
from lodestar.recipe.plan import plan

FULL: dict[str, Any] = {
    "few": 2000,
    "many": 20_000,
    "sample": {"n": 4, "prompts": 10_000},
    "data": {"demonstration_rows": 6000, "comparison_rows": 100, "prompt_rows": 12_000, "evaluation_rows": 512},
    "sft": {"batch_tokens": 2048, "epochs": 4, "learning_rate": 2e-3},
    "reward": {"batch_tokens": 2048, "epochs": 3, "learning_rate": 6e-4, "score_tokens": "all"},
    "ppo": {
        "steps": 60,
        "batch": 128,
        "learning_rate": 4e-4,
        "critic": {"init": "policy", "learning_rate": 1e-3},
        "kl": {"coefficient": 0.25},
    },
    "architecture": {"hidden_size": 96, "intermediate_size": 256, "layers": 3, "heads": 4, "kv_heads": 4},
}
SMALL: dict[str, Any] = {
    "few": 40,
    "many": 120,
    "sample": {"n": 3, "prompts": 60},
    "data": {"demonstration_rows": 120, "comparison_rows": 60, "prompt_rows": 96, "evaluation_rows": 16},
    "sft": {"batch_tokens": 2048, "epochs": 1},
    "reward": {"batch_tokens": 2048, "epochs": 1},
    "ppo": {"steps": 2, "batch": 8},
    "architecture": {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "kv_heads": 2},
}
"""As benchmarks/rounds.py has them; and small enough for a check."""
TOKENS = 36


def main() -> None:
    """Runs what is not done, seed by seed, and compares."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", help="default 0 1 2 3 4; with --small 0")
    options.add_argument("--runs-dir", type=Path, default=Path("runs/benchmark-rlaif"))
    arguments = options.parse_args()
    sizes = SMALL if arguments.small else FULL
    folder = arguments.runs_dir / "small" if arguments.small else arguments.runs_dir
    seeds = arguments.seeds or ([0] if arguments.small else [0, 1, 2, 3, 4])
    asked = Comparison("rlaif", folder, tuple(entries(folder, sizes, seeds)))
    went = conduct(asked, view_for(True), lambda line: print(line, file=sys.stderr, flush=True))
    if went.failed:
        raise SystemExit("\n".join(f"{run}: {error}" for run, error in went.failed.items()))
    found = write_comparison(folder, "rlaif", [read_outcome(entry.root, entry.method) for entry in asked.entries])
    rows = [{key: row[key] for key in ("method", "win_rate", "low", "high", "seeds", "kl")} for row in found["rows"]]
    report("rlaif", rows, arguments, told(asked.entries, sizes, arguments))


def entries(folder: Path, sizes: Mapping[str, Any], seeds: Sequence[int]) -> list[Entry]:
    """Every run, seed by seed."""
    found = []
    for seed in seeds:
        for method, stages in methods(sizes).items():
            name = f"{method.replace(' ', '-').replace(',', '')}-s{seed}"
            architecture = {**sizes["architecture"], "context_tokens": 96}
            tree = {"name": name, "runs_dir": str(folder), "seed": seed, "model": {"architecture": architecture}}
            run = RunConfig.model_validate(tree | {"stages": stages})
            found.append(Entry(method, seed, run, plan(run)))
    return found


def methods(sizes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Method → stages; equal names are equal work, which runs of a seed share."""
    begun = {
        "data": {**sizes["data"], "max_prompt_tokens": 32},
        "sft": sizes["sft"],
        "sample": {**sizes["sample"], "max_tokens": TOKENS},
    }
    learned = {"kind": "reward", **sizes["reward"], "use": {"policy": "sft/policy"}, "feedback": "newest"}
    ended = {
        "ppo": {"max_tokens": TOKENS, "running": {"every": 0}, **sizes["ppo"]},
        "evaluate": {"best_of": [], "temperatures": []},
    }
    few, many = ({"kind": "label", "budget": sizes[one]} for one in ("few", "many"))
    judged = {"kind": "label", "by": "judge", "judge": {}, "budget": sizes["many"]}
    return {
        f"people {sizes['few']:,}": {**begun, "people": few, "judge": learned, **ended},
        f"people {sizes['many']:,}": {**begun, "more": many, "reward": learned, **ended},
        "judge": {**begun, "people": few, "judge": learned, "labels": judged, "reward": learned, **ended},
    }


def told(entries: Sequence[Entry], sizes: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    """How far the judge agrees with the panel on pairs of the data that nobody learned from."""
    judged = [read_json(one.root / "labels" / "figures" / "label.json") for one in entries if one.method == "judge"]
    shared = [one["shared"] for one in judged]
    share, kappa = (fmean(one[name]["value"] for one in shared) for name in ("agreement", "kappa"))
    return (
        f"win rates against the SFT model, {len(judged)} seeds; the judge of {sizes['few']:,} labels agrees with the "
        f"panel on {share:.1%} of {sum(one['n'] for one in shared)} pairs (κ {kappa:.2f})"
    )


if __name__ == "__main__":
    main()
