"""A DPO step against TRL 1.16's DPOTrainer on the same model and rows: prompts of 64–192 tokens, two completions of
16–64 each, float32, 2 threads.

Each side trains in a process of its own, one after the other, and tells its own peak memory (ru_maxrss), wall and
processor time of every step; the latter says what other work beside it hides. Ours asks a
reference server once for every completion's log-prob: where the peer computes its reference in every step, our share of
that time is counted with our step, and the server's own memory stands beside the trainer's. Rows differ: the peer's as
its defaults are (gradient checkpointing), without checkpointing, and without checkpointing and with the reference
precomputed on both sides.

TRL lives in an environment of its own:
    python -m venv .venv-peers-dpo && .venv-peers-dpo/bin/pip install -r requirements-peers-dpo.txt
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEARNING_RATE, BETA = 1e-6, 0.1
CASES = {
    "peer's defaults": ("--checkpointing",),
    "no checkpointing": (),
    "no checkpointing, reference precomputed": ("--precompute",),
}
"""What is told to the peer; ours is the same in all."""
SIZES = {
    "tiny": {"hidden": 32, "layers": 2, "vocab": 64},
    "5M": {"hidden": 256, "layers": 4, "vocab": 1024},
    "17M": {"hidden": 384, "layers": 6, "vocab": 4096},
}
GOAL = {"ratio": 2.5, "memory": 0.7}


def write_case(root: Path, size: Mapping[str, int], *, rows: int) -> None:
    """``policy/``, ``rows.json`` for the peer and ``feedback/`` for us: the same pairs in the same words."""
    from lodestar.data.files import write_feedback
    from lodestar.local.tiny import llama, tokenizer
    from lodestar.model.loading import save_model
    from lodestar.records import Choice, Feedback

    save_model(llama(**size, eos_bias=1.0), tokenizer(size["vocab"]), root / "policy")
    dice = random.Random(1)
    known = [f"t{i}" for i in range(3, size["vocab"]) if str(i)[0] not in "012"]  # t0, t1 and t2 are special

    def words(shortest: int, longest: int) -> str:
        return " ".join(dice.choice(known) for _ in range(dice.randint(shortest, longest)))

    pairs = [(words(64, 192), words(16, 64), words(16, 64)) for _ in range(rows)]
    peers = [{"prompt": prompt, "chosen": f" {a}", "rejected": f" {b}"} for prompt, a, b in pairs]
    (root / "rows.json").write_text(json.dumps(peers))
    feedback = [Feedback(prompt, (a, b), (Choice(0, 1, 1.0),)) for prompt, a, b in pairs]
    write_feedback(root / "feedback" / "train.jsonl", feedback)
    write_feedback(root / "feedback" / "held_out.jsonl", feedback[:1])


def train_ours(root: Path, address: str, rows: int, threads: int) -> dict[str, Any]:
    """The stage's own training in this process: seconds of every step after the first, and of asking the reference."""
    import torch

    from lodestar.config import ModelConfig
    from lodestar.config.dpo import DpoConfig
    from lodestar.data.files import read_feedback
    from lodestar.train import train_dpo
    from lodestar.train.progress import Silent
    from lodestar.train.reference import ReferenceLogProbs

    class Timed(Silent):
        def __init__(self) -> None:
            self.asked = self.began = 0.0
            self.ended: list[float] = []
            self.worked: list[float] = []

        def start(self, stage: str, total: int) -> None:
            if stage == "dpo":
                self.asked = time.perf_counter() - self.began
            self.began = time.perf_counter()

        def advance(self, amount: int = 1) -> None:
            if self.asked and amount == 1:
                self.ended.append(time.perf_counter())
                self.worked.append(time.process_time())

    torch.set_num_threads(threads)
    train = read_feedback(root / "feedback" / "train.jsonl")
    tokens = sum(2 * len(row.prompt.split()) + sum(len(c.split()) + 1 for c in row.completions) for row in train)
    told = {"epochs": 1, "batch_tokens": round(tokens / len(train) * (rows + 0.5)), "evaluations_per_epoch": 1}
    timed = Timed()
    fitted = train_dpo(
        DpoConfig.model_validate(told | {"beta": BETA, "learning_rate": LEARNING_RATE}),
        ModelConfig(path=str(root / "policy")),
        feedback=[root / "feedback"],
        start=root / "policy",
        tokenizer=root / "policy",
        reference=ReferenceLogProbs([address], root / "kept"),
        output=root / "trained",
        state=root / "state.pt",
        seed=0,
        progress=timed,
    )
    seconds, cpu = ([b - a for a, b in itertools.pairwise(one)] for one in (timed.ended, timed.worked))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    per_row = timed.asked / (len(train) + 1)
    rows_of_a_step = len(train) / fitted.steps
    return {"seconds": seconds, "cpu": cpu, "rows": rows_of_a_step, "bytes": peak, "reference_per_row": per_row}


