"""What one finished run brings to a comparison: its replies, the start model's, and what its policy cost.

The cost of a policy is that of all the stages that it is made from, shared ones included, and of no other: a reward
model that only the evaluation uses costs SFT nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from lodestar.errors import FailedPrecondition
from lodestar.evaluation import best_of_n_kl
from lodestar.files import numbered_rows, read_jsonl
from lodestar.recipe.folder import RunFolder
from lodestar.recipe.plan import Plan, Step

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One finished run."""

    name: str
    method: str
    seed: int
    judge: str
    """gold or reward: by which the run's own evaluation judged."""
    replies: dict[str, Row] = field(repr=False)
    """Prompt → the final policy's reply."""
    baseline: dict[str, Row] | None = field(repr=False)
    """Prompt → the start model's; None where the evaluation held the policy against nothing."""
    start: str
    """Digest of the policy."""
    against: str | None
    """Digest of the model that it was held against."""
    reward: str | None
    """Digest of the reward model that scored."""
    kl: float | None
    """Nats per reply to the start model."""
    length: float
    """Mean tokens of a reply."""
    tokens: int | None
    """Sampled in training; None where a stage does not tell."""
    labels: int
    """Rows of feedback learned from, those kept apart for stopping included."""
    seconds: float
    """Of the stages that the policy is made from."""

    @property
    def aspects(self) -> dict[str, float]:
        """Means of what a score of several parts is made of, over the policy's replies; empty for one part."""
        return _aspects(self.replies)

    @property
    def baseline_aspects(self) -> dict[str, float]:
        """The same of the start model's replies."""
        return _aspects(self.baseline or {})


def read_outcome(root: Path, method: str | None = None) -> Outcome:
    """What a run's folder says.

    Args:
        method: unset is the run's name without what tells its seed apart.

    Raises:
        FailedPrecondition: it is no run's folder, or its evaluation is not done.
        DataError: a file is damaged.
    """
    folder = RunFolder.open(root)
    step = folder.plan.last("evaluate")
    if step is None or not folder.store.seal_of(step.name):
        raise FailedPrecondition(f"{root} has no finished evaluation; lodestar run {root / 'config.yaml'} --resume")
    rows, found = folder.rows(step, "samples.jsonl"), folder.figures(step, "evaluation.json")
    held = all("after" in row for row in rows)
    digest = folder.store.digest
    against, reward = (step.inputs.get(port) for port in ("against", "reward"))
    replies = {row["prompt"]: row["after" if held else "before"] for row in rows}
    best_of = folder.run.services.policy.best_of
    picking = reward if best_of > 1 and reward else ()  # a policy that picks by the reward is made of it too
    made = list(behind(folder.plan, step.inputs["policy"][0], *picking))
    start, other = digest(step.inputs["policy"][0]), digest(against[0]) if against and held else None
    return Outcome(
        name=folder.run.name,
        method=method or method_of(folder.run.name, folder.run.seed),
        seed=folder.run.seed,
        judge=str(found["judge"]),
        replies=replies,
        baseline={row["prompt"]: row["before"] for row in rows} if held else None,
        start=start,
        against=other,
        reward=digest(reward[0]) if reward else None,
        kl=_kl(found, best_of, start == other),
        length=fmean(reply["tokens"] for reply in replies.values()),
        tokens=_sampled(folder, made),
        labels=_labels(folder, made),
        seconds=round(sum(folder.store.seal_of(one.name)["seconds"] for one in made), 3),
    )


def read_outcomes(roots: Sequence[Path]) -> list[Outcome]:
    """Of finished runs, by name.

    Raises:
        FailedPrecondition: as read_outcome, or two runs are of one method and seed.
    """
    found: dict[tuple[str, int], Outcome] = {}
    for root in roots:
        one = read_outcome(root)
        if (one.method, one.seed) in found:
            raise FailedPrecondition(
                f"{root}: a run of {one.method} with seed {one.seed} is there already; runs of one method are told "
                "apart by their seeds"
            )
        found[one.method, one.seed] = one
    return list(found.values())


def method_of(name: str, seed: int) -> str:
    """``dpo-s3`` of seed 3 is a run of ``dpo``; any other name is the method's."""
    return name.removesuffix(f"-s{seed}") or name


def behind(plan: Plan, *artifacts: str) -> Iterator[Step]:
    """The steps that artifacts are made from, their own included, in the plan's order."""
    wanted: set[str] = set()
    ahead = list(artifacts)
    while ahead:
        maker = plan.maker(ahead.pop())
        if maker is not None and maker.name not in wanted:
            wanted.add(maker.name)
            ahead += [one for taken in maker.inputs.values() for one in taken]
    return (step for step in plan.steps if step.name in wanted)


def _aspects(replies: Mapping[str, Row]) -> dict[str, float]:
    rows = [row.get("aspects", {}) for row in replies.values()]
    return {name: fmean(row[name] for row in rows) for name in rows[0]} if rows else {}


def _kl(found: Row, best_of: int, is_start: bool) -> float | None:
    """Nats per reply; of best-of-n sampling from the start model its bound, since the log-probs of what it picks are
    the start model's own."""
    if is_start and best_of > 1:
        return best_of_n_kl(best_of)
    return float(found["policy"]["kl"]) if "policy" in found else None


def _sampled(folder: RunFolder, steps: Iterable[Step]) -> int | None:
    """Tokens of the replies that stages took in, as their samples or their metrics have them."""
    counts: list[int] = []
    for step in (one for one in steps if one.stage.rolls_out):
        samples = [port for port, kind in step.makes.items() if kind == "samples"]
        metrics = [row for row in folder.rows(step, "metrics.jsonl") if "response_length" in row]
        if samples:
            rows = read_jsonl(folder.store.path(f"{step.name}/{samples[0]}") / "samples.jsonl")
            counts.append(sum(int(reply["tokens"]) for row in rows for reply in row["replies"]))
        elif metrics and isinstance(batch := getattr(step.stage, "batch", None), int):
            counts.append(round(batch * sum(row["response_length"] for row in metrics)))
        else:
            return None
    return sum(counts)


def _labels(folder: RunFolder, steps: Iterable[Step]) -> int:
    """Rows of every feedback that one of the steps takes, each once."""
    taken = {a for step in steps for artifacts in step.inputs.values() for a in artifacts}
    files = [
        folder.store.path(artifact) / f"{split}.jsonl"
        for artifact in sorted(taken)
        if folder.plan.kinds[artifact] == "feedback"
        for split in ("train", "held_out")
    ]
    return sum(1 for file in files if file.exists() for _ in numbered_rows(file))
