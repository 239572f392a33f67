"""What the runs of a comparison say together: win rates with intervals over seeds, costs, and the order of methods.

A seed's win rate is the share of its held-out prompts on which a method's reply is judged better than the SFT model's
of that seed, a tie counting ½. A method's is the mean over seeds, with Student's interval over them: seeds differ in
data, start and samples, so it holds what an interval over one run's prompts leaves out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from scipy.stats import kendalltau

from lodestar.compare.aspects import aspect_means, trade_offs
from lodestar.compare.means import Mean, over_seeds
from lodestar.compare.runs import Outcome, Row
from lodestar.errors import FailedPrecondition
from lodestar.evaluation import WinRate, win_rate

ALPACA_FARM = {
    "instruct-gpt": 46.8,
    "ppo": 46.8,
    "best-of-n": 45.0,
    "expert-iteration": 41.9,
    "sft-5x": 39.2,
    "sft": 36.7,
    "feedme": 36.6,
    "quark": 35.6,
    "reward-conditioning": 32.4,
}
"""Simulated win rate in percent against text-davinci-003 (Dubois et al. 2023, AlpacaFarm, table 2), by our names."""


def compared(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """compare.json: ``rows`` by method from the best down, ``tau``, ``differences``, ``duels``, ``trade_offs``,
    ``runs`` and ``notes``.

    - rows: {method, win_rate, low, high, seeds, kl, tokens, labels, seconds, length}, and ``aspects`` where the reward
      has several parts; the interval of a method of one seed is over its prompts, and ``notes`` say so. kl is null
      where it was not measured.
    - tau: Kendall's τ_b of these win rates and AlpacaFarm's, over the methods in both; null below two.
    - differences: the best method's win rate less each other's, seed by seed, with the interval over seeds.
    - duels: how often one method's reply beats another's to the same prompt, [row][column] in the order of rows.
    - trade_offs: aspects two by two, and the methods that no other beats (lodestar.compare.aspects).
    - runs: each run's own figures.

    Raises:
        FailedPrecondition: no outcomes, or a run that shares no prompts with a baseline of its seed.
    """
    if not outcomes:
        raise FailedPrecondition("there is no finished run to compare")
    judge = "gold" if all(one.judge == "gold" for one in outcomes) else "reward"
    baselines = _baselines(outcomes)
    outcomes = [replace(one, kl=0.0) if _is_baseline(one, baselines) else one for one in outcomes]
    rates = {one: _rate(one, baselines, judge) for one in outcomes}
    rows = sorted((_row(of, rates) for of in _by_method(outcomes).values()), key=lambda row: -row["win_rate"])
    order = [row["method"] for row in rows]
    return {
        "judge": judge,
        "rows": rows,
        "tau": tau(rows),
        "differences": _differences(order, rates),
        "duels": _duels(order, outcomes, judge),
        "trade_offs": trade_offs(rows, outcomes),
        "runs": [_of_run(one, rate) for one, rate in rates.items()],
        "notes": _notes(outcomes, baselines, judge),
    }


def tau(rows: Sequence[Row]) -> float | None:
    """Kendall's τ_b (1945) of the rows' win rates and AlpacaFarm's; None where fewer than two methods are in both, or
    one of the two orders is all ties."""
    known = [(row["win_rate"], ALPACA_FARM[row["method"]]) for row in rows if row["method"] in ALPACA_FARM]
    if len(known) < 2:
        return None
    ours, theirs = zip(*known, strict=True)
    found = float(kendalltau(ours, theirs).statistic)
    return None if math.isnan(found) else found


def _by_method(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for one in outcomes:
        found.setdefault(one.method, []).append(one)
    return found


def _baselines(outcomes: Sequence[Outcome]) -> dict[int, Outcome]:
    """By seed, the run whose replies of the start model stand for all: the first that has some."""
    found: dict[int, Outcome] = {}
    for one in outcomes:
        if one.baseline is not None:
            found.setdefault(one.seed, one)
    for one in outcomes:
        if one.seed not in found:
            raise FailedPrecondition(
                f"no run of seed {one.seed} holds its policy against another model, so {one.name} has nothing to be "
                "compared with; add a run whose evaluation has one (evaluate.use.against)"
            )
    return found


def _is_baseline(one: Outcome, baselines: Mapping[int, Outcome]) -> bool:
    """Whether it is the start model itself, without anything on top."""
    return one.baseline is None and one.start == baselines[one.seed].against


def _rate(one: Outcome, baselines: Mapping[int, Outcome], judge: str) -> WinRate:
    """Against the run's own baseline, else that of its seed."""
    other = one if one.baseline is not None else baselines[one.seed]
    assert other.baseline is not None
    if _is_baseline(one, baselines):  # its replies are as good as its own
        return WinRate(0.5, 0.5, 0.5, len(one.replies))
    return _won(one, other.baseline, f"the start model's replies in {other.name}", judge)


