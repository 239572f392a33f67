"""A run's pictures: what the report draws of its steps, its samples and its stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lodestar.numerals import NOISE, fixed, number
from lodestar.report.drawing import LEGEND, Figure, axes, by_step, horizontal, marks, proportions, vertical
from lodestar.report.facts import Facts, Row

STEP_STAGES = ("collect", "optimise", "publish", "checkpoint")
STEP_COLOURS = ("@tint", "@accent", "@second", "@muted")


def small_multiple(steps: Sequence[Row], name: str, title: str, says: str) -> Figure:
    """One metric by PPO step."""
    points = [(row["step"], row[name]) for row in steps if row.get(name) is not None]
    x, y = [point[0] for point in points], [0.0 if abs(point[1]) < NOISE else point[1] for point in points]
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"color": "@accent", "width": 1.8},
        "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
    }
    last = {
        "type": "scatter",
        "mode": "markers",
        "x": x[-1:],
        "y": y[-1:],
        "marker": {"color": "@accent", "size": 6},
        "hoverinfo": "skip",
    }
    room = abs(y[0]) or 1.0
    flat = {"range": [y[0] - room, y[0] + room], "tickvals": [y[0]]} if min(y) == max(y) else {"nticks": 4}
    layout = axes(yaxis=flat, xaxis=by_step(x, ""))
    return Figure(f"m-{name}", title, says, [line, last], layout, height=130, latest=number(y[-1]))


def win_rates(facts: Facts) -> Figure | None:
    """The policy's and best-of-n's win rates with their intervals."""
    final = facts.summary.get("win_rate") or facts.results.get("evaluation", {}).get("win_rate")
    if not final:
        return None
    rows = [(facts.method, final)]
    by_people = facts.results.get("evaluation", {}).get("people")
    rows += [("judged by people", by_people)] if by_people else []
    rows += [(f"best of {n}", row | {"value": row["win_rate"], "n": final["n"]}) for n, row in facts.best_of.items()]
    rows.reverse()
    colours = ["@second"] * (len(rows) - 1) + ["@accent"]
    dots = proportions([label for label, _ in rows], [rate for _, rate in rows], colours)
    layout = axes(
        "share of prompts won against the SFT model",
        xaxis={"range": [0, 1.02], "tickformat": ".0%", "dtick": 0.25, "showgrid": True},
        yaxis={"showgrid": False, "range": [-0.5, len(rows) - 0.3]},
        shapes=[vertical(0.5)],
    )
    name = f"{facts.method[:1].upper()}{facts.method[1:]}"
    says = f"{name} wins {final['value']:.1%} of {final['n']} held-out prompts; best-of-n from the SFT model beside it."
    if by_people:
        who = by_people["annotators"]
        says += (
            f" By {who} {'person' if who == 1 else 'people'}: {by_people['value']:.1%} of {by_people['n']} comparisons."
        )
    return Figure("win-rates", "Win rate against the SFT model", says, [dots], layout, height=80 + 55 * len(rows))


def running_win_rate(facts: Facts) -> Figure | None:
    """The live view's win rates by step, and the final one."""
    rates = list(facts.results.get("watched", []))
    if final := facts.summary.get("win_rate"):
        last = facts.summary["steps"]
        rates = [rate for rate in rates if rate["step"] != last] + [{"step": last, **final}]
    if len(rates) < 2:
        return None
    x = [rate["step"] for rate in rates]
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": x + x[::-1],
        "y": [rate["high"] for rate in rates] + [rate["low"] for rate in reversed(rates)],
        "fill": "toself",
        "fillcolor": "@accent-soft",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": [rate["value"] for rate in rates],
        "line": {"color": "@accent", "width": 2},
        "marker": {"size": 6},
        "customdata": [rate["n"] for rate in rates],
        "hovertemplate": "step %{x}: %{y:.1%} of %{customdata}<extra></extra>",
    }
    layout = axes(xaxis=by_step(x), yaxis={"range": [0, 1], "tickformat": ".0%"}, shapes=[horizontal(0.5)])
    says = f"From {rates[0]['value']:.0%} after step {x[0]} to {rates[-1]['value']:.0%}; the band is the 95% interval."
    return Figure("running-win-rate", "Win rate while PPO went on", says, [band, line], layout)