@contextmanager
def reference_server(root: Path) -> Iterator[tuple[str, int]]:
    """Its address and its pid."""
    from lodestar.config.serve import Listening, ReferenceTask
    from lodestar.crew.fleet import Fleet
    from lodestar.local.board import Board
    from lodestar.local.ports import free_ports
    from lodestar.local.processes import Processes

    port, metrics = free_ports(2)
    listening = Listening(port=port, metrics_port=metrics)
    task = ReferenceTask(run="bench", folder=root, model=str(root / "policy"), listening=listening)
    with Processes(root / "logs") as processes:
        fleet = Fleet(lambda: processes, Board("bench", []), root / "services")
        member = fleet.serve(task)
        fleet.wait_ready(["reference"], timeout=600)
        yield f"127.0.0.1:{port}", member.child.pid
        fleet.stop(["reference"])


def ours(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Our side: a process that trains, and the server beside it."""
    from harness import memory_bytes

    with reference_server(root) as (address, pid):
        command = [sys.executable, __file__, "--child", str(root), "--address", address]
        command += ["--rows", str(arguments.rows), "--threads", str(arguments.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        server = memory_bytes(pid)
    return json.loads(done.stdout.splitlines()[-1]) | {"server_bytes": server}


def theirs(root: Path, arguments: argparse.Namespace, told: tuple[str, ...]) -> dict[str, Any]:
    """The peer's side, in its own environment."""
    script = Path(__file__).parent / "peers" / "trl_dpo.py"
    command = [str(arguments.peer_python), str(script), str(root), "--steps", str(arguments.steps)]
    command += ["--threads", str(arguments.threads)]
    command += ["--rows", str(arguments.rows), "--beta", str(BETA), "--learning-rate", str(LEARNING_RATE), *told]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row_seconds(side: Mapping[str, Any], *, reference: bool = False, clock: str = "seconds") -> float:
    """Seconds of a row in the median step, with what the reference took for it where that counts."""
    return statistics.median(side[clock]) / side["rows"] + (side["reference_per_row"] if reference else 0.0)


def main() -> None:
    if "--child" in sys.argv:
        options = argparse.ArgumentParser()
        for name in ("--child", "--address"):
            options.add_argument(name, required=True)
        for name in ("--rows", "--threads"):
            options.add_argument(name, type=int, required=True)
        told = options.parse_args()
        print(json.dumps(train_ours(Path(told.child), told.address, told.rows, told.threads)))
        return
    from harness import parser, report

    options = parser(__doc__, runs=3)
    options.add_argument("--peer-python", type=Path, default=Path(".venv-peers-dpo/bin/python"))
    options.add_argument("--steps", type=int, default=8, help="timed steps per start")
    options.add_argument("--rows", type=int, default=8, help="pairs of a step")
    options.add_argument("--threads", type=int, default=2, help="of either side")
    options.add_argument("--size", choices=SIZES, default="17M", help="parameters")
    options.add_argument("--ours-only", action="store_true", help="no peer: for profiling")
    arguments = options.parse_args()
    if arguments.small:
        arguments.steps, arguments.rows, arguments.size = min(arguments.steps, 3), min(arguments.rows, 4), "tiny"
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any] | None]]] = {case: [] for case in CASES}
    load = os.getloadavg()[0]
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_case(root, SIZES[arguments.size], rows=(arguments.steps + 1) * arguments.rows)
            mine = ours(root, arguments)
            for case, told in CASES.items():
                found[case].append((mine, None if arguments.ours_only else theirs(root, arguments, told)))
    rows = [_row(case, pairs, arguments.rows) for case, pairs in found.items()]
    notes = (
        "ratio: the peer's seconds of a row ÷ ours, median over pairs of starts; memory: our trainer's peak ÷ the "
        f"peer's; load at the start {load:.1f}, at the end {os.getloadavg()[0]:.1f}"
    )
    report("dpo", rows, arguments, notes, ratio=rows[0].get("ratio"), goal=GOAL)


def _row(case: str, pairs: list[tuple[dict[str, Any], dict[str, Any] | None]], size: int) -> dict[str, Any]:
    in_step = "precomputed" not in case
    mine = [row_seconds(side, reference=in_step) for side, _ in pairs]
    row: dict[str, Any] = {"case": case, "ours s": size * statistics.median(mine)}
    row["ours without reference s"] = size * statistics.median(row_seconds(side) for side, _ in pairs)
    row["ours MB"] = statistics.median(side["bytes"] for side, _ in pairs) / 1e6
    row["server MB"] = statistics.median(side["server_bytes"] for side, _ in pairs) / 1e6
    peers = [peer for _, peer in pairs if peer is not None]
    if peers:
        row["TRL s"] = size * statistics.median(map(row_seconds, peers))
        row["TRL MB"] = statistics.median(peer["bytes"] for peer in peers) / 1e6
        cpu = [row_seconds(peer, clock="cpu") / row_seconds(side, clock="cpu") for side, peer in pairs if peer]
        row["processor time, without reference"] = statistics.median(cpu)
        row["ratio"] = statistics.median(row_seconds(p) / m for m, p in zip(mine, peers, strict=True))
        row["memory"] = statistics.median(side["bytes"] / peer["bytes"] for side, peer in pairs if peer is not None)
    return row


if __name__ == "__main__":
    main()
