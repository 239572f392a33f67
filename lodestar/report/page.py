"""Puts facts and figures into the page."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from lodestar.cautions import cautions
from lodestar.files import write_atomically
from lodestar.numerals import fixed
from lodestar.report import figures
from lodestar.report.breakdown import alignment_tax, behind_the_rate, policy_reliability
from lodestar.report.card import card_pictures
from lodestar.report.drawing import Figure
from lodestar.report.facts import Facts, Row, read_facts
from lodestar.report.metrics import GROUPS
from lodestar.report.rivals import rival_table
from lodestar.report.shell import assets, template
from lodestar.report.shift import shift_picture
from lodestar.samples import judgement, spread

SHOWN, SAMPLES = 3, 8
"""Prompts shown at the head, and those that unfold."""


def write_report(root: Path) -> Path:
    """Writes ``root/report.html`` from the run's files, and returns where; an unfinished run gets what there is.

    Raises:
        DataError: a file of the run is damaged.
    """
    page = root / "report.html"
    write_atomically(page, render(read_facts(root)))
    return page


def render(facts: Facts) -> str:
    """The page's HTML: style, script and pictures inside, nothing fetched."""
    sections = _pictures(facts)
    page = template("page.html.j2", filters={"signed": _signed}, names={"judgement": judgement})
    return page.render(
        facts=facts,
        summary=facts.summary,
        headline=_headline(facts),
        key_figures=_key_figures(facts),
        rivals=rival_table(facts),
        means=_means(facts),
        labelled=_labelled(facts),
        rounds=[_round(row) for row in facts.rounds],
        shown=_samples(facts, SHOWN),
        samples=_samples(facts, SAMPLES),
        tastes=_tastes() if facts.synthetic else (),
        groups=_metric_groups(facts),
        pictures=sections,
        **assets(figure for group in sections.values() for figure in group),
    )


def _pictures(facts: Facts) -> dict[str, list[Figure]]:
    """Section → its pictures, in order."""
    better = [figures.win_rates(facts), figures.running_win_rate(facts), figures.over_optimisation(facts)]
    better += [figures.disagreement(facts), figures.score_against_kl(facts)]
    better += [behind_the_rate(facts), policy_reliability(facts), alignment_tax(facts)]
    card = facts.card
    reward_model = card_pictures(card) if card else []
    seconds = facts.summary.get("seconds", {})
    time = [figures.stage_seconds(seconds) if seconds else None, figures.step_seconds(facts.steps)]
    return {
        "better": [figure for figure in better if figure],
        "rounds": [figure for figure in (shift_picture(facts.shift),) if figure],
        "curves": [figure for _, group in _metric_groups(facts) for figure in group],
        "reward_model": reward_model,
        "training": [figures.training_curve(stage, lines) for stage, lines in facts.training.items()],
        "time": [figure for figure in time if figure],
    }


def _metric_groups(facts: Facts) -> list[tuple[str, list[Figure]]]:
    """Small multiples of every metric that the run logged, by what they tell about."""
    groups = []
    for title, metrics in GROUPS.items():
        group = [
            figures.small_multiple(facts.steps, metric.name, metric.title, metric.says)
            for metric in metrics
            if any(row.get(metric.name) is not None for row in facts.steps)
        ]
        if group:
            groups.append((title, group))
    return groups


def _headline(facts: Facts) -> str:
    """The run's result in a sentence."""
    rate = facts.summary.get("win_rate")
    if not rate:
        done, steps = len(facts.steps), facts.config.get("ppo", {}).get("steps", 0)
        return "This run is not finished" + (f": {done} of {steps} PPO steps are done." if steps else ".")
    doubts = cautions(facts.summary, facts.config.get("ppo", {}).get("steps", 0))
    verdict = "beats" if rate["low"] > 0.5 else "loses to" if rate["high"] < 0.5 else "cannot be told apart from"
    judge = (
        "a hidden gold reward that no stage has seen"
        if rate["judge"] == "gold"
        else "the reward model it was trained on"
    )
    rounds = sum(row["win_rate"] is not None for row in facts.rounds)
    after = f"{facts.summary['steps']} steps of PPO" if facts.summary["steps"] else facts.method
    after = f"{rounds} rounds of feedback" if rounds > 1 else after
    wins = f"wins {rate['value']:.1%} of {rate['n']} held-out prompts, judged by {judge}"
    if doubts:  # no praise for what stopped itself, or was stopped
        return " ".join([*doubts, f"Against the SFT model it started from the policy {wins}."])
    return f"After {after} the policy {verdict} the SFT model it started from: it {wins}."