def score_against_kl(facts: Facts) -> Figure | None:
    """How much score each nat of KL bought: PPO's path, and best-of-n's points at their KL bound.

    A step's score and KL are both of the policy that made its batch. What the learner did not record is left out.
    """
    steps = [row for row in facts.steps if row.get("score") is not None and row.get("kl_sequence") is not None]
    if len(steps) < 2:
        return None
    kl = [max(0.0, row["kl_sequence"]) for row in steps]
    path = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "PPO, by step",
        "x": kl,
        "y": [row["score"] for row in steps],
        "line": {"color": "@accent", "width": 1.2},
        "marker": {"size": 5, "color": "@accent"},
        "customdata": [row["step"] for row in steps],
        "hovertemplate": "step %{customdata}: score %{y:.3g} at %{x:.3g}<extra></extra>",
    }
    traces, alternatives = [path], [[math.sqrt(value) for value in kl]]
    says = f"The score went from {fixed(steps[0]['score'])} to {fixed(steps[-1]['score'])} at {kl[-1]:.2f} nats. "
    for trace, nats in _other_policies(facts):
        traces.append(trace)
        alternatives.append([math.sqrt(value) for value in nats])
    if facts.offset is None:
        says += "The learner did not record what it subtracted from scores, so no other policy stands beside."
    else:
        says += "Best-of-n stands at its bound log\u00a0n\u00a0−\u00a0(n\u00a0−\u00a01)/n."
        shaped = facts.config.get("ppo", {}).get("score", {})
        if shaped.get("clip") is not None or shaped.get("missing_eos") is not None:
            says += " Only PPO's steps are clipped, or replaced where EOS is missing, as configured."
    titles = {
        "KL": f"KL to {facts.reference}, nats per sequence",
        "√KL": f"√KL to {facts.reference}, √nats per sequence",
    }
    return Figure(
        "score-kl",
        "Reward-model score against KL",
        says,
        traces,
        axes(titles["KL"], showlegend=True, legend=LEGEND),
        height=340,
        alternative={"√KL": alternatives},
        axis="KL",
        titles=titles,
    )


def _other_policies(facts: Facts) -> list[tuple[Row, list[float]]]:
    """Best-of-n and the trained policy on held-out prompts, on the scale of PPO's scores, with their KLs."""
    if facts.offset is None:
        return []
    found = []
    if best := facts.best_of:
        nats = [row["kl"] for row in best.values()]
        scores = [row["score"] - facts.offset for row in best.values()]
        found.append((marks("best of n", nats, scores, list(best)), nats))
    after, last = facts.results.get("evaluation", {}).get("reward_after"), facts.steps[-1].get("kl_after")
    if after is not None and last is not None:
        nats = [max(0.0, last)]
        found.append((marks("PPO, held-out prompts", nats, [after - facts.offset], ["final"], "star"), nats))
    return found


def over_optimisation(facts: Facts) -> Figure | None:
    """Score and held-out judge by step, or against √KL (Gao et al. 2023, figure 1), and where the alarm was.

    Both are drawn on one scale, that of the first batch: their change since then, in its standard deviations. Their
    zeros and units mean nothing to each other.
    """
    steps = [row for row in facts.steps if row.get("score") is not None and row.get("kl_root") is not None]
    judged = [row for row in steps if row.get("gold") is not None]
    if len(steps) < 2 or len(judged) < 2:
        return None
    traces: list[Row] = []
    roots: list[list[float]] = []
    changes = {}
    for label, name, rows, colour in (
        ("score", "score", steps, "@accent"),
        ("held-out judge", "gold", judged, "@second"),
    ):
        unit = rows[0].get(f"{name}_std") or 1.0
        change = [(row[name] - rows[0][name]) / unit for row in rows]
        changes[name] = change
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": [row["step"] for row in rows],
                "y": change,
                "line": {"color": colour, "width": 1.4},
                "marker": {"size": 4, "color": colour},
                "customdata": [[row["step"], row[name]] for row in rows],
                "hovertemplate": f"step %{{customdata[0]}}: {label} %{{customdata[1]:.3g}}<extra></extra>",
            }
        )
        roots.append([row["kl_root"] for row in rows])
    says = (
        f"Up to step {steps[-1]['step']} the score changed by {fixed(changes['score'][-1], plus=True)} of the first "
        f"batch's standard deviations, the judge that PPO never sees by {fixed(changes['gold'][-1], plus=True)}."
    )
    alarmed = next((i for i, row in enumerate(steps) if row.get("over_optimised")), None)
    if alarmed is None:
        says += " No alarm was raised."
    else:
        at = steps[alarmed]
        traces.append(marks("alarm", [at["step"]], [changes["score"][alarmed]], [f"step {at['step']}"], "star"))
        roots.append([at["kl_root"]])
        says += f" The over-optimisation alarm was raised at step {at['step']}."
    titles = {"step": "PPO step", "√KL": f"√KL to {facts.reference}, √nats per sequence"}
    layout = axes(
        xaxis=by_step([row["step"] for row in steps]),
        yaxis={"title": {"text": "change, standard deviations"}},
        showlegend=True,
        legend=LEGEND,
    )
    return Figure(
        "over-optimisation",
        "Does the score still mean what it should?",
        says,
        traces,
        layout,
        height=340,
        alternative={"√KL": roots},
        axis="step",
        titles=titles,
    )


