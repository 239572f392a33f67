"""A whole run on a cluster, as its conductor's pod sees it: folder, lock, signals, status, crew and conductor."""

from __future__ import annotations

import time
from pathlib import Path

from lodestar.config import RunConfig, dump
from lodestar.crew import inputs
from lodestar.crew.cluster import SCRATCH, Cluster, Site, hopeless
from lodestar.crew.here import board_of, opened
from lodestar.crew.status import served
from lodestar.errors import LodestarError
from lodestar.files import write_atomically
from lodestar.kubernetes.namespace import Namespace
from lodestar.local.lock import locked
from lodestar.local.signals import interruptible
from lodestar.local.view import plain_view
from lodestar.recipe.conduct import Wanted, accepted, conduct
from lodestar.recipe.folder import CONFIG
from lodestar.recipe.plan import Plan
from lodestar.recipe.store import Store

LOCK_SECONDS = 120.0
"""A predecessor that was told to leave holds the run's folder until it has."""


def run_there(run: RunConfig, plan: Plan, api: Namespace, site: Site) -> Path:
    """Conducts what is not done of a run; returns the run's folder.

    Raises:
        LodestarError: with the exit code of what went wrong. Of what would go wrong again no server is left.
        Interrupted: by a signal; stages and fleets go on, for a successor.
    """
    root = Path(run.runs_dir) / run.name
    with interruptible(), locked(root, wait_seconds=LOCK_SECONDS):
        store = Store(root, run)
        opened(root, plan, resume=True, fresh=False, begins=True)
        board = board_of(run, plan)
        crew = Cluster(run, plan, store, board, api, site)
        with plain_view(board), served(board, SCRATCH, site.listening):
            try:
                accepted(plan, store, Wanted(), look_only=True)
                if not any(store.seal_of(step.name) for step in plan.steps):
                    for warning in inputs.refuse(run, plan):
                        board.say(warning, "warning")
                write_atomically(root / CONFIG, dump(run))
                conduct(plan, store, crew, board)
            except LodestarError as error:
                if hopeless(error):
                    crew.release()
                    time.sleep(site.listening.linger_seconds)  # whoever scrapes or watches sees how it ended
                raise
    return root