def _key_figures(facts: Facts) -> list[tuple[str, str, str]]:
    """Headline figures: value, what it is, what it stands beside."""
    summary = facts.summary
    if not summary:
        return []
    rate, model, reward = summary["win_rate"], summary["reward_model"], summary["reward"]
    kl = (summary["policy"] or {}).get("kl") if summary["kl"] is None else summary["kl"]
    if rate is None or kl is None:
        return []
    accuracy = []
    if model:
        interval_of_model = f"reward model, {model['low']:.0%}–{model['high']:.0%}"
        accuracy = [(f"{model['accuracy']:.1%}", "pair accuracy", interval_of_model)]
    speed = summary["response_tokens_per_second"]
    rollouts = [] if speed is None else [(f"{speed:,.0f}", "tokens per second", "of responses, in PPO")]
    best = max(facts.best_of.items(), key=lambda item: int(item[0]), default=None)
    beside = f"best-of-{best[0]} {best[1]['win_rate']:.1%}" if best else ""
    interval = f"{rate['low']:.1%} – {rate['high']:.1%}"
    return [
        (f"{rate['value']:.1%}", "win rate against SFT", " · ".join(filter(None, (interval, beside)))),
        (
            _signed(reward["after"] - reward["before"], plus=True),
            "reward-model score",
            f"from {_signed(reward['before'])} to {_signed(reward['after'])}",
        ),
        (f"{kl:.2f}", "KL to the reference" if facts.rounds else "KL to SFT", "nats per sequence"),
        *accuracy,
        (_clock(summary["wall_seconds"]), "wall time", f"{summary['steps']} PPO steps" if summary["steps"] else ""),
        *rollouts,
    ]


def _means(facts: Facts) -> list[tuple[str, str, str]]:
    """Held-out means before and after."""
    pairs = [(row["before"], row["after"]) for row in facts.samples if "after" in row]
    if not pairs:
        return []

    def row(label: str, of: Any, form: str) -> tuple[str, str, str]:
        before, after = (format(fmean(of(pair[side]) for pair in pairs), form) for side in (0, 1))
        return label, before, after

    rows = [
        row("reward-model score", lambda reply: reply["score"], ".2f"),
        row("tokens", lambda reply: reply["tokens"], ".1f"),
        row("ended by itself", lambda reply: float(reply["finish_reason"] == "eos"), ".1%"),
    ]
    for name in pairs[0][0].get("aspects", {}):
        rows.append(row(name, lambda reply, name=name: reply["aspects"][name], ".2f"))
    if pairs[0][0].get("gold") is not None:
        rows.insert(0, row("gold reward", lambda reply: reply["gold"], ".2f"))
    return rows


def _labelled(facts: Facts) -> str:
    """How far the judge whose labels the reward learned from agrees with people; empty where people labelled."""
    shared = facts.results.get("label", {}).get("shared")
    if not shared:
        return ""
    share, kappa = shared["agreement"], shared["kappa"]
    return (
        f"Labels are by a judge, which agrees with people on {share['value']:.1%} ({share['low']:.0%}–"
        f"{share['high']:.0%}) of {shared['n']} pairs that both judged: Cohen's κ is {_signed(kappa['value'])}."
    )


def _round(row: Row) -> list[str]:
    """A round's row of the table, as it is read."""

    def rate(found: Row | None) -> str:
        return f"{found['value']:.1%} ({found['low']:.0%}–{found['high']:.0%})" if found else "–"

    return [
        str(row["round"]),
        rate(row["win_rate"]),
        rate(row["win_rate_previous"]),
        rate(row["reward_model"]),
        "–" if row["kl"] is None else _signed(row["kl"]),
        "–" if row["labels"] is None else f"{row['labels']:,}",
    ]


def _samples(facts: Facts, count: int) -> list[Row]:
    """Samples spread over what they gained; of the synthetic world each with the best reply there is."""
    rows = spread(facts.samples, facts.judge, count)
    return [row | {"best": _best(row["prompt"]) if facts.synthetic else None} for row in rows]


def _tastes() -> tuple[str, str]:
    from lodestar.data.world.tastes import tastes

    return tastes()


def _best(prompt: str) -> str | None:
    """None for a prompt that is none of the world's."""
    from lodestar.data.world.tastes import best

    try:
        return best(prompt)
    except ValueError:
        return None


def _signed(value: float, plus: bool = False) -> str:
    """Two decimals with a real minus sign."""
    return fixed(value, plus=plus)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
