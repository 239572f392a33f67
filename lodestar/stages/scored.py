"""Samples with a score each, and prompts on two sides: what the stages that learn from samples have in common."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lodestar.data.corpus import split_families
from lodestar.errors import DataError
from lodestar.recipe.stage import Bench


@dataclass(frozen=True, slots=True)
class ScoredReply:
    """``ScoredReply("ppo-7", "what … ?", "blue", 12, ended=True, score=1.4)``."""

    id: str
    """Of the prompt."""
    prompt: str
    text: str
    tokens: int
    ended: bool
    """Whether it ended by itself."""
    score: float


def scored_samples(bench: Bench) -> list[list[ScoredReply]]:
    """The replies to each prompt of the port ``samples``, scored by this stage's reward.

    Scores that the sampling stage got from the same reward are taken as they are; all others are asked for now, once: a
    killed stage finds them again, since another batch could round them otherwise.

    Raises:
        DataError: no sample is there.
    """
    from lodestar.files import read_jsonl

    found = []
    for artifact in bench.step.inputs["samples"]:
        rows = read_jsonl(bench.store.path(artifact) / "samples.jsonl")
        if not rows:
            raise DataError(bench.store.path(artifact) / "samples.jsonl", "has no rows; sample more prompts")
        maker = bench.plan.maker(artifact)
        same = maker is not None and maker.inputs.get("reward") == bench.step.inputs.get("reward")
        scores = iter(_scores(bench, rows, artifact, known=same))
        found += [
            [
                ScoredReply(
                    row["id"],
                    row["prompt"],
                    reply["text"],
                    reply["tokens"],
                    reply["finish_reason"] == "eos",
                    next(scores),
                )
                for reply in row["replies"]
            ]
            for row in rows
        ]
    return found


def held_out(prompts: Iterable[str], fraction: float, seed: int) -> set[str]:
    """The prompts kept apart for the held-out loss: the fraction of those that differ, one at least."""
    splits = split_families(prompts, fraction, seed)
    return {prompt for prompt, split in splits.items() if split == "held_out"}


def _scores(bench: Bench, rows: list[dict[str, Any]], artifact: str, *, known: bool) -> list[float]:
    """One after another, row by row."""
    from lodestar.asking import Asking
    from lodestar.files import read_json, write_atomically
    from lodestar.records import ChatMessage, ScoreItem

    if known and all(reply["score"] is not None for row in rows for reply in row["replies"]):
        return [reply["score"] for row in rows for reply in row["replies"]]
    kept = bench.unfinished / f"scores-{artifact.partition('/')[0]}.json"
    if kept.exists():
        return [float(score) for score in read_json(kept)["scores"]]
    items = [
        ScoreItem(
            row["prompt"],
            reply["text"],
            reply["finish_reason"] != "eos",
            row.get("columns", {}),
            tuple(ChatMessage(**message) for message in row.get("messages", ())),
        )
        for row in rows
        for reply in row["replies"]
    ]
    scores = asyncio.run(Asking((), bench.servers["reward"], 0, tls=bench.listening.tls).scores(items))
    write_atomically(kept, json.dumps({"scores": scores}))
    return scores
