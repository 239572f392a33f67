"""Publish → served: a step at a learning rate of 1e-6 from the learner's memory into a policy server that decodes.

Hidden 768, 12 layers, vocabulary 8192 (126M parameters), bfloat16, one compute thread. A publisher, its server process
over loopback gRPC, and the policy service's own classes, against the same in another build of Lodestar (a checkout:
``git worktree add ../before 82eab46`` has full publications and no probe) run by this Python; the sides take turns.
Every weight moves by the learning rate, up or down: as much as a step of Adam can.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import alternate, median_ratio, parser, report
from lodestar_services.learner.publisher import WeightPublisher
from lodestar_services.policy.best_of import Asked
from lodestar_services.policy.policy import Policy

from lodestar import metrics
from lodestar.config import ArchitectureConfig, LearnerTask, PolicyTask, PpoConfig
from lodestar.local.tiny import tokenizer
from lodestar.model.loading import load_causal_lm, new_causal_lm
from lodestar.model.weights import save_model
from lodestar.records import Purpose, SamplingParams
from lodestar.weights.grpc import GrpcSource

LEARNING_RATE = 1e-6
SIZES = {"hidden_size": 768, "intermediate_size": 3072, "layers": 12, "heads": 12, "kv_heads": 12}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "kv_heads": 4}
GOALS = {"bytes sent": 0.15, "seconds, publish → served": 0.35, "pause of decoding at the swap": 0.5}


class Side:
    """One build: a learner's publisher, and a policy server with a caller who reads tokens all the time."""

    def __init__(self, root: Path, model: Path) -> None:
        self._model = load_causal_lm(str(model), dtype="bfloat16")
        self._masters = [parameter.detach().float() for parameter in self._model.parameters()]
        self._signs = torch.randint(0, 2, (2**20,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        places = dict.fromkeys(("folder", "prompts", "state", "figures", "output"), root)
        task = LearnerTask(run="bench", ppo=PpoConfig(), policy="", reference="", **places)
        self._publisher = self._make_publisher(root, task)
        self._port = self._publisher.serve(task)
        told = {"dtype": "bfloat16", "section": {"swap": "continue", "threads": 1}}
        self._policy = Policy(PolicyTask.model_validate({"run": "bench", "folder": root, "model": str(model), **told}))
        self._cache = root / "cache"
        self._step = 0

    def _make_publisher(self, root: Path, task: LearnerTask) -> WeightPublisher:
        options: dict[str, Any] = {"run": "bench", "incarnation": "0", "tokenizer_hash": ""}
        if "section" in inspect.signature(WeightPublisher).parameters:
            from lodestar_services.learner.probes import probed_tokens

            from lodestar.records import Prompt

            prompts = [Prompt(str(i), "", tuple(range(5 + i, 35 + i))) for i in range(4)]
            options |= {"section": task.section, "probed": probed_tokens(prompts, self._model.config)}
        else:
            options["keep"] = task.section.weight_versions
        return WeightPublisher(root / "weights", **options)

    async def run(self) -> None:
        """A line on standard input is a step to publish; answers with its figures."""
        await self._policy.load()
        await self._policy.attach(GrpcSource(f"127.0.0.1:{self._port}", "bench"), self._cache)
        stopping = asyncio.Event()
        following = asyncio.create_task(self._policy.follow(stopping))
        await self._publish()
        print("{}", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await self._measure()), flush=True)
        stopping.set()
        await following
        await self._policy.engine.close()
        self._publisher.close()

    async def _publish(self) -> None:
        manifest = await asyncio.to_thread(self._publisher.publish, self._model, self._step)
        await self._policy.load_version(manifest.version, 120)

    async def _measure(self) -> dict[str, float]:
        with torch.no_grad():
            for number, (parameter, master) in enumerate(zip(self._model.parameters(), self._masters, strict=True)):
                signs = self._signs.roll(1000 * self._step + number)
                for block in master.view(-1).split(len(signs)):
                    block.add_(signs[: len(block)], alpha=LEARNING_RATE)
                parameter.copy_(master)
        self._step += 1
        arrivals: list[float] = []
        reading = asyncio.create_task(self._read(arrivals))
        while len(arrivals) < 5:
            await asyncio.sleep(0.01)
        sent = metrics.WEIGHT_BYTES_SENT._value.get()
        began = time.perf_counter()
        await self._publish()
        served = time.perf_counter()
        pause = self._policy.engine.engine.swap_seconds
        await asyncio.sleep(1.2)  # the server process tells what it sent twice a second
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        during = [at for at in arrivals if began - 0.5 <= at <= served + 0.5]
        return {
            "bytes sent": metrics.WEIGHT_BYTES_SENT._value.get() - sent,
            "seconds, publish → served": served - began,
            "pause of decoding at the swap": pause,
            "longest gap between two tokens meanwhile": max(
                (b - a for a, b in itertools.pairwise(during)), default=0.0
            ),
        }

    async def _read(self, arrivals: list[float]) -> None:
        """One caller's tokens, as they come."""
        sampling = SamplingParams(400, seed=1, ignore_eos=True)
        chunks = self._policy.generate(
            Asked(tuple(range(5, 25))), sampling, min_version=None, wait_seconds=0, purpose=Purpose.SERVING
        )
        async for _ in chunks:
            arrivals.append(time.perf_counter())


class Build:
    """A checkout's :class:`Side` in a process of its own."""

    def __init__(self, tree: Path, root: Path, model: Path) -> None:
        paths = [str((tree / name).resolve()) for name in (".", "services", "kernels")]
        paths.append(str(Path(__file__).parent))
        root.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--side", str(root), str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LODESTAR_LOG": "WARNING"},
        )
        self.figures: list[dict[str, float]] = []

    def begin(self) -> None:
        """Waits until the start model is served."""
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def step(self) -> float:
        """One step published and served; the seconds that took."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.figures.append(self._answer())
        return self.figures[-1]["seconds, publish → served"]

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--before", type=Path, help="checkout to compare with (default: ours alone)")
    options.add_argument("--side", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.side:
        torch.set_num_threads(1)
        asyncio.run(Side(*arguments.side).run())
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        model, words = Path(folder) / "model", tokenizer(256 if arguments.small else 8192)
        shape = ArchitectureConfig.model_validate((SMALL if arguments.small else SIZES) | {"context_tokens": 512})
        save_model(new_causal_lm(shape, words, seed=0).bfloat16(), words, model)
        builds = {"ours": Build(Path(__file__).parents[1], Path(folder) / "ours", model)}
        if arguments.before:
            builds["before"] = Build(arguments.before, Path(folder) / "before", model)
        for build in builds.values():
            build.begin()
        alternate(1 if arguments.small else arguments.runs, **{name: build.step for name, build in builds.items()})
        report("weights", rows_of(builds), arguments, "ratio: ours ÷ the other build's, median of pairs of runs")
        for build in builds.values():
            build.close()


def rows_of(builds: dict[str, Build]) -> list[dict[str, Any]]:
    """A row per figure: medians, ratio and goal."""
    rows = []
    for what in builds["ours"].figures[0]:
        columns = {name: [one[what] for one in build.figures] for name, build in builds.items()}
        row: dict[str, Any] = {"what": what, **{name: statistics.median(one) for name, one in columns.items()}}
        if "before" in columns:
            row |= {"ratio": median_ratio(columns["ours"], columns["before"]), "goal": GOALS.get(what, "")}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
