"""Reads and checks the ledger: one JSON line per settled ticket, which prove that no sample was trained on twice.

The file is that of one lineage of checkpoints: a checkpoint holds the ledger's length, and a resumed learner cuts the
file there before it goes on. What a dead learner wrote after its last checkpoint is therefore gone, as are its steps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import fields
from pathlib import Path
from typing import get_args

from lodestar.errors import DataError
from lodestar.files import numbered_rows
from lodestar.recipe.folder import RunFolder
from lodestar.records import LedgerEntry, Outcome

USED: tuple[Outcome, ...] = ("trained", "sampled")
"""Outcomes of tickets whose samples count."""
_FIELDS = {field.name for field in fields(LedgerEntry)}


def read_ledger(path: Path) -> list[LedgerEntry]:
    """The entries in order.

    Raises:
        DataError: a line is not one of a ledger.
    """
    entries = []
    for number, row in numbered_rows(path):
        if set(row) != _FIELDS or row["outcome"] not in get_args(Outcome):
            raise DataError(path, "not a line of a ledger", number)
        entries.append(LedgerEntry(**row))
    if entries and not path.read_bytes().endswith(b"\n"):
        raise DataError(path, "the last line is cut off", len(entries))
    return entries


def verify_ledger(path: Path, tickets: int | None = None, steps: int | None = None) -> list[str]:
    """Joins the ledger over its lineage and says, a sentence each, what breaks "every ticket exactly once".

    Checks that every id ended once; that the attempts of a place run 0, 1, … without a gap and only the last one was
    used; that steps follow one another from 0; and, when given, how many tickets a step and how many steps there
    are. An empty list means that all is well.
    """
    try:
        entries = read_ledger(path)
    except DataError as error:
        return [str(error)]
    problems = [f"{id_} ended {times} times" for id_, times in Counter(e.id for e in entries).items() if times > 1]
    places: dict[int, dict[int, list[tuple[int, LedgerEntry]]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        step, index, attempt = map(int, entry.id.split("."))
        if step != entry.step:
            problems.append(f"{entry.id} is written under step {entry.step}")
        places[step][index].append((attempt, entry))
    for step in sorted(places):
        problems += _problems_of_step(step, places[step], tickets)
    expected = range(len(places) if steps is None else steps)
    problems += [f"step {step} is missing" for step in expected if step not in places]
    problems += [f"step {step} is one too many" for step in sorted(places) if step not in expected]
    order = [entry.step for entry in entries]
    if order != sorted(order):
        problems.append("steps are out of order")
    return problems


def check_run(root: Path) -> dict[str, Counter[Outcome]]:
    """How many tickets ended how, by the stages of a run that issued some.

    Raises:
        FailedPrecondition: it is no run's folder.
        DataError: there is no ledger, a line is not one of a ledger, or a ticket did not end exactly once; names the
            first that ended twice or is missing.
    """
    folder = RunFolder.open(root)
    counts: dict[str, Counter[Outcome]] = {}
    for step in folder.plan.steps:
        ledger = folder.store.path(f"{step.name}/figures") / "ledger.jsonl"
        if not ledger.exists():
            continue
        counts[step.name] = Counter(entry.outcome for entry in read_ledger(ledger))
        tickets = (
            getattr(step.stage, "tickets", None) if step.stage.serves else None
        )  # a sample's last batch is smaller
        if problems := verify_ledger(ledger, tickets):
            more = f"; and {len(problems) - 1} more like it" if len(problems) > 1 else ""
            raise DataError(ledger, f"{problems[0]}{more}")
    if not counts:
        raise DataError(root, "has no ledger yet: no stage has issued tickets")
    return counts


def _problems_of_step(step: int, places: dict[int, list[tuple[int, LedgerEntry]]], tickets: int | None) -> list[str]:
    problems = []
    expected = range(len(places) if tickets is None else tickets)
    problems += [f"{step}.{index}.0 is missing" for index in expected if index not in places]
    problems += [f"{step}.{index} is one too many" for index in sorted(places) if index not in expected]
    incarnations = {entry.incarnation for attempts in places.values() for _, entry in attempts}
    if len(incarnations) > 1:
        problems.append(f"step {step} mixes incarnations {sorted(incarnations)}")
    for index, attempts in sorted(places.items()):
        numbers = sorted({attempt for attempt, _ in attempts})
        if numbers != list(range(len(numbers))):
            problems.append(f"{step}.{index}: attempts {numbers} have a gap")
        trained = [attempt for attempt, entry in attempts if entry.outcome in USED]
        if trained != [numbers[-1]]:
            problems.append(f"{step}.{index}: used attempts are {trained}, of {numbers}")
        problems += [
            f"{entry.id} is {entry.outcome} without tokens"
            for _, entry in attempts
            if entry.outcome in USED and not entry.tokens
        ]
    return problems
