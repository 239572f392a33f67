"""What several runs make alike is made once: a stage that another run has sealed is taken over with its seal.

Two stages are alike when the same was asked of them (kind, options, seed, model) and they took the same, by digest: the
very rule by which a run does not do a stage again (lodestar.recipe.store). A run that takes stages over is a whole run
like any other: it resumes, is reported on, and says what each stage cost where it was made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from lodestar.files import replacing
from lodestar.recipe.plan import GIVEN, Plan, Step
from lodestar.recipe.store import Store


def take_over(store: Store, plan: Plan, others: Iterable[Store]) -> list[str]:
    """Takes over every stage that this run lacks and one of the others has; their names.

    Stages that make figures alone are left: they tell of their own run.

    Raises:
        ResumeRefused: a damaged seal.
    """
    donors, taken = list(others), []
    for step in plan.steps:
        if step.only_figures or store.seal_of(step.name) or store.unfinished(step).exists():
            continue
        if any(name != GIVEN and not store.seal_of(name) for name in plan.needed_by(step.name)):
            continue
        donor = next((one for one in donors if _has(one, store, step)), None)
        if donor is None:
            continue
        with replacing(store.root / step.name) as temporary:
            shutil.copytree(donor.root / step.name, temporary, copy_function=_linked)
        taken.append(step.name)
    return taken


def _has(donor: Store, store: Store, step: Step) -> bool:
    seal = donor.seal_of(step.name)
    return bool(seal) and seal["asked"] == store.asked(step) and seal["took"] == store.took(step)


def _linked(source: str, place: str) -> str:
    """A second name of a file that nobody changes any more; a copy where the disk has no second names."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
    return place
