"""A whole run on one machine: stages in order, services as processes, a view of it all, and nothing left behind.

Consumes   a RunConfig, and what an earlier start of the same run left when it resumes.
Produces   everything below runs/NAME (lodestar.layout.RunFolder).
Waits for  training processes, the services' health, the learner's end.
Unblocked  by those; by Ctrl-C and SIGTERM, which stop everything in order.

The launcher itself imports no torch: training stages and services are children of a fork server that has it loaded.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from lodestar.config import RunConfig
from lodestar.errors import FailedPrecondition, RunPaused
from lodestar.layout import RunFolder
from lodestar.local.board import Board, StageRow
from lodestar.local.evaluation import Evaluator
from lodestar.local.fleet import Fleet
from lodestar.local.jobs import STAGES
from lodestar.local.lock import locked
from lodestar.local.processes import Processes
from lodestar.local.progress import ProgressReader
from lodestar.local.redis_server import RedisServer
from lodestar.local.signals import interruptible
from lodestar.local.state import RunLog, open_folder
from lodestar.local.summary import read_jsonl, write_summary
from lodestar.local.watcher import Watcher

SERVED_STAGES = ("baseline", "ppo", "evaluation")
"""Stages during which the services run."""
T = TypeVar("T")
View = Callable[[Board], AbstractContextManager[Any]]


def launch(
    config: RunConfig, view: View, *, resume: bool = False, fresh: bool = False, budgets: dict[str, float] | None = None
) -> RunFolder:
    """Runs everything that is left of a run, to its report.

    Args:
        view: shows the board while the run lasts (lodestar.local.view).
        resume: go on with what the run's folder holds. fresh: throw it away first.
        budgets: seconds per stage, for the view.

    Raises:
        LodestarError: with the exit code of what went wrong; nothing runs any more when it is raised.
        Interrupted: by a signal; likewise.
    """
    root = Path(config.runs_dir) / config.name
    with interruptible() as hurry, locked(root):
        folder = open_folder(config, resume=resume, fresh=fresh)
        log = RunLog(folder)
        if resume:
            log.check_outputs()
        stages = stages_of(config)
        limits = {stage: _limit(config, stage) for stage in stages} | (budgets or {})
        board = Board(config.name, [StageRow(stage, limits.get(stage)) for stage in stages])
        for stage in log.finished:
            board.stage(stage).state, board.stage(stage).seconds = "kept", log.seconds.get(stage, 0.0)
        with view(board), Processes(folder.logs) as processes:
            Launcher(config, folder, board, log, processes, hurry).run()
        return folder


def reevaluate(config: RunConfig, view: View) -> RunFolder:
    """Takes baseline, evaluation and report of a finished run again; the evaluation section alone may differ.

    Raises:
        FailedPrecondition: the run has not finished PPO.
        ResumeRefused: another section differs.
    """
    root = Path(config.runs_dir) / config.name
    with interruptible() as hurry, locked(root):
        folder = open_folder(config, resume=True, fresh=False, may_change=("evaluation",))
        log = RunLog(folder)
        if "ppo" not in log.finished:
            raise FailedPrecondition(f"{root} has no trained policy yet: lodestar run … --resume first")
        log.check_outputs()
        board = Board(config.name, [StageRow("baseline"), StageRow("evaluation"), StageRow("report")])
        with view(board), Processes(folder.logs) as processes:
            Launcher(config, folder, board, log, processes, hurry).run()
        return folder


def stages_of(config: RunConfig) -> list[str]:
    """The stages that a configuration asks for, in order."""
    skipped = {
        "pretrain": config.pretrain is None,
        "sft": config.sft is None,
        "reward": not config.trains_reward_model,
    }
    return [stage for stage in (*STAGES, *SERVED_STAGES, "report") if not skipped.get(stage, False)]


def _limit(config: RunConfig, stage: str) -> float | None:
    section = {"pretrain": config.pretrain, "sft": config.sft, "reward": config.reward_model}.get(stage)
    return section.max_seconds if section else None


class Launcher:
    """One start of a run."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        board: Board,
        log: RunLog,
        processes: Processes,
        hurry: threading.Event,
    ) -> None:
        self._config = config
        self._folder = folder
        self._board = board
        self._log = log
        self._processes = processes
        self._hurry = hurry
        self._redis: RedisServer | None = None
        self._counted = board.started

    def run(self) -> None:
        """Every stage that is not done."""
        try:
            self._run([row.name for row in self._board.stages if row.state != "kept"])
        finally:
            self._keep_time()

    def _run(self, left: list[str]) -> None:
        for stage in left:
            if stage in STAGES:
                self._train(stage)
        if set(left) & set(SERVED_STAGES):
            with self._services() as fleet:
                self._serve_and_learn(fleet, left)
        if "report" in left:
            self._report()

    def _train(self, stage: str) -> None:
        """One training stage, in a process of its own so that its memory is free afterwards."""
        outputs = {
            "data": [self._folder.data, self._folder.tokenizer],
            "pretrain": [self._folder.pretrained],
            "sft": [self._folder.sft],
            "reward": [self._folder.reward_model],
        }
        with self._stage(stage, outputs[stage]) as row:
            progress = self._folder.logs / f"{stage}.jsonl"
            progress.unlink(missing_ok=True)
            reader = ProgressReader(progress)
            child = self._processes.start(
                stage,
                "lodestar.local.jobs:stage",
                {"stage": stage, "config": self._config.model_dump(mode="json"), "run_dir": str(self._folder.root)},
            )
            while child.wait(0.1) is None:
                _show_progress(row, reader)
            _show_progress(row, reader)
            if child.exit_code != 0:
                raise child.error()

    @contextlib.contextmanager
    def _services(self) -> Iterator[Fleet]:
        """Redis and a fleet without members; whatever is started inside is stopped at the end, callers first."""
        shutil.rmtree(self._folder.services, ignore_errors=True)
        redis_folder = self._folder.root / "redis"
        shutil.rmtree(redis_folder, ignore_errors=True)  # transport, never the truth: a new start needs none of it
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, redis_folder, ignore_errors=True)
            if self._config.queue.url is None:
                self._redis = stack.enter_context(RedisServer(redis_folder))
            url = self._redis.url if self._redis else self._config.queue.url
            assert url is not None
            fleet = Fleet(self._processes, self._config, self._folder, self._board, url, self._log.restarted)
            stack.callback(lambda: fleet.stop(hurry=self._hurry))
            yield fleet

    def _serve_and_learn(self, fleet: Fleet, left: list[str]) -> None:
        learns = "ppo" in left
        with Watcher(fleet, self._board) as watcher, Evaluator(self._config, self._folder, fleet, self._board) as judge:
            if learns or "baseline" in left:
                fleet.start("policy", follows=learns)
            fleet.start("reward")
            fleet.start("reference")  # PPO's, and the judge's: how likely a reply is to the SFT model
            fleet.wait_ready(("policy", "reward", "reference"))
            if "baseline" in left:
                with self._stage("baseline", []):
                    self._log.record("baseline", self._beat_until(fleet, judge.submit(judge.baseline())))
            if learns:
                with self._stage("ppo", [self._folder.policy]) as row:
                    self._learn(fleet, watcher, judge, row)
            if "evaluation" in left:
                with self._stage("evaluation", []):
                    step = self._serve_final_policy(fleet)
                    self._log.record("evaluation", self._beat_until(fleet, judge.submit(judge.final(step))))
            if learns:
                fleet.scrape()
                self._log.record("services", watcher.services())

    def _learn(self, fleet: Fleet, watcher: Watcher, judge: Evaluator, row: StageRow) -> None:
        """PPO, until the learner ends well."""
        steps = [int(path.name.rpartition("-")[2]) for path in self._folder.checkpoints.glob("step-*")]
        watched = [rate for rate in self._log.results.get("watched", []) if rate["step"] <= max(steps, default=0)]
        fleet.start("learner", resume=bool(steps))
        fleet.start("rollout")
        watch = judge.submit(judge.watch())
        try:
            with watcher.following():
                while not fleet.learner_finished():
                    self._beat(fleet)
                    if watch.done():
                        watch.result()  # it ends by itself only when it fails
                    status = self._board.status
                    if status and status.state == "paused" and status.reason != "paused on request":
                        raise RunPaused(f"the run paused itself: {status.reason}; --resume goes on from its checkpoint")
                    time.sleep(0.1)
        finally:
            watch.cancel()
            by_step = {rate["step"]: rate for rate in (*watched, *judge.watched)}
            self._log.record("watched", [by_step[step] for step in sorted(by_step)])
        ended = self._board.status
        row.detail = f"{ended.step if ended else self._config.ppo.steps} steps"
        if ended and ended.reason.startswith("stopped at"):
            self._board.say(ended.reason, "warning")
        fleet.scrape()
        self._log.record("services", watcher.services())  # again after the evaluation, which may be interrupted
        fleet.stop(("rollout", "learner"))

    def _serve_final_policy(self, fleet: Fleet) -> int:
        """Makes sure that what is judged is what was saved, and returns its step.

        A policy server may have missed the last version, or serve another than the moving average that was saved.
        """
        step = int(read_jsonl(self._folder.metrics)[-1]["step"])
        if self._config.ppo.ema is not None or fleet.weight_steps("policy") != {step}:
            fleet.stop(("policy",))
            fleet.start("policy", model=str(self._folder.policy), follows=False)
            fleet.wait_ready(("policy",))
        return step

    def _beat(self, fleet: Fleet) -> None:
        """What must go on while the launcher waits for anything."""
        fleet.check()
        if self._redis is not None and self._redis.pid is None:
            self._board.say("redis died; starting it again", "warning")
            self._log.restarted("redis")
            self._redis.start()

    def _beat_until(self, fleet: Fleet, future: Future[T]) -> T:
        """Waits for the evaluator's work while the services are watched."""
        while not future.done():
            self._beat(fleet)
            wait([future], timeout=0.1)
        return future.result()

    def _report(self) -> None:
        from lodestar.report import write_report

        with self._board.running("report"):
            self._keep_time()
            write_summary(self._config, self._folder, self._log)
            write_report(self._folder)

    def _keep_time(self) -> None:
        """Adds the wall time since the last call to that of earlier starts."""
        now = time.monotonic()
        self._log.record("wall_seconds", self._log.results.get("wall_seconds", 0.0) + now - self._counted)
        self._counted = now

    @contextlib.contextmanager
    def _stage(self, stage: str, outputs: list[Path]) -> Iterator[StageRow]:
        """Times a stage and remembers that it is done; a failed one keeps its time only."""
        try:
            with self._board.running(stage) as row:
                yield row
        finally:
            self._log.spend(stage, self._board.stage(stage).elapsed)
        self._log.finish(stage, outputs)


def _show_progress(row: StageRow, reader: ProgressReader) -> None:
    for line in reader.new():
        figures = {name: line[name] for name in line if name not in ("stage", "seconds", "done", "total")}
        if line["total"]:
            row.fraction = line["done"] / line["total"]
        if figures:
            row.detail = " · ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items())
