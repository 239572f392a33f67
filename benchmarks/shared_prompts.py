"""A PPO iteration where every prompt has n samples: services and Redis and all, against another build of Lodestar.

8 prompts of 192–256 tokens with 8 samples of 64 new tokens each (64 sequences), 4 epochs × 4 minibatches, Llama hidden
256 with 4 layers, float32. The other build is a checkout (``git worktree add ../before 2349edd``), run by this Python.
Alternating; the update alone stands beside the whole iteration.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import LEARNING_RATE, iterations_of, median_ratio, parser, report

BATCH, SAMPLES, TOKENS, PROMPT_TOKENS = 64, 8, 64, (192, 256)


def iterate(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a run's iterations and of their parts, the first left out."""
    from lodestar.crew.inline import run_with
    from lodestar.crew.local import Local
    from lodestar.local.tiny import tiny_config, write_tiny_models

    small = arguments.small
    size: dict[str, Any] = (
        {"hidden": 32, "layers": 2, "vocab": 64} if small else {"hidden": 256, "layers": 4, "vocab": 1024}
    )
    write_tiny_models(
        root / "tiny", **size, eos_bias=-30.0, prompts=64, prompt_tokens=(24, 32) if small else PROMPT_TOKENS
    )
    run = tiny_config(
        root,
        "bench",
        ppo={
            "steps": arguments.iterations + 1,
            "batch": 8 if small else BATCH,
            "samples_per_prompt": 4 if small else SAMPLES,
            "max_tokens": 8 if small else TOKENS,
            "epochs": 4,
            "minibatches": 4,
            "learning_rate": LEARNING_RATE,
            "score": {"offset": "none"},
        },
        policy={"threads": 2},
        learner={"threads": 2, "checkpoint_every": 1000},
        rollout={"in_flight": BATCH},
    )
    rows, seconds = iterations_of(run_with(Local, run))
    parts = {name: statistics.median(row["seconds"][name] for row in rows[1:]) for name in ("collect", "optimise")}
    return {"iteration": statistics.median(seconds), **parts}


def side(tree: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """``iterate`` by the code of a checkout, in a process of its own."""
    paths = [tree, tree / "services", tree / "kernels", tree / "benchmarks"]
    command = [sys.executable, str(Path(__file__).resolve()), "--iterate", "--iterations", str(arguments.iterations)]
    done = subprocess.run(
        [*command, *["--small"] * arguments.small],
        check=True,
        capture_output=True,
        text=True,
        cwd=tree,  # the run's own processes import from there
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(path.resolve()) for path in paths)},
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    options = parser(__doc__, runs=3)
    options.add_argument("--before", type=Path, help="checkout to compare with (default: ours alone)")
    options.add_argument("--iterations", type=int, default=3, help="timed iterations per start")
    options.add_argument("--iterate", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.iterate:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(iterate(Path(folder), arguments)))
        return
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(1 if arguments.small else arguments.runs):
        ours.append(side(Path(__file__).parents[1], arguments))
        if arguments.before:
            theirs.append(side(arguments.before, arguments))
    rows = []
    for part in ours[0]:
        mine, before = ([one[part] for one in runs] for runs in (ours, theirs))
        row: dict[str, Any] = {"part": part, "ours s": statistics.median(mine)}
        if before:
            row |= {"before s": statistics.median(before), "ratio": median_ratio(before, mine)}
            row |= {"goal": 1.8 if part == "iteration" else "-"}
        rows.append(row | {"load": os.getloadavg()[0]})
    report("shared_prompts", rows, arguments, "ratio: the other build's seconds ÷ ours, median of pairs of runs")


if __name__ == "__main__":
    main()
