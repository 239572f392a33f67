"""Pictures of what lies behind the win rate: equal length, kinds of prompts, the policy's calibration, and what it can
still do of other tasks."""

from __future__ import annotations

import math

from lodestar.report.drawing import LEGEND, Figure, axes, proportions, vertical
from lodestar.report.facts import Facts, Row


def behind_the_rate(facts: Facts) -> Figure | None:
    """The win rate plain, at equal length, and on each kind of prompt."""
    found = facts.results.get("evaluation", {})
    if "length_controlled" not in found:
        return None
    controlled = found["length_controlled"]
    named = [("all prompts", found["win_rate"]), ("at equal length", controlled), *found.get("by_kind", {}).items()]
    named.reverse()
    colours = ["@second"] * (len(named) - 1) + ["@accent"]
    dots = proportions([label for label, _ in named], [rate for _, rate in named], colours)
    layout = axes(
        "share of prompts won against the SFT model",
        xaxis={"range": [0, 1.02], "tickformat": ".0%", "dtick": 0.25, "showgrid": True},
        yaxis={"showgrid": False, "range": [-0.5, len(named) - 0.3]},
        shapes=[vertical(0.5)],
    )
    longer = controlled["longer_by"]
    says = (
        f"Replies are {abs(longer):.1f} tokens {'longer' if longer > 0 else 'shorter'} than the SFT model's on average"
    )
    says += "; at equal length is what a fit says would be won if they were not."
    return Figure("win-rate-parts", "Behind the win rate", says, [dots], layout, height=80 + 55 * len(named))


def policy_reliability(facts: Facts) -> Figure | None:
    """How often an answer is right against how sure the policy is of it."""
    found = facts.results.get("calibration", {})
    if not found:
        return None
    sides = [("before", "SFT", "@second"), ("after", "policy", "@accent")]
    traces: list[Row] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": "@muted", "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    said = []
    for key, label, colour in sides:
        if key not in found:
            continue
        side = found[key]
        most = max(one["n"] for one in side["bins"])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": [one["predicted"] for one in side["bins"]],
                "y": [one["observed"] for one in side["bins"]],
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "size": [6 + 12 * math.sqrt(one["n"] / most) for one in side["bins"]]},
                "customdata": [one["n"] for one in side["bins"]],
                "hovertemplate": f"{label} says %{{x:.0%}}, is right %{{y:.0%}} of %{{customdata}}<extra></extra>",
            }
        )
        error, right = side["ece"], side["accuracy"]["value"]
        said.append(f"{label} {error['value']:.3f} ({error['low']:.3f}–{error['high']:.3f}), right {right:.0%}")
    says = f"Expected calibration error on {found['after']['n']} questions: {'; '.join(said)}. Chance alone makes it "
    says += f"{found['after']['ece_of_chance']:.3f}."
    layout = axes(
        "how sure it is of its answer",
        xaxis={"tickformat": ".0%", "range": [0, 1.02]},
        yaxis={"tickformat": ".0%", "range": [0, 1.02]},
        showlegend=True,
        legend=LEGEND,
    )
    return Figure("policy-reliability", "Is it as sure as it should be?", says, traces, layout, height=340)


def alignment_tax(facts: Facts) -> Figure | None:
    """Tasks that nobody trained for, before and after."""
    tasks = facts.results.get("tasks", {}).get("tasks", {})
    rows = [(f"{task}, {metric}", said) for task, metrics in tasks.items() for metric, said in metrics.items()][::-1]
    shares = [(label, said) for label, said in rows if "n" in said["after"] and 0 <= said["after"]["value"] <= 1]
    if not rows:
        return None
    sides = [("after", "policy", "@accent", 0.1), ("before", "SFT", "@second", -0.1)]
    traces = [
        proportions([], [said[key] for _, said in shares], [colour] * len(shares))
        | {"name": name, "mode": "markers", "y": [place + apart for place in range(len(shares))]}
        for key, name, colour, apart in sides
        if all(key in said for _, said in shares)
    ]
    changes = [f"{label} {_change(said)}" for label, said in reversed(rows) if "change" in said]
    says = f"Change by training: {'; '.join(changes)}." if changes else "No model before it was asked."
    layout = axes(
        "share, or mean over questions",
        xaxis={"range": [0, 1.02], "tickformat": ".0%", "showgrid": True},
        yaxis={
            "showgrid": False,
            "range": [-0.5, len(shares) - 0.3],
            "tickvals": [*range(len(shares))],
            "ticktext": [label for label, _ in shares],
        },
        showlegend=True,
        legend=LEGEND,
    )
    return Figure("alignment-tax", "What did it cost elsewhere?", says, traces, layout, height=110 + 45 * len(shares))


def _change(said: Row) -> str:
    change = said["change"]
    if "n" not in change:
        return f"{said['before']['value']:.3g} → {said['after']['value']:.3g}"
    return f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]".replace("-", "−")
