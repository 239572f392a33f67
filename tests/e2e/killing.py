"""A run started by its command again and again, and killed: what the tests of kill-anywhere share."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from lodestar.errors import DataError
from lodestar.files import digest, read_json, read_jsonl
from lodestar.recipe.folder import RunFolder
from lodestar.rollouts.ledger import check_run, verify_ledger

LODESTAR = Path(sys.executable).with_name("lodestar")
HOOK = Path(__file__).with_name("deadly")
LOOK_SECONDS = 0.01
TREE: dict[str, Any] = {
    "name": "rounds",
    "seed": 1,
    "deterministic": True,
    "stages": {
        "data": {
            "demonstration_rows": 120,
            "comparison_rows": 60,
            "max_prompt_tokens": 32,
            "evaluation_rows": 8,
            "prompt_rows": 60,
        },
        "sft": {"epochs": 1, "batch_tokens": 2048, "evaluations_per_epoch": 1},
        "rounds": {
            "n": 2,
            "stages": {
                "sample": {"n": 2, "prompts": 24, "batch": 8, "max_tokens": 8},
                "label": {},
                "reward": {
                    "epochs": 1,
                    "batch_tokens": 2048,
                    "evaluations_per_epoch": 1,
                    "use": {"policy": "sft/policy"},
                },
                "ppo": {"steps": 2, "batch": 8, "max_tokens": 8, "epochs": 1, "running": {"every": 0}},
            },
        },
        "evaluate": {"best_of": [], "max_tokens": 8},
        "report": {},
    },
    "model": {
        "architecture": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "layers": 1,
            "heads": 2,
            "kv_heads": 2,
            "context_tokens": 64,
        }
    },
    "services": {
        "learner": {"checkpoint_every": 1, "threads": 1},
        "queue": {"heartbeat_seconds": 0.3, "claim_seconds": 1.0, "reconcile_seconds": 3.0},
    },
}


@dataclass(frozen=True, slots=True)
class Death:
    """Of a process by its own hand, at a change of files: ``Death("r1.label", "conductor", 5)``."""

    stage: str
    who: str
    """conductor, or the name of its log."""
    event: int
    """Which of its changes below the stage's folder, from 1."""

    @property
    def id(self) -> str:
        return f"{self.who}-{self.stage or 'run'}"


@dataclass(frozen=True, slots=True)
class Strike:
    """From outside, while a stage runs: ``Strike("r1.ppo", "redis", 0.2)``."""

    stage: str
    victim: str
    """A service (``policy-0``), ``redis``, ``conductor``, or ``weights``: the learner's own server process."""
    delay: float
    """Seconds after the stage's own process has said its first word."""