def disagreement(facts: Facts) -> Figure | None:
    """How far the members of a reward ensemble disagree, by step."""
    rows = [row for row in facts.steps if row.get("score_disagreement")]
    if len(rows) < 2:
        return None
    x, y = [row["step"] for row in rows], [row["score_disagreement"] for row in rows]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "line": {"color": "@accent", "width": 1.4},
        "marker": {"size": 4},
        "hovertemplate": "step %{x}: %{y:.3g}<extra></extra>",
    }
    says = (
        f"Standard deviation of the score over the reward ensemble: {number(y[0])} at step {x[0]}, {number(y[-1])} at "
        f"step {x[-1]}. Where it grows, the policy has left what the reward knows."
    )
    return Figure("disagreement", "Does the ensemble agree?", says, [line], axes(xaxis=by_step(x)))


def training_curve(stage: str, lines: Sequence[Row]) -> Figure:
    """A supervised stage's losses by progress."""
    traces = []
    names = (("loss", "training loss", "@tint"), ("held_out_loss", "held-out loss", "@accent"))
    for name, label, colour in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(points) < 40 else "lines",
                "name": label,
                "x": [x for x, _ in points],
                "y": [y for _, y in points],
                "line": {"color": colour, "width": 1.8},
                "marker": {"size": 5},
            }
        )
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    says = f"Held-out loss at its minimum: {min(held_out):.3f}; the stage keeps those weights." if held_out else ""
    for line in lines:
        if "cut_short" in line:
            says += f" max_seconds cut it short at {line['done']} of {line['total']} steps."
    titles = {"pretrain": "Language model", "sft": "SFT", "reward": "Reward model"}
    taken = by_step([line["step"] for line in lines if "step" in line], "optimizer step")
    layout = axes(xaxis=taken, showlegend=True, legend=LEGEND)
    place, _, kind = stage.rpartition(".")
    title = f"{titles.get(kind, kind)}, round {place.removeprefix('r')}" if place else titles.get(kind, kind)
    return Figure(f"train-{stage.replace('.', '-')}", title, says, traces, layout)


def stage_seconds(seconds: Row) -> Figure:
    """Wall time of the run's stages."""
    names = list(seconds)[::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [seconds[name] for name in names],
        "y": names,
        "text": [f"{seconds[name]:.1f} s" for name in names],
        "textposition": "outside",
        "textfont": {"color": "@ink"},
        "cliponaxis": False,
        "marker": {"color": ["@accent" if name == "ppo" else "@tint" for name in names]},
        "hovertemplate": "%{y}: %{x:.1f} s<extra></extra>",
    }
    layout = axes(
        xaxis={"visible": False, "range": [0, 1.18 * max(seconds.values())]}, yaxis={"showgrid": False}, bargap=0.35
    )
    says = f"{sum(seconds.values()):.0f} s in all; the longest is {max(seconds, key=seconds.__getitem__)}."
    return Figure("stage-seconds", "Stages of the run", says, [bars], layout, height=60 + 34 * len(names))


def step_seconds(steps: Sequence[Row]) -> Figure | None:
    """What each PPO step spent its time on."""
    timed = [row for row in steps if row.get("seconds")]
    if not timed:
        return None
    stages = [name for name in STEP_STAGES if any(name in row["seconds"] for row in timed)]
    bars = [
        {
            "type": "bar",
            "name": name,
            "x": [row["step"] for row in timed],
            "y": [row["seconds"].get(name, 0.0) for row in timed],
            "marker": {"color": colour},
            "hovertemplate": f"step %{{x}}, {name}: %{{y:.2f}} s<extra></extra>",
        }
        for name, colour in zip(STEP_STAGES, STEP_COLOURS, strict=True)
        if name in stages
    ]
    total = {name: sum(row["seconds"].get(name, 0.0) for row in timed) for name in stages}
    share = ", ".join(f"{name} {total[name] / sum(total.values()):.0%}" for name in stages)
    steps_timed = by_step([row["step"] for row in timed])
    layout = axes(xaxis=steps_timed, barmode="stack", bargap=0.15, showlegend=True, legend=LEGEND)
    return Figure("step-seconds", "Seconds of each PPO step", f"{share}.", bars, layout)
