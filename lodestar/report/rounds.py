"""A run's rounds: a row of figures for each, and how scores moved from one to the next (Touvron et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lodestar.files import read_json
from lodestar.recipe.folder import RunFolder
from lodestar.recipe.plan import Step

Row = dict[str, Any]


def round_rows(folder: RunFolder) -> list[Row]:
    """A row for every round that has begun: what its last stages found; null where it has no such stage, or not yet.

    ``win_rate`` (against the SFT model) and ``win_rate_previous`` (against the policy of the round before) are of the
    evaluation of the round's policy, in the round or after it. ``reward_model``: accuracy on pairs that no stage has
    seen. ``kl``: nats per sequence to the reference of the round's PPO. ``labels``: answers that the round paid for.
    """
    rounds = sorted({step.round for step in folder.plan.steps if step.round and (folder.root / step.name).exists()})
    return [_row(folder, number) for number in rounds]


def score_shift(folder: RunFolder) -> list[Row]:
    """Scores of the SFT model and of every round's policy: ``{"round", "scores", "reward"}``, round 0 being SFT.

    Each evaluation scores a policy and the SFT model by one reward model. Reward models have zeros of their own, so
    each score is given as its distance from the SFT model's mean by the same reward model. A round whose policy nobody
    evaluated is told by the next round's samples, where these were scored by the reward model of some evaluation, and
    else left out.
    """
    found: list[Row] = []
    zeros: dict[str, float] = {}
    for step in _evaluations(folder):
        rows = [row for row in folder.rows(step, "samples.jsonl") if "after" in row]
        if not rows or "reward" not in step.inputs:
            continue
        (reward,), (policy,) = step.inputs["reward"], step.inputs["policy"]
        before = [row["before"]["score"] for row in rows]
        zeros[reward] = fmean(before)
        if not found:
            found.append({"round": 0, "reward": reward, "scores": [score - zeros[reward] for score in before]})
        after = [row["after"]["score"] - zeros[reward] for row in rows]
        found.append({"round": _round_of(folder, policy), "reward": reward, "scores": after})
    told = {row["round"] for row in found}
    for step in folder.plan.steps:
        (policy,), (reward,) = step.inputs.get("policy", ("",))[:1], step.inputs.get("reward", ("",))[:1]
        place = _round_of(folder, policy)
        if step.kind == "sample" and place not in {*told, 0} and reward in zeros:
            scores = folder.figures(step, "sample.json").get("scores", [])
            if scores:
                told.add(place)
                found.append({"round": place, "reward": reward, "scores": [score - zeros[reward] for score in scores]})
    newest = {row["round"]: row for row in found}  # the last evaluation of a policy
    return [newest[place] for place in sorted(newest)]


def _row(folder: RunFolder, number: int) -> Row:
    mine = {step.kind: step for step in folder.plan.steps if step.round == number}  # the last of a kind
    evaluated = [step for step in _evaluations(folder) if _round_of(folder, step.inputs["policy"][0]) == number]
    results = [folder.figures(step, "evaluation.json") for step in evaluated]
    steps = folder.rows(mine.get("ppo"), "metrics.jsonl")
    labels = folder.figures(mine.get("label"), "label.json")
    return {
        "round": number,
        "win_rate": _last(results, "win_rate"),
        "win_rate_previous": _last(results, "win_rate_previous"),
        "reward_model": _accuracy(folder, mine.get("reward")),
        "kl": steps[-1]["kl_after"] if steps else None,
        "labels": labels.get("answers"),
    }


def _last(results: Sequence[Row], name: str) -> Row | None:
    return next((found[name] for found in reversed(results) if name in found), None)


def _accuracy(folder: RunFolder, step: Step | None) -> Row | None:
    """Of the round's reward model, by its card."""
    if step is None or not folder.store.seal_of(step.name):
        return None
    card = folder.store.path(f"{step.name}/reward") / "card.json"
    if not card.exists():
        return None
    rate = read_json(card)["accuracy"]
    return {name: rate[name] for name in ("value", "low", "high", "n")}


def _evaluations(folder: RunFolder) -> list[Step]:
    """In order, those of a round's policy that have begun."""
    evaluations = (step for step in folder.plan.steps if step.kind == "evaluate" and (folder.root / step.name).exists())
    return [step for step in evaluations if _round_of(folder, step.inputs["policy"][0])]


def _round_of(folder: RunFolder, artifact: str) -> int:
    """Of what made an artifact; 0 outside rounds."""
    maker = folder.plan.maker(artifact)
    return (maker.round or 0) if maker else 0
