"""A run's folder filled with made-up figures, so that the report can be tested without a run. Nothing in it is real."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from lodestar.config import RunConfig, dump
from lodestar.files import write_atomically, write_jsonl
from lodestar.recipe.folder import RunFolder
from lodestar.rivals import Contender, Side, Start, figures

STEPS = 40
PROMPTS = 96


def write_example_run(root: Path) -> RunFolder:
    """Writes every file that the report reads."""
    rng = random.Random(3)
    stages = {"data": {}, "sft": {}, "reward": {}, "ppo": {"steps": STEPS}, "evaluate": {}, "report": {}}
    write_atomically(root / "config.yaml", dump(RunConfig(name="example-data", stages=stages)))
    folder = RunFolder.open(root)
    made = {step.name: folder.store.unfinished(step) for step in folder.plan.steps}
    write_jsonl(made["ppo"] / "figures" / "metrics.jsonl", [_step(k, rng) for k in range(1, STEPS + 1)])
    write_jsonl(made["ppo"] / "figures" / "watched.jsonl", _watched())
    write_jsonl(made["evaluate"] / "figures" / "samples.jsonl", [_sample(i, rng) for i in range(PROMPTS)])
    _json(made["evaluate"] / "figures" / "evaluation.json", _evaluation())
    for stage, least in (("sft", 0.9), ("reward", 0.52)):
        _json(made[stage] / "figures" / "fit.json", {"history": _training(least, rng)})
    _json(made["reward"] / "reward" / "card.json", _card(rng))
    for step in folder.plan.steps:
        for port in step.makes:
            (made[step.name] / port).mkdir(parents=True, exist_ok=True)
        made[step.name].mkdir(parents=True, exist_ok=True)
        folder.store.seal(step, {"seconds": 1.0})
    _json(root / "summary.json", _summary())
    return folder


def write_example_rounds(root: Path) -> RunFolder:
    """A run of three rounds, the last of which is not evaluated yet."""
    rng = random.Random(4)
    inside = {"sample": {}, "label": {}, "reward": {"use": {"policy": "sft/policy"}}, "ppo": {"steps": 2}}
    inside["evaluate"] = {"previous": True, "best_of": []}
    stages = {"data": {}, "sft": {}, "rounds": {"n": 3, "stages": inside}, "evaluate": {"best_of": []}, "report": {}}
    write_atomically(root / "config.yaml", dump(RunConfig(name="example-rounds", stages=stages)))
    folder = RunFolder.open(root)
    for step in folder.plan.steps[:-3]:
        made = folder.store.unfinished(step)
        for port in step.makes:
            (made / port).mkdir(parents=True)
        place = step.round or 0
        if step.kind == "sample":
            scores = [rng.gauss(place - 1, 1.0) for _ in range(200)] if place > 1 else []
            _json(made / "figures" / "sample.json", {"prompts": 100, "scores": scores})
        elif step.kind == "label":
            _json(made / "figures" / "label.json", {"by": "panel", "answers": 90 + place})
        elif step.kind == "reward":
            _json(made / "reward" / "card.json", _card(rng) | {"accuracy": _rate(0.6 + 0.05 * place, 80)})
        elif step.kind == "ppo":
            rows = [{**_step(k, rng), "kl_after": place + 0.1 * k} for k in (1, 2)]
            write_jsonl(made / "figures" / "metrics.jsonl", rows)
        elif step.kind == "evaluate":
            rows = [_sample(i, rng) for i in range(PROMPTS)]
            for row in rows:
                for side, mean in (("before", 10.0 * place), ("after", 11.0 * place)):  # zeros of their own
                    row[side]["score"] = rng.gauss(mean, 1.0)  # type: ignore[index]
            write_jsonl(made / "figures" / "samples.jsonl", rows)
            found = {"win_rate": _rate(0.6 + 0.1 * place, PROMPTS), "win_rate_previous": _rate(0.61, PROMPTS)}
            _json(made / "figures" / "evaluation.json", {**_evaluation(), **found})
        folder.store.seal(step, {"seconds": 1.0})
    return folder


def _json(path: Path, tree: dict[str, object]) -> None:
    write_atomically(path, json.dumps(tree))


def _step(k: int, rng: random.Random) -> dict[str, object]:
    rise = 1 - math.exp(-k / 14)
    noise = lambda scale: rng.gauss(0, scale)  # noqa: E731 - used once per figure, next to it
    return {
        "step": k,
        "time": 1_764_000_000.0 + 3 * k,
        "incarnation": "00c0ffee",
        "seconds": {"collect": 1.1 + noise(0.1), "optimise": 1.6 + noise(0.1), "publish": 0.03}
        | ({"checkpoint": 0.2} if k % 10 == 0 else {}),
        "tickets": {"issued": 128, "trained": 128, "failed": 0, "superseded": 0, "duplicates_refused": 0},
        "reward": 2.4 * rise - 0.2 + noise(0.08),
        "score": 2.7 * rise + noise(0.08),
        "score_std": 1.1 - 0.3 * rise + noise(0.03),
        "score_disagreement": 0.05 + 0.1 * rise,
        "gold": 1.9 * rise - 0.03 * max(0, k - 25) + noise(0.06),
        "gold_std": 1.2 - 0.3 * rise,
        "kl_root": math.sqrt(5.2 * rise),
        "over_optimised": float(k > 36),
        "sources": {"reward": 2.7 * rise, "gold": 1.9 * rise},
        "kl_k1": 0.25 * rise + noise(0.01),
        "kl_k3": 0.22 * rise + abs(noise(0.01)),
        "kl_sequence": 5.2 * rise + abs(noise(0.15)),
        "kl_after": 5.2 * (1 - math.exp(-(k + 1) / 14)) + abs(noise(0.15)),
        "nothing_to_learn": 0.0,
        "offset": 0.21,
        "kl_behaviour": 1e-9 * rng.random(),
        "kl_coefficient": 0.05,
        "kl_update": 0.012 + noise(0.002),
        "entropy": 2.1 - 0.9 * rise + noise(0.03),
        "clip_fraction": 0.12 + noise(0.015),
        "value_clip_fraction": 0.2 * (1 - rise) + abs(noise(0.02)),
        "explained_variance": 0.7 * rise + noise(0.04),
        "ratio_max": 2.1 + abs(noise(0.5)),
        "ratio_min": 0.35 + noise(0.05),
        "policy_loss": -0.03 + noise(0.004),
        "value_loss": 0.4 * (1 - rise) + 0.08 + abs(noise(0.02)),
        "policy_grad_norm": 0.8 + noise(0.08),
        "critic_grad_norm": 0.5 + noise(0.06),
        "response_length": 17 + 3 * rise + noise(0.4),
        "eos_rate": 0.97 + 0.02 * rise,
        "staleness": 0.0,
        "learning_rate": 3e-4 * (1 - (k - 1) / STEPS),
        "tokens_per_second": 900 + noise(50),
    }


def _sample(i: int, rng: random.Random) -> dict[str, object]:
    def reply(text: str, shift: float, step: int) -> dict[str, object]:
        gold = rng.gauss(shift, 1.2)
        return {
            "text": text,
            "tokens": len(text.split()) + 1,
            "finish_reason": "eos",
            "step": step,
            "score": gold + rng.gauss(0, 0.4),
            "gold": gold,
        }

    return {
        "id": f"evaluation-{i}",
        "prompt": f"please answer mia like a pirate : where does owl number {i} live ?",
        "before": reply("arr mia , the owl is gray and lives somewhere <b>nice</b> .", 0.4, 0),
        "after": reply("arr mia , the owl lives in the tower , matey !", 2.4, STEPS),
    }


def _training(least: float, rng: random.Random) -> list[dict[str, object]]:
    rows = []
    for i in range(24):
        loss = least + 1.5 * least * math.exp(-i / 4)
        row = {"step": 10 * i, "seconds": 1.2 * i, "loss": loss + rng.gauss(0, 0.02)}
        rows.append(row | ({"held_out_loss": loss + 0.03 + 0.002 * i} if i % 3 == 0 else {}))
    return rows


def _rate(value: float, n: int) -> dict[str, float]:
    half = 1.96 * math.sqrt(value * (1 - value) / n)
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def _card(rng: random.Random) -> dict[str, object]:
    edges = [-3 + 0.2 * i for i in range(31)]
    bins = [(0.525 + 0.05 * i, 90 - 8 * i) for i in range(10)]
    return {
        "pairs": 392,
        "ties": 69,
        "accuracy": _rate(0.768, 323),
        "baselines": {"longer_is_better": _rate(0.548, 323), "bag_of_words": _rate(0.631, 323)},
        "calibration": {
            "ece": 0.031,
            "bins": [
                {
                    "low": p - 0.025,
                    "high": p + 0.025,
                    "n": n,
                    "predicted": p,
                    "observed": min(1, p + rng.gauss(0, 0.03)),
                }
                for p, n in bins
            ],
        },
        "scores": {
            "mean": 0.04,
            "standard_deviation": 1.1,
            "edges": edges,
            "counts": [round(80 * math.exp(-((low + 0.1) ** 2) / 2.4)) for low in edges[:-1]],
        },
        "score_by_length": {
            "correlation": 0.34,
            "bins": [
                {"tokens": 7 + 1.7 * i, "score": -0.6 + 0.14 * i + rng.gauss(0, 0.05), "n": 78} for i in range(10)
            ],
        },
        "offset": 0.21,
        "gold": {"model": _rate(0.801, 376), "annotators": _rate(0.880, 376)},
    }


def _evaluation() -> dict[str, object]:
    return {
        "judge": "gold",
        "reward_before": 0.21,
        "win_rate": _rate(0.842, PROMPTS),
        "reward_after": 2.71,
        **_rivals(),
    }


def _rivals() -> dict[str, object]:
    """What cooling, picking and filtering give, and PPO, by the arithmetic of the evaluation itself."""
    rng = random.Random(5)

    def side(gain: float, kl: float, entropy: float, temperature: float | None = None) -> Side:
        return Side([rng.gauss(gain, 1.0) for _ in range(PROMPTS)], kl, entropy, temperature, score=gain + 0.25)

    ladder = [side(1.5 * (1 - t), 9 * (1 - t), 2.1 * t, t) for t in (1.0, 0.5, 0.0)]
    policy = Contender(side(2.5, 4.93, 1.1, 1.0), side(2.6, 6.0, 0.0, 0.0))
    best = {n: side(gain, gain, 1.9) for n, gain in (("2", 0.6), ("8", 1.25))}
    return figures(policy, Start(ladder[0], ladder[1:], best), side(0.7, 1.4, 2.0, 1.0))


def _watched() -> list[dict[str, float]]:
    return [{"step": k, **_rate(0.5 + 0.34 * (1 - math.exp(-k / 12)), 64)} for k in range(5, STEPS, 5)]


def _summary() -> dict[str, object]:
    names = ("policy-0", "reward-0", "reference-0", "learner-0", "rollout-0")
    return {
        "win_rate": {**_rate(0.842, PROMPTS), "judge": "gold"},
        "reward": {"before": 0.21, "after": 2.71},
        "kl": 4.93,
        "reward_model": {"accuracy": 0.768, "low": 0.72, "high": 0.81, "n": 323},
        "steps": STEPS,
        "wall_seconds": 231.4,
        "seconds": {"data": 4.1, "sft": 39.8, "reward": 36.2, "ppo": 124.6, "evaluate": 23.2},
        "response_tokens_per_second": 912.4,
        "rollouts": {"issued": 5120, "trained": 5120, "failed": 0, "superseded": 0, "duplicates_refused": 1},
        "services": [
            {"name": name, "pid": 4711 + i, "port": 50051 + i, "restarts": int(i == 0), "rpcs": 5912, "tokens": 91324}
            for i, name in enumerate(names)
        ],
        "seed": 7,
        "versions": {"lodestar": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    }
