"""Peak memory of a learner's process: PPO steps and a checkpoint of a 42M-parameter policy and critic.

Hidden 512, 8 layers, vocabulary 8192, 16 sequences of 16–48 prompt and 32 new tokens, 4 × 4 minibatches, float32, one
thread. What the process alone holds (USS), looked at 20 times a second, against another build of Lodestar (a checkout:
``git worktree add ../before 2349edd``) run by this Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from harness import LEARNING_RATE, memory_bytes, parser, report
from lodestar_services.learner.checkpoint import Checkpoints
from lodestar_services.learner.trainer import Trainer

from lodestar.config import PpoConfig
from lodestar.local.tiny import llama, tokenizer
from lodestar.model.attention import NAME
from lodestar.model.heads import scalar_from_causal_lm
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion

BATCH, TOKENS = 16, 32


def rollouts(vocabulary: int) -> list[Rollout]:
    """A batch with random tokens."""
    noise = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (count,), generator=noise).tolist())

    flat = (-9.0,) * TOKENS
    return [
        Rollout(
            Ticket("bench", "a", 0, i, Prompt(f"p{i}", "", ids(16 + 2 * i)), 1, 1, 0, TOKENS, 1.0),
            WeightVersion("a", 0, ""),
            (Sample(ids(TOKENS), flat, flat, float(i), FinishReason.LENGTH),),
            "bench",
        )
        for i in range(BATCH)
    ]


def peak(*, small: bool) -> int:
    """Bytes at most while two steps and a checkpoint are done."""
    torch.set_num_threads(1)
    size: dict[str, Any] = {"hidden": 512, "layers": 8, "vocab": 8192}
    policy = llama(**(size | ({"hidden": 32, "layers": 2, "vocab": 64} if small else {})), eos_bias=0.0)
    policy.config._attn_implementation = NAME
    vocabulary = int(policy.config.vocab_size)
    critic = scalar_from_causal_lm(policy, tokenizer(vocabulary), 1)
    method = {"steps": 9, "batch": BATCH, "max_tokens": TOKENS, "epochs": 4, "minibatches": 4}
    config = PpoConfig.model_validate({**method, "learning_rate": LEARNING_RATE, "score": {"offset": "none"}})
    trainer, batch = Trainer(config, policy, critic, seed=1), rollouts(vocabulary)
    most, done = memory_bytes(os.getpid()), threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, memory_bytes(os.getpid()))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        for _ in range(2):
            trainer.step(batch)
        with tempfile.TemporaryDirectory() as folder:
            Checkpoints(Path(folder), 1).save(2, {"trainer": trainer.state_dict()})
    finally:
        done.set()
        watching.join()
    return most


def side(tree: Path, arguments: argparse.Namespace) -> int:
    """``peak`` by the code of a checkout, in a process of its own."""
    paths = [str((tree / name).resolve()) for name in (".", "services", "kernels", "benchmarks")]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--peak", *["--small"] * arguments.small],
        check=True,
        capture_output=True,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__, runs=3)
    options.add_argument("--before", type=Path, help="checkout to compare with (default: ours alone)")
    options.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.peak:
        print(peak(small=arguments.small))
        return
    ours: list[int] = []
    theirs: list[int] = []
    for _ in range(1 if arguments.small else arguments.runs):
        ours.append(side(Path(__file__).parents[1], arguments))
        if arguments.before:
            theirs.append(side(arguments.before, arguments))
    row: dict[str, Any] = {"ours MB": statistics.median(ours) / 1e6}
    if theirs:
        row["before MB"] = statistics.median(theirs) / 1e6
        row |= {"ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), "goal": 0.6}
    report("learner_memory", [row], arguments, "ratio: our peak ÷ the other build's, median of pairs of runs")


if __name__ == "__main__":
    main()