def _won(one: Outcome, others: Mapping[str, Row], whose: str, judge: str) -> WinRate:
    shared = [prompt for prompt in one.replies if prompt in others]
    if not shared:
        raise FailedPrecondition(
            f"{one.name} was evaluated on none of the prompts of {whose}; compare runs of one data"
        )
    key = "gold" if judge == "gold" else "score"
    return win_rate([one.replies[p][key] for p in shared], [others[p][key] for p in shared])


def _row(of: Sequence[Outcome], rates: Mapping[Outcome, WinRate]) -> Row:
    values = [rates[one].value for one in of]
    alone = rates[of[0]]
    won = over_seeds(values, least=0.0, most=1.0) if len(of) > 1 else Mean(alone.value, alone.low, alone.high)
    aspects = aspect_means(of)
    return {
        "method": of[0].method,
        "win_rate": won.value,
        "low": won.low,
        "high": won.high,
        "seeds": len(of),
        "kl": _mean([one.kl for one in of]),
        "tokens": None if (tokens := _mean([one.tokens for one in of])) is None else round(tokens),
        "labels": round(fmean(one.labels for one in of)),
        "seconds": round(fmean(one.seconds for one in of), 1),
        "length": round(fmean(one.length for one in of), 2),
    } | ({"aspects": aspects} if aspects else {})


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them was not measured."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _differences(order: Sequence[str], rates: Mapping[Outcome, WinRate]) -> list[Row]:
    """The best method against each other one on the seeds that both have."""
    by = {(one.method, one.seed): rate.value for one, rate in rates.items()}
    found = []
    for method in order[1:]:
        seeds = [seed for name, seed in by if name == order[0] and (method, seed) in by]
        if len(seeds) > 1:
            apart = over_seeds([by[order[0], seed] - by[method, seed] for seed in seeds], least=-1.0, most=1.0)
            found.append({"method": order[0], "against": method, "seeds": len(seeds), **asdict(apart)})
    return found


def _duels(order: Sequence[str], outcomes: Sequence[Outcome], judge: str) -> list[list[float | None]]:
    """Row against column, mean over the seeds that both have; None where they share no prompts."""
    by = {(one.method, one.seed): one for one in outcomes}
    seeds = list(dict.fromkeys(one.seed for one in outcomes))
    table: list[list[float | None]] = [[None] * len(order) for _ in order]
    for (i, first), (j, second) in itertools.permutations(enumerate(order), 2):
        pairs = [(by[first, s], by[second, s]) for s in seeds if (first, s) in by and (second, s) in by]
        won = [_won(a, b.replies, b.name, judge).value for a, b in pairs if set(a.replies) & set(b.replies)]
        table[i][j] = fmean(won) if won else None
    return table


def _of_run(one: Outcome, rate: WinRate) -> Row:
    return {
        "run": one.name,
        "method": one.method,
        "seed": one.seed,
        "win_rate": asdict(rate),
        "kl": one.kl,
        "tokens": one.tokens,
        "labels": one.labels,
        "seconds": one.seconds,
        "length": one.length,
    } | ({"aspects": one.aspects} if one.aspects else {})


def _notes(outcomes: Sequence[Outcome], baselines: Mapping[int, Outcome], judge: str) -> list[str]:
    """What a reader must know to read the table rightly."""
    notes = []
    if alone := [name for name, of in _by_method(outcomes).items() if len(of) == 1]:
        notes.append(f"One seed alone, so the interval is over its prompts: {', '.join(alone)}.")
    strangers = {one.method for one in outcomes if one.against and one.against != baselines[one.seed].against}
    if strangers:
        notes.append(f"Judged against another start model than the rest: {', '.join(sorted(strangers))}.")
    judges = {(one.seed, one.reward) for one in outcomes}
    if judge == "reward" and len(judges) > len(baselines):
        notes.append("The judge is each run's reward model, and runs of one seed have different ones.")
    if judge == "reward":
        notes.append("Judged by the reward that methods trained on: this says how far they got, not how good they are.")
    return notes
