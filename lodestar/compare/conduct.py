"""The loop of a comparison: every run that is not finished, one after another, seed by seed.

Consumes   a comparison, and what earlier starts left.
Produces   finished runs.
Waits for  each run in turn.
Unblocked  by it, and by signals, which end the comparison; started again it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lodestar.compare.methods import Comparison, Entry
from lodestar.compare.share import take_over
from lodestar.config import dump
from lodestar.crew.here import View, clear, run_here
from lodestar.errors import LodestarError, RunPaused
from lodestar.files import write_atomically
from lodestar.recipe.conduct import EVERYTHING, Wanted, accepted
from lodestar.recipe.folder import CONFIG
from lodestar.recipe.plan import Plan
from lodestar.recipe.store import Store

Say = Callable[[str], None]


@dataclass(slots=True)
class Went:
    """How a comparison went."""

    kept: list[Entry] = field(default_factory=list)
    """Runs that were finished before."""
    ran: list[Entry] = field(default_factory=list)
    failed: dict[str, LodestarError] = field(default_factory=dict)
    """Run → why it ended; the others went on."""


def conduct(asked: Comparison, view: View, say: Say, *, fresh: bool = False) -> Went:
    """Runs what is missing of a comparison.

    Args:
        say: hears a line per run. fresh: throw away what the runs' folders hold first.

    Raises:
        ResumeRefused: a run was asked otherwise before; nothing has run then.
        RunPaused: somebody asked a run to end; Interrupted: by a signal. Started again, it goes on.
    """
    if fresh:
        for entry in asked.entries:
            if (entry.root / CONFIG).exists():
                clear(entry.root)
    for entry in asked.entries:
        store = Store(entry.root, entry.run)
        accepted(entry.plan, store, judged_anew(entry.plan, store), look_only=True)
    went = Went()
    for number, entry in enumerate(asked.entries, start=1):
        title = f"[{number}/{len(asked.entries)}] {entry.method}, seed {entry.seed}"
        if finished(entry):
            went.kept.append(entry)
            say(f"{title}: finished before")
            continue
        shared = _begun(entry, asked)
        say(f"{title}{': ' if shared else ''}{', '.join(shared)}{' shared' if shared else ''}")
        try:
            wanted = judged_anew(entry.plan, Store(entry.root, entry.run))
            run_here(entry.run, entry.plan, view, wanted, resume=True, begins=True)
        except RunPaused:
            raise
        except LodestarError as error:
            went.failed[entry.run.name] = error
            say(f"{title} ended: {error}")
        else:
            went.ran.append(entry)
    return went


def finished(entry: Entry) -> bool:
    """Whether every stage of a run is done as it is asked now."""
    store = Store(entry.root, entry.run)
    return all(store.done(step) for step in entry.plan.steps)


def judged_anew(plan: Plan, store: Store) -> Wanted:
    """Which part of a run is asked for: where figures at its end alone were asked otherwise before, these once more.

    So a method that joins a comparison may change how all are evaluated, and nobody is trained again for it.
    """
    changed = [number for number, step in enumerate(plan.steps) if store.changes(step)]
    if changed and all(step.only_figures for step in plan.steps[changed[0] :]):
        return Wanted(begin=plan.steps[changed[0]].name)
    return EVERYTHING


def _begun(entry: Entry, asked: Comparison) -> list[str]:
    """Makes the run's folder and takes over what runs of the same seed have made; names of those stages."""
    if not (entry.root / CONFIG).exists():
        write_atomically(entry.root / CONFIG, dump(entry.run))
    others = [one for one in asked.entries if one.seed == entry.seed and one is not entry]
    return take_over(Store(entry.root, entry.run), entry.plan, [Store(one.root, one.run) for one in others])
