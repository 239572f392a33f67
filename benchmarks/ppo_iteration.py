"""A PPO iteration, services and Redis and all, against TRL 1.12's PPOTrainer on the same weights and prompts.

64 prompts of 16–48 tokens, 4 epochs × 4 minibatches = 16 optimizer steps on both sides, float32, 2 cores:
(a) 64 new tokens always; (b) responses that end by themselves after about 26 of at most 64.

TRL lives in an environment of its own:
    python -m venv .venv-peers && .venv-peers/bin/pip install -r requirements-peers.txt
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from harness import LEARNING_RATE, iterations_of, memory_bytes, parser, report

from lodestar.config import RunConfig
from lodestar.crew.inline import run_with
from lodestar.crew.local import Local
from lodestar.local.tiny import tiny_config, write_tiny_models

EOS_BIAS = {"always 64 tokens": -30.0, "natural lengths": 3.6}
"""Added to EOS's logit. 3.6 makes it about 3.4% of the probability at every token."""


def config(root: Path, arguments: argparse.Namespace) -> RunConfig:
    """Our side's configuration: like for like with the peer's."""
    return tiny_config(
        root,
        "bench",
        ppo={
            "steps": arguments.iterations + 1,
            "batch": arguments.batch,
            "max_tokens": arguments.tokens,
            "epochs": 4,
            "minibatches": 4,
            "learning_rate": LEARNING_RATE,
            "score": {"offset": "none"},
        },
        policy={"threads": 2},
        learner={"threads": 2, "checkpoint_every": 1000},
        rollout={"in_flight": arguments.batch},
    )


def write_models(root: Path, eos_bias: float, *, small: bool) -> None:
    """``root/tiny``: our start model, reward model and prompts; ``root/peer``: the same for the peer."""
    tiny, peer = root / "tiny", root / "peer"
    size = {"hidden": 32, "layers": 2, "vocab": 64} if small else {"hidden": 256, "layers": 4, "vocab": 1024}
    prompts = write_tiny_models(tiny, **size, eos_bias=eos_bias, prompt_tokens=(16, 48))
    for model in ("policy", "reward"):
        shutil.copytree(tiny / model, peer / model)
    (peer / "prompts.json").write_text(json.dumps(prompts))


def ours(root: Path, arguments: argparse.Namespace) -> tuple[list[float], int, dict[str, float]]:
    """Seconds of each iteration after the first, memory of all services, and mean seconds per stage."""
    memory, looked = 0, 0.0

    def watch(crew: Local) -> None:
        nonlocal memory, looked
        if time.monotonic() > looked + 1:  # looking costs time too
            looked = time.monotonic()
            memory = max(memory, memory_bytes(*crew.pids()))

    rows, seconds = iterations_of(run_with(Local, config(root, arguments), look=watch))
    stages = {
        name: statistics.fmean(row["seconds"][name] for row in rows[1:]) for name in ("collect", "optimise", "publish")
    }
    return seconds, memory, stages


def theirs(root: Path, arguments: argparse.Namespace, *, natural: bool) -> tuple[list[float], int]:
    """The peer's side, in its own environment."""
    script = Path(__file__).parent / "peers" / "trl_ppo.py"
    command = [str(arguments.peer_python), str(script), str(root / "peer"), "--iterations", str(arguments.iterations)]
    command += ["--batch", str(arguments.batch), "--tokens", str(arguments.tokens)]
    command += ["--learning-rate", str(LEARNING_RATE)] + ["--stop-at-eos"] * natural
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    return figures["seconds"], figures["bytes"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--peer-python", type=Path, default=Path(".venv-peers/bin/python"))
    options.add_argument("--iterations", type=int, default=3, help="timed iterations per start")
    options.add_argument("--ours-only", action="store_true", help="no peer: for profiling")
    arguments = options.parse_args()
    arguments.batch, arguments.tokens = (8, 8) if arguments.small else (64, 64)
    rows = []
    for case, bias in EOS_BIAS.items():
        mine, peer, ratios, stages = [], [], [], {}
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                write_models(root, bias, small=arguments.small)
                seconds, memory, stages = ours(root, arguments)
                mine += seconds
                if not arguments.ours_only:
                    peer_seconds, peer_memory = theirs(root, arguments, natural=bias > 0)
                    peer += peer_seconds
                    ratios.append(statistics.median(peer_seconds) / statistics.median(seconds))
        row = {"case": case, "ours s": statistics.median(mine), **{f"{k} s": v for k, v in stages.items()}}
        row |= {"ours MB": memory / 1e6}
        if peer:
            row |= {"TRL s": statistics.median(peer), "TRL MB": peer_memory / 1e6, "ratio": statistics.median(ratios)}
        rows.append(row)
    report("ppo_iteration", rows, arguments, "ratio: TRL's seconds ÷ ours, median over pairs of starts")


if __name__ == "__main__":
    main()
