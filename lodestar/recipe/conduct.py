"""The one loop of a run: the same on a laptop, in a notebook and in a cluster's conductor.

Consumes   a plan, and the seals of earlier starts.
Produces   artifacts, each sealed when it is whole.
Waits for  the crew.
Unblocked  by it, and by signals, which end its work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from lodestar.crew.port import Crew
from lodestar.errors import FailedPrecondition, ResumeRefused
from lodestar.local.board import Board
from lodestar.recipe.plan import GIVEN, Plan, Step
from lodestar.recipe.store import Store
from lodestar.tracking.beside import tracked


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of a plan is to run; unset, whatever is not done."""

    only: str | None = None
    """This stage alone, whose inputs must be there."""
    begin: str | None = None
    """Everything from this stage on, anew."""
    until: str | None = None
    """Nothing after this stage."""

    def check(self, plan: Plan) -> None:
        """Raises ConfigError when a stage is not in the plan, FailedPrecondition for a contradiction."""
        for name in (self.only, self.begin, self.until):
            if name is not None:
                plan.step(name)
        if self.only and (self.begin or self.until):
            raise FailedPrecondition("--only goes with neither --from nor --until")
        names = [step.name for step in plan.steps]
        if self.begin and self.until and names.index(self.begin) > names.index(self.until):
            raise FailedPrecondition(f"--from {self.begin} is after --until {self.until}")


EVERYTHING = Wanted()


def conduct(plan: Plan, store: Store, crew: Crew, board: Board, wanted: Wanted = EVERYTHING) -> list[str]:
    """Runs every wanted step that is not done, in order; the names of those that ran.

    Raises:
        ResumeRefused: a stage was asked otherwise before, or its files changed; nothing has run then.
        FailedPrecondition: ``only`` is of a stage whose inputs are missing.
        RunPaused: it was asked to end between two stages.
        LodestarError: what the crew raises; what is sealed stays.
    """
    steps = accepted(plan, store, wanted)
    with tracked(store.run, store.root, board):
        ran = [step.name for step in steps if _conducted(step, store, crew, board)]
        crew.release()
    return ran


def _conducted(step: Step, store: Store, crew: Crew, board: Board) -> bool:
    """Whether the step had to run."""
    if store.done(step):
        board.kept(step.name, store.seal_of(step.name)["seconds"])
        return False
    board.go_on(step.name)
    if more := store.grows(step):
        board.say(f"{step.name}: goes on from {more[0]} to {more[1]} {step.stage.grows}")
        store.reopen(step)
    elif store.seal_of(step.name) and not step.only_figures:
        board.say(f"{step.name}: made anew, since what it takes has changed")
        store.clear(step)
    store.begin(step)
    with board.running(step.name) as row:
        try:
            crew.work(step, crew.serve(step))
        finally:
            seconds = store.spend(step, row.elapsed)
        store.seal(step, {"seconds": seconds, "finished": time.time(), **crew.figures(step)})
    return True


def accepted(plan: Plan, store: Store, wanted: Wanted, *, look_only: bool = False) -> list[Step]:
    """The steps to go through; everything that could be wrong with what an earlier start left has been refused.

    Args:
        look_only: forget nothing of what ``wanted.begin`` makes anew.

    Raises:
        ResumeRefused, FailedPrecondition, ConfigError: see conduct and Wanted.check.
    """
    wanted.check(plan)
    store.recover(plan.steps)
    names = [step.name for step in plan.steps]
    begin = len(names) if wanted.begin is None else names.index(wanted.begin)
    until = len(names) if wanted.until is None else names.index(wanted.until) + 1
    changed = {step.name: changes for step in plan.steps[:begin] if (changes := store.changes(step))}
    if changed:
        said = "; ".join(", ".join(map(str, changes)) for changes in changed.values())
        raise ResumeRefused(
            f"asked otherwise since {store.root} was made: {said}. Set it back, or --from {next(iter(changed))} makes "
            f"{' and '.join(changed)} anew with all that follows; --fresh starts over"
        )
    store.check_seals(plan.steps[:begin])
    if wanted.only is not None:
        step = plan.step(wanted.only)
        if missing := [name for name in sorted(plan.needed_by(step.name)) if not _is_there(store, name)]:
            raise FailedPrecondition(
                f"--only {step.name} takes what {', '.join(missing)} makes, and that is not done; --until {step.name} "
                "runs what lacks"
            )
        return [step]
    if not look_only:
        for step in plan.steps[begin:until]:
            store.clear(step)
    return plan.steps[:until]


def _is_there(store: Store, name: str) -> bool:
    return name == GIVEN or bool(store.seal_of(name))
