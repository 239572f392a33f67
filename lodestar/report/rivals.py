"""What PPO must beat, as a table: everything that the evaluation held it against (lodestar.rivals)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lodestar.report.facts import BEST_OF_N, Facts, Row

BASELINE = "SFT at temperature 1"


@dataclass(frozen=True, slots=True)
class RivalTable:
    """Everything that is said of rivals."""

    sentence: str
    """Whether PPO learned more than sharpening gives, with its figures."""
    greedy: str
    """Both models at their likeliest tokens."""
    headers: tuple[str, ...]
    rows: list[list[str]]
    """Name, then a cell per header; PPO last."""


def rival_table(facts: Facts) -> RivalTable | None:
    """The table of the last evaluation; None where it compared the policy with nothing."""
    found = facts.results.get("evaluation", {})
    if "sft" not in found:
        return None
    judged = (("gold", "judgement"), ("score", "score")) if facts.judge == "gold" else (("score", "score"),)
    headers = ("against SFT", "PPO against it", *(header for header, _ in judged), "KL", "entropy")
    rows = [
        [
            name,
            "–" if name == BASELINE else _rate(side["win_rate"], side["low"], side["high"]),
            _rate(**against) if (against := side.get("against_policy")) else "–",
            *(
                f"{round(side[key], 2) + 0.0:.2f}".replace("-", "−")
                for key in (*(key for _, key in judged), "kl", "entropy")
            ),
        ]
        for name, side in _sides(found)
    ]
    rate = found["greedy"]
    greedy = f"With both always at their likeliest token, PPO wins {_rate(rate['value'], rate['low'], rate['high'])}."
    return RivalTable(found["learned"]["sentence"], greedy, headers, rows)


def _sides(found: Row) -> Iterator[tuple[str, Row]]:
    """Name and figures of every contestant, from the plainest to PPO."""
    for side in found["sft"]:
        yield ("SFT, greedy" if side["temperature"] == 0 else f"SFT at temperature {side['temperature']:g}"), side
    for key, side in found["rivals"].items():
        if key.startswith(BEST_OF_N):
            yield f"SFT, best of {key.removeprefix(BEST_OF_N)}", side
    if "sft_on_best" in found["rivals"]:
        yield "SFT on the best demonstrations", found["rivals"]["sft_on_best"]
    yield "PPO", found["policy"]


def _rate(value: float, low: float, high: float) -> str:
    return f"{value:.1%} ({low:.0%}–{high:.0%})"
