"""Three rounds of 4,000 comparisons against one round of 12,000, on the synthetic world, by gold.

    python benchmarks/rounds.py --seeds 0 1 2 3 4       # a quarter of an hour per seed on two cores
    python benchmarks/rounds.py --small                 # a minute or two; proves that the script runs

Both sides have the same demonstrations, pool of prompts, number of labels (all three pairs of three replies to a
prompt, by the panel), PPO steps and decoding, and are judged by the hidden gold reward on the same held-out prompts.
What differs is when people are asked: the later rounds' pairs are of a policy that has learned from the earlier ones'
labels. Each round draws its prompts from the pool anew. Its reward model starts from the SFT model and learns from all
labels so far; PPO goes on from the round before, which is its reference.

Runs lie in ``--runs-dir``; a killed benchmark goes on with the stage that it was in, and what is done is only read.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from harness import parser, report
from scipy.stats import t

from lodestar.evaluation import win_rate
from lodestar.files import read_jsonl

LODESTAR = Path(sys.executable).with_name("lodestar")
ARMS = {"three rounds": 3, "one round": 1}
FULL = {
    "labels": 11_997,
    "steps": 60,
    "data": {"demonstration_rows": 6000, "comparison_rows": 100, "prompt_rows": 12_000, "evaluation_rows": 512},
    "sft": {"batch_tokens": 2048, "epochs": 4, "learning_rate": 2e-3},
    "reward": {"batch_tokens": 2048, "epochs": 3, "learning_rate": 6e-4, "score_tokens": "all"},
    "ppo": {
        "batch": 128,
        "learning_rate": 4e-4,
        "critic": {"init": "policy", "learning_rate": 1e-3},
        "kl": {"coefficient": 0.25},
    },
    "architecture": {"hidden_size": 96, "intermediate_size": 256, "layers": 3, "heads": 4, "kv_heads": 4},
}
SMALL = {
    "labels": 90,
    "steps": 3,
    "data": {"demonstration_rows": 120, "comparison_rows": 60, "prompt_rows": 96, "evaluation_rows": 16},
    "sft": {"batch_tokens": 2048, "epochs": 1},
    "reward": {"batch_tokens": 2048, "epochs": 1},
    "ppo": {"batch": 8},
    "architecture": {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "kv_heads": 2},
}
"""As the demo's, but for what the clock would cut short; and small enough for a check."""
TOKENS = 36


def main() -> None:
    """Runs what is not done, seed by seed and side by side."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", help="default 0 1 2 3 4; with --small 0 1")
    options.add_argument("--runs-dir", type=Path, default=Path("runs/benchmark-rounds"))
    arguments = options.parse_args()
    seeds = arguments.seeds or ([0, 1] if arguments.small else [0, 1, 2, 3, 4])
    folder = arguments.runs_dir / "small" if arguments.small else arguments.runs_dir
    rows: list[Mapping[str, Any]] = []
    for seed in seeds:
        gold = {name: golds(trained(folder, rounds, seed, arguments)) for name, rounds in ARMS.items()}
        rows.append(row_of(seed, gold))
        print(rows[-1], flush=True)
    report("rounds", [*rows], arguments, interval(rows))


def trained(folder: Path, rounds: int, seed: int, arguments: argparse.Namespace) -> Path:
    """The run of one side, conducted to its end.

    Raises:
        CalledProcessError: it failed; it says so itself.
    """
    name = f"rounds-{rounds}-seed-{seed}"
    config = folder / f"{name}.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    tree = configuration(rounds, seed, SMALL if arguments.small else FULL)
    config.write_text(yaml.safe_dump({"name": name, "runs_dir": str(folder), **tree}, sort_keys=False))
    resume = ["--resume"] if (folder / name / "config.yaml").exists() else []
    subprocess.run([LODESTAR, "run", config, "--plain", *resume], check=True, stdout=sys.stderr)
    return folder / name


def configuration(rounds: int, seed: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """One side's run: labels and PPO steps are shared out over the rounds.

    The panel's few comparisons of the data stage, which it cannot do without, are the same on both sides.
    """
    inside = {
        "sample": {"n": 3, "prompts": sizes["labels"] // rounds // 3, "max_tokens": TOKENS},
        "label": {"budget": sizes["labels"] // rounds},
        "reward": sizes["reward"],
        "ppo": {"steps": sizes["steps"] // rounds, "max_tokens": TOKENS, "running": {"every": 0}, **sizes["ppo"]},
    }
    return {
        "seed": seed,
        "recipe": "rounds",
        "model": {"architecture": {**sizes["architecture"], "context_tokens": 96}},
        "stages": {
            "data": {**sizes["data"], "max_prompt_tokens": 32},
            "sft": sizes["sft"],
            "rounds": {"n": rounds, "stages": inside},
            "evaluate": {"best_of": [], "temperatures": [0.6]},
        },
    }


def golds(run: Path) -> dict[str, float]:
    """Gold of the final policy's reply, by prompt."""
    return {row["prompt"]: row["after"]["gold"] for row in read_jsonl(run / "evaluate" / "figures" / "samples.jsonl")}


def row_of(seed: int, gold: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Both sides' mean gold and how often three rounds win, on the prompts that they share, which is all."""
    several, one = gold["three rounds"], gold["one round"]
    if several.keys() != one.keys():
        raise SystemExit(f"seed {seed}: the sides were judged on different prompts")
    rate = win_rate([several[prompt] for prompt in one], [*one.values()])
    means = fmean(several.values()), fmean(one.values())
    return {
        "seed": seed,
        "gold, three rounds": means[0],
        "gold, one round": means[1],
        "difference": means[0] - means[1],
        "three rounds win": rate.value,
        "of prompts": rate.n,
    }


def interval(rows: Sequence[Mapping[str, Any]]) -> str:
    """Student's 95% interval of the mean difference over seeds: a seed is one observation, and both sides share it."""
    differences = [row["difference"] for row in rows]
    if len(differences) < 2:
        return f"difference {differences[0]:+.3f}; an interval needs two seeds"
    half = float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / math.sqrt(len(differences))
    mean = fmean(differences)
    verdict = "beat" if mean > half else "lose to" if mean < -half else "cannot be told apart from"
    return (
        f"three rounds {verdict} one round: {mean:+.3f} of gold, paired 95% interval {mean - half:+.3f} to "
        f"{mean + half:+.3f}, {len(differences)} seeds"
    )


if __name__ == "__main__":
    main()
