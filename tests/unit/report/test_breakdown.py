"""The report draws what lies behind the win rate, and the policy's calibration, where the run has them."""

from __future__ import annotations

from dataclasses import replace

import plotly.graph_objects as go

from lodestar.breakdown import by_kind
from lodestar.policy_calibration import Answered, calibration
from lodestar.recipe.folder import RunFolder
from lodestar.report.breakdown import behind_the_rate, policy_reliability
from lodestar.report.facts import Facts, read_facts
from lodestar.report.figures import win_rates
from lodestar.report.page import render

CONTROLLED = {"value": 0.61, "low": 0.55, "high": 0.67, "n": 96, "length_effect": 1.0, "longer_by": 3.25}


def _facts(run: RunFolder) -> Facts:
    """The example's, with a breakdown and a calibration."""
    facts = read_facts(run.root)
    kinds = by_kind(["plain", "few-shot"] * 8, [1.0, 0.0] * 8)
    sure = [Answered(0.75, i % 2 == 0, 0.4) for i in range(40)]
    evaluation = facts.results["evaluation"] | {"length_controlled": CONTROLLED, "by_kind": kinds}
    found = {"before": calibration(sure), "after": calibration(sure[:20])}
    return replace(facts, results=facts.results | {"evaluation": evaluation, "calibration": found})


def test_the_win_rate_at_equal_length_and_by_kind_stands_beside_the_plain_one(example_run: RunFolder) -> None:
    figure = behind_the_rate(_facts(example_run))
    assert figure is not None
    assert figure.data[0]["y"] == ["few-shot", "plain", "at equal length", "all prompts"]
    assert figure.data[0]["x"][:3] == [0.0, 1.0, 0.61]
    assert "3.2 tokens longer" in figure.says


def test_what_people_say_stands_below_what_the_judge_says(example_run: RunFolder) -> None:
    facts = read_facts(example_run.root)
    people = {"value": 0.7, "low": 0.5, "high": 0.85, "n": 40, "alike": 2, "annotators": 2, "alpha": 0.6}
    asked = replace(facts, results=facts.results | {"evaluation": facts.results["evaluation"] | {"people": people}})
    figure, plain = win_rates(asked), win_rates(facts)
    assert figure is not None
    assert plain is not None
    assert figure.data[0]["y"][-2:] == ["judged by people", facts.method]
    assert figure.data[0]["x"][-2] == 0.7
    assert figure.says.endswith("By 2 people: 70.0% of 40 comparisons.")
    assert "judged by people" not in plain.data[0]["y"]


def test_reliability_is_drawn_before_and_after(example_run: RunFolder) -> None:
    figure = policy_reliability(_facts(example_run))
    assert figure is not None
    assert [trace.get("name") for trace in figure.data] == [None, "SFT", "policy"]
    assert figure.data[1]["x"] == [0.75]
    assert figure.data[1]["y"] == [0.5]
    assert "error on 20 questions: SFT 0.250" in figure.says


def test_both_are_on_the_page_and_nothing_is_where_a_run_has_neither(example_run: RunFolder) -> None:
    page = render(_facts(example_run))
    assert 'id="win-rate-parts"' in page
    assert 'id="policy-reliability"' in page
    plain = read_facts(example_run.root)
    assert behind_the_rate(plain) is None
    assert policy_reliability(plain) is None
    for figure in (behind_the_rate(_facts(example_run)), policy_reliability(_facts(example_run))):
        assert figure is not None
        go.Figure({"data": _uncoloured(figure.data), "layout": _uncoloured(figure.layout)})


def _uncoloured(tree: object) -> object:
    """With a colour where the page puts its theme's."""
    if isinstance(tree, dict):
        return {key: _uncoloured(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_uncoloured(value) for value in tree]
    return "#123456" if isinstance(tree, str) and tree.startswith("@") else tree
