"""A whole run on this machine: folder, lock, signals, view, crew and conductor."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lodestar.config import Listening, RunConfig, dump
from lodestar.crew import inputs
from lodestar.crew.before import refuse_models, refuse_queue
from lodestar.crew.local import Local
from lodestar.crew.status import served
from lodestar.errors import FailedPrecondition, LodestarError
from lodestar.files import write_atomically
from lodestar.local.board import Board, StageRow
from lodestar.local.lock import locked
from lodestar.local.signals import interruptible
from lodestar.recipe.conduct import Wanted, accepted, conduct
from lodestar.recipe.folder import CONFIG, PEOPLE, refuse_old
from lodestar.recipe.plan import Plan
from lodestar.recipe.store import Store

View = Callable[[Board], AbstractContextManager[Any]]
_OURS = (
    CONFIG, "report.html", "summary.json", "card.html", "logs", "services", "redis", "cache",
    # what versions before recipes made
    "data", "models", "checkpoints", "weights", "policy", "failures", "metrics.jsonl", "ledger.jsonl", "samples.jsonl",
    "state.json", "learner.lock", "incarnations.txt",
)  # fmt: skip


def run_here(
    run: RunConfig,
    plan: Plan,
    view: View,
    wanted: Wanted,
    *,
    resume: bool = False,
    fresh: bool = False,
    begins: bool = False,
    budgets: Mapping[str, float] | None = None,
) -> Path:
    """Conducts the wanted part of a run; returns the run's folder.

    Args:
        view: shows the board while the run lasts (lodestar.local.view).
        resume: go on with what the run's folder holds. fresh: throw it away first.
        begins: begin a run where resume finds none.
        budgets: seconds per stage, for the view.

    Raises:
        LodestarError: with the exit code of what went wrong; nothing runs any more when it is raised.
        Interrupted: by a signal; likewise.
    """
    root = Path(run.runs_dir) / run.name
    with interruptible() as hurry, locked(root):
        if not (root / CONFIG).exists():
            root.chmod(0o700)  # prompts, replies, models: their owner decides who else may see them
        store = Store(root, run)
        with _swept(root, plan, store):
            opened(root, plan, resume=resume, fresh=fresh, begins=begins)
            steps = accepted(plan, store, wanted, look_only=True)
            warnings: list[str] = []
            if not any(store.seal_of(step.name) for step in plan.steps):
                warnings = inputs.refuse(run, plan)
                refuse_models(run, plan)
            refuse_queue(run, [step for step in steps if step.name == wanted.begin or not store.done(step)])
            write_atomically(root / CONFIG, dump(run))
            board = board_of(run, plan, budgets)
            with view(board), Local(run, plan, store, board, hurry=hurry) as crew, served(board, root, Listening()):
                for warning in warnings:
                    board.say(warning, "warning")
                conduct(plan, store, crew, board, wanted)
    return root


@contextlib.contextmanager
def _swept(root: Path, plan: Plan, store: Store) -> Iterator[None]:
    """A run that begins here and could not start, since something it names is wrong, leaves nothing behind."""
    held = (root / CONFIG).exists()
    try:
        yield
    except LodestarError as error:
        wrong = error.exit_code == FailedPrecondition.exit_code  # of what was asked, not of what happened
        if wrong and not held and (root / CONFIG).exists() and not any(store.seal_of(s.name) for s in plan.steps):
            clear(root)
        raise


def board_of(run: RunConfig, plan: Plan, budgets: Mapping[str, float] | None = None) -> Board:
    """A board of a plan's stages, none of which has begun."""
    limits = {s.name: getattr(s.stage, "max_seconds", None) for s in plan.steps} | dict(budgets or {})
    return Board(run.name, [StageRow(step.name, limits[step.name]) for step in plan.steps])


def opened(root: Path, plan: Plan, *, resume: bool, fresh: bool, begins: bool) -> None:
    """Empties or checks the run's folder, as asked.

    Raises:
        FailedPrecondition: it holds a run and neither resume nor fresh was said, there is nothing to resume, or it is
            something else's.
    """
    held = (root / CONFIG).exists()
    if fresh and held:
        clear(root)
    elif held and not resume:
        raise FailedPrecondition(
            f"{root} holds a run already: --resume goes on with it, --fresh starts over, name=… makes another"
        )
    elif resume and not held and not begins:
        raise FailedPrecondition(f"{root} holds no run to resume; leave --resume out to start it")
    elif not held and root.exists() and any(path.name not in (".lock", PEOPLE) for path in root.iterdir()):
        raise FailedPrecondition(f"{root} is not empty and not a run; choose another name=… or runs_dir=…")
    refuse_old(root)


def clear(root: Path) -> None:
    """Removes what runs make, and nothing else: not what a person may have put there, nor what people have said."""
    stages = [seal.parent.name for pattern in ("*/seal.json", "*/unfinished") for seal in root.glob(pattern)]
    for name in (*_OURS, *stages):
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
