"""The crew for notebooks and tests: stages run in this very process, on a thread; servers are processes still."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

from lodestar.config import RunConfig, dump
from lodestar.crew.local import POLL_SECONDS, WORKERS, Local
from lodestar.crew.port import Servers
from lodestar.crew.work import run_stage
from lodestar.files import write_atomically
from lodestar.local.board import Board, StageRow
from lodestar.local.lock import locked
from lodestar.local.progress import ProgressReader
from lodestar.recipe.conduct import Wanted, conduct
from lodestar.recipe.folder import CONFIG, RunFolder
from lodestar.recipe.plan import Step, plan
from lodestar.recipe.store import Store

C = TypeVar("C", bound=Local)


class Inline(Local):
    """A run whose stages call no servers starts no process at all.

    with Inline(run, plan, store, board) as crew:
        conduct(plan, store, crew, board)
    """

    def work(self, step: Step, servers: Servers) -> None:
        """See Crew. A stage that fails raises its own error here, and nothing is tried again."""
        reader = ProgressReader(self._store.root / "logs" / f"{step.name}.jsonl")
        with ThreadPoolExecutor(1, thread_name_prefix=step.name) as thread:
            work = thread.submit(
                run_stage,
                self._run,
                self._store,
                step.name,
                servers=servers,
                endpoints=self._endpoints,
                listening=self._listening,
            )
            try:
                if step.stage.rolls_out:
                    self._start(WORKERS, self._worker_tasks())
                with self._following(step):
                    while not work.done():
                        self.check()
                        self._board.progress(step.name, reader.new())
                        wait([work], timeout=POLL_SECONDS)
                work.result()
                self._board.progress(step.name, reader.new())
            finally:
                self._stop([WORKERS])


def run_inline(run: RunConfig, *, root: Path | None = None, wanted: Wanted | None = None) -> RunFolder:
    """Conducts a run in this process, without a view: ``run_inline(load_config("mine.yaml")).model()``.

    Args:
        root: the run's folder; unset is runs_dir/name. What it holds of this run is kept.

    Raises:
        ConfigError: the run has no sound plan.
        LodestarError: a stage's own; what is done stays.
    """
    return run_with(Inline, run, root=root, wanted=wanted)


def run_with(
    crew: type[C],
    run: RunConfig,
    *,
    root: Path | None = None,
    wanted: Wanted | None = None,
    look: Callable[[C], None] | None = None,
) -> RunFolder:
    """Conducts a run as run_inline does, by a crew of one's choice: ``run_with(Local, run)`` makes stages processes.

    ``look`` is called with the crew, about ten times a second, while a stage runs: it may look on, or strike.
    """
    planned = plan(run)
    root = root or Path(run.runs_dir) / run.name
    store = Store(root, run)
    write_atomically(root / CONFIG, dump(run))
    board = Board(run.name, [StageRow(step.name) for step in planned.steps])
    with locked(root), crew(run, planned, store, board) as hands:
        if look is not None:
            hands.look = partial(look, hands)
        conduct(planned, store, hands, board, wanted or Wanted())
    return RunFolder(root, run, planned, store)
