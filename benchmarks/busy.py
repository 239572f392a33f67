"""A machine that is not alone: training and PPO beside one process that keeps a core busy, against undisturbed.

Training: optimizer steps of a language model on packed rows, by a process of its own, with as many threads as there
are cores, that follows what the machine has free, and with the same threads fixed. PPO: an iteration through gRPC and
Redis. Undisturbed and beside alternate; the machine's load of one minute stands beside each row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import LEARNING_RATE, iterations_of, median_ratio, parser, report

SIZES = {"demo's model": (96, 3), "hidden 256, 4 layers": (256, 4)}
ROWS, ROW_TOKENS = 32, 64


def train(folder: Path, seconds: float, *, fixed: bool) -> float:
    """Seconds of an optimizer step, the mean over about ``seconds`` after a warm-up."""
    import torch

    from lodestar.cores import compute_threads
    from lodestar.model.fused import fuse
    from lodestar.model.loading import load_causal_lm
    from lodestar.model.packed import PackedBatch, head_loss, response_states

    compute_threads(len(os.sched_getaffinity(0)), fixed=fixed)
    model = load_causal_lm(folder / "policy")
    fuse(model)
    noise = torch.Generator().manual_seed(0)
    rows = torch.randint(3, model.config.vocab_size, (ROWS, ROW_TOKENS), generator=noise).tolist()
    batch = PackedBatch.pack(rows, [1] * ROWS, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        states_RH = response_states(model, batch)
        loss, _ = head_loss(
            model, states_RH, batch.targets_R, lambda _, logprobs_C, __: -logprobs_C.mean(), temperature=1.0
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(), step()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        step()
        steps += 1
    return (time.perf_counter() - began) / steps


def trained(folder: Path, seconds: float, *, fixed: bool) -> float:
    """``train`` in a process of its own."""
    command = [sys.executable, __file__, "--train", str(folder), "--seconds", str(seconds), *["--fixed"] * fixed]
    environment = {"GOMP_SPINCOUNT": "100000", **os.environ}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def ppo_iteration(root: Path, arguments: argparse.Namespace) -> float:
    """Median seconds of an iteration of a run of its own below ``root``, the first left out."""
    from lodestar.config import RunConfig
    from lodestar.crew.inline import run_with
    from lodestar.crew.local import Local
    from lodestar.local.tiny import tiny_config

    batch, tokens = (8, 8) if arguments.small else (64, 64)
    method: dict[str, Any] = {"steps": 3, "batch": batch, "max_tokens": tokens, "epochs": 4, "minibatches": 4}
    run: RunConfig = tiny_config(
        root,
        f"bench-{time.monotonic_ns()}",
        ppo={**method, "learning_rate": LEARNING_RATE, "score": {"offset": "none"}},
        policy={"threads": 2},
        learner={"threads": 2, "checkpoint_every": 1000},
        rollout={"in_flight": batch},
    )
    _, seconds = iterations_of(run_with(Local, run))
    return statistics.median(seconds)


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """With a process that keeps one core busy, or without."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.5)
            yield
        finally:
            other.kill()


def training_row(case: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Following and fixed, undisturbed and beside."""
    figures: dict[tuple[bool, bool], list[float]] = {}
    for _ in range(arguments.runs):
        for fixed in (False, True):
            for beside in (False, True):
                with busy(beside):
                    seconds = trained(folder, arguments.seconds, fixed=fixed)
                figures.setdefault((fixed, beside), []).append(seconds)
    ours, ours_beside, fixed, fixed_beside = (
        figures[key] for key in ((False, False), (False, True), (True, False), (True, True))
    )
    return {
        "case": case,
        "alone s": statistics.median(ours),
        "beside s": statistics.median(ours_beside),
        "ratio": median_ratio(ours_beside, ours),
        "goal": 2.5,
        "fixed alone s": statistics.median(fixed),
        "fixed beside s": statistics.median(fixed_beside),
        "fixed beside ÷ ours": median_ratio(fixed_beside, ours_beside),
        "quiet speed": median_ratio(fixed, ours),
        "load": os.getloadavg()[0],
    }


def ppo_row(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The services, undisturbed and beside."""
    alone, beside = [], []
    for _ in range(arguments.runs):
        alone.append(ppo_iteration(root, arguments))
        with busy(True):
            beside.append(ppo_iteration(root, arguments))
    return {
        "case": "PPO iteration",
        "alone s": statistics.median(alone),
        "beside s": statistics.median(beside),
        "ratio": median_ratio(beside, alone),
        "goal": 2.5,
        **dict.fromkeys(("fixed alone s", "fixed beside s", "fixed beside ÷ ours", "quiet speed"), "-"),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    from lodestar.local.tiny import write_tiny_models

    options = parser(__doc__, runs=3)
    options.add_argument("--seconds", type=float, default=8.0, help="of each training run (default 8)")
    options.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--fixed", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.train:
        print(train(arguments.train, arguments.seconds, fixed=arguments.fixed))
        return
    if arguments.small:
        arguments.runs, arguments.seconds = 1, 0.5
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (case, (hidden, layers)) in enumerate(SIZES.items()):
            root = Path(folder) / str(number)
            write_tiny_models(root / "tiny", hidden=hidden, layers=layers, vocab=1024, prompt_tokens=(16, 48))
            rows.append(training_row(case, root / "tiny", arguments))
        rows.append(ppo_row(root, arguments))
    notes = (
        "ratio: beside ÷ alone, goal ≤ 2.5; quiet speed: fixed ÷ following, both alone, goal ≥ 0.97; medians of pairs"
    )
    report("busy", rows, arguments, notes)


if __name__ == "__main__":
    main()