class Killed:
    """``Killed(folder).run(deaths, strikes)`` starts the command until it ends well, whatever dies on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "rounds"
        self.scripts = folder / "deaths"
        self.temporary = folder / "tmp"
        for made in (self.scripts, self.temporary):
            made.mkdir(parents=True)
        self.config = folder / "rounds.yaml"
        self.config.write_text(yaml.safe_dump({**TREE, "runs_dir": str(folder)}, sort_keys=False))
        self.steps = [step.name for step in _plan(self.config)]
        self.starts = 0

    def record(self) -> None:
        """Takes down every change of files from now on."""
        (self.scripts / "events.jsonl").touch()

    def events(self) -> Counter[tuple[str, str]]:
        """How many changes each process made below each stage's folder."""
        return Counter((row["stage"], row["who"]) for row in read_jsonl(self.scripts / "events.jsonl"))

    def start(self, deaths: Sequence[Death] = ()) -> subprocess.Popen[str]:
        """The command, the same every time but for --resume, which wants something to go on with."""
        told = {"root": str(self.root), "deaths": [{**asdict(death), "id": death.id} for death in deaths]}
        (self.scripts / "deaths.json").write_text(json.dumps(told))
        self.starts += 1
        resume = ["--resume"] if (self.root / "config.yaml").exists() else []
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(HOOK),
            "LODESTAR_DEATHS": str(self.scripts),
            "TMPDIR": str(self.temporary),
        }
        with (self.folder / f"said-{self.starts}.txt").open("w") as said:
            return subprocess.Popen(
                [LODESTAR, "run", self.config, "--plain", *resume],
                stdout=said,
                stderr=said,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def run(self, deaths: Sequence[Death], strikes: Sequence[Strike], seconds: float) -> None:
        """To the run's end; every death has been died and every strike has hit.

        Each start that nobody killed must have ended well, and a killed one must have left no process.
        """
        deadline = time.monotonic() + seconds
        left = sorted(strikes, key=lambda strike: self.steps.index(strike.stage))
        finished = False
        while not finished:
            struck_before = self.struck()
            launcher = self.start(deaths)
            killed = self._strike_until_the_end(launcher, left, deadline)
            killed |= any(mark.startswith("struck-conductor") for mark in self.struck() - struck_before)
            finished = launcher.returncode == 0
            assert finished or killed, f"start {self.starts} ended with {launcher.returncode}: {self.said()}"
            assert not self.survivors(), "a killed conductor takes its processes along"
        assert not left, f"never hit: {left}"
        missed = {f"struck-{death.id}" for death in deaths} - self.struck()
        assert not missed, f"never died: {missed}"

    def said(self) -> str:
        """What the last start told."""
        return (self.folder / f"said-{self.starts}.txt").read_text()[-3000:]

    def struck(self) -> set[str]:
        return {path.name for path in self.scripts.glob("struck-*")}

    def survivors(self) -> list[psutil.Process]:
        """Processes of this run that do not end within seconds."""
        _, alive = psutil.wait_procs(list(self._processes()), timeout=15)
        return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def assert_whole(self) -> None:
        """Every ticket ended once, and nothing in a temporary name is left."""
        check_run(self.root)
        folder = RunFolder.open(self.root)
        for step in folder.plan.steps:
            if step.kind in ("sample", "ppo"):
                tickets, steps = (8, 3) if step.kind == "sample" else (8, 2)
                ledger = self.root / step.name / "figures" / "ledger.jsonl"
                assert verify_ledger(ledger, tickets=tickets, steps=steps) == []
        assert [step.name for step in folder.done()] == self.steps
        left = [path for path in self.root.rglob("*") if path.name == "unfinished" or path.name.endswith(_TEMPORARY)]
        assert not left, left
        cache = "torchinductor_"  # torch's own, and empty
        assert not [path for path in self.temporary.rglob("*") if not path.name.startswith(cache)]
        assert not (self.root / "redis").exists()
        assert not list((self.root / "services").glob("*"))

    def made(self) -> dict[str, str]:
        """Digest of every artifact but figures, and of every evaluation; cards and figures tell of clocks too."""
        folder = RunFolder.open(self.root)
        found = {}
        for step in folder.done():
            for port, kind in step.makes.items():
                path = self.root / step.name / port
                if kind == "reward_model":
                    path /= "model.safetensors"
                if kind != "figures" or step.kind == "evaluate":
                    found[f"{step.name}/{port}"] = digest(path)
        return found

    def _strike_until_the_end(self, launcher: subprocess.Popen[str], left: list[Strike], deadline: float) -> bool:
        """Whether the conductor was struck."""
        due: float | None = None
        while launcher.poll() is None:
            if time.monotonic() > deadline:
                launcher.kill()
                raise AssertionError(f"not done in time, {left} is left: {self.said()}")
            time.sleep(LOOK_SECONDS)
            if not left or not self._works(left[0].stage, launcher):
                due = None
                continue
            due = time.monotonic() + left[0].delay if due is None else due
            victim = self._victim(left[0].victim, launcher)
            if time.monotonic() < due or victim is None:
                continue
            strike, due = left.pop(0), None
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
            if strike.victim == "conductor":
                launcher.wait()
                return True
        return False

    def _works(self, stage: str, launcher: subprocess.Popen[str]) -> bool:
        """Whether the stage's own process, of this very start, has said something and the stage is not done."""
        said = self.root / "logs" / f"{stage}.jsonl"
        with contextlib.suppress(FileNotFoundError):
            began = said.stat().st_mtime >= psutil.Process(launcher.pid).create_time()
            return began and not (self.root / stage / "seal.json").exists()
        return False

    def _victim(self, name: str, launcher: subprocess.Popen[str]) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess, DataError):  # not up yet, or no more
            if name == "conductor":
                return psutil.Process(launcher.pid)
            if name == "redis":
                children = psutil.Process(launcher.pid).children()
                return next((child for child in children if child.name() in ("redis-server", "valkey-server")), None)
            service = "learner-0" if name == "weights" else name
            process = psutil.Process(int(read_json(self.root / "services" / f"{service}.json")["pid"]))
            return next(iter(process.children()), None) if name == "weights" else process
        return None

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("LODESTAR_DEATHS") == str(self.scripts):
                    yield process


_TEMPORARY = (".partial", ".tmp", ".part", ".lock~")


def _plan(config: Path) -> list[Any]:
    from lodestar.config import load_config
    from lodestar.recipe.plan import plan

    return list(plan(load_config(config)).steps)


def own_process(stage: str) -> str:
    """The log's name of a stage's own process."""
    return "learner-0" if stage.endswith("ppo") else stage


def every_death(steps: Sequence[str], events: Counter[tuple[str, str]], dice: random.Random) -> list[Death]:
    """The conductor's and the stage's own in every stage, each at a moment of its own."""
    places = [("" if stage == "report" else stage, own_process(stage)) for stage in steps]
    places += [(stage, "conductor") for stage in steps]
    return [Death(stage, who, dice.randint(1, events[stage, who])) for stage, who in places]


def every_strike(steps: Sequence[str], dice: random.Random) -> list[Strike]:
    """Of every service, worker and Redis of every stage that calls them, and of the conductor at work."""
    chosen = []
    for stage in steps:
        kind = stage.rpartition(".")[2]
        victims = {
            "sft": ["conductor"],
            "sample": ["policy-0", "rollout-0", "redis"],
            "ppo": ["policy-0", "reward-0", "reference-0", "rollout-0", "redis", "weights", "conductor"],
            "evaluate": ["policy-0", "against-0", "reward-0"],
        }.get(kind, [])
        chosen += [Strike(stage, victim, round(dice.uniform(0.0, 0.3), 3)) for victim in victims]
    return chosen
