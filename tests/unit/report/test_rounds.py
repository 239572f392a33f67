"""A run of rounds has a row of figures for each, and scores on one scale though each round has a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from lodestar.config import RunConfig, dump
from lodestar.files import read_jsonl, write_jsonl
from lodestar.recipe.folder import RunFolder
from lodestar.report import write_report, write_summary
from lodestar.report.facts import read_facts
from lodestar.report.rounds import round_rows, score_shift
from lodestar.report.shift import density, shift_picture


def test_every_round_has_its_figures_in_the_summary_and_what_is_not_done_is_null(example_rounds: RunFolder) -> None:
    write_summary(example_rounds.root)
    first, second, third = json.loads((example_rounds.root / "summary.json").read_text())["rounds"]
    assert [row["round"] for row in (first, second, third)] == [1, 2, 3]
    assert [row["win_rate"]["value"] for row in (first, second)] == pytest.approx([0.7, 0.8])
    assert first["win_rate_previous"]["value"] == pytest.approx(0.61)
    assert [row["reward_model"]["value"] for row in (first, second, third)] == pytest.approx([0.65, 0.7, 0.75])
    assert [row["kl"] for row in (first, second, third)] == pytest.approx([1.2, 2.2, 3.2])
    assert [row["labels"] for row in (first, second, third)] == [91, 92, 93]
    assert third["win_rate"] is None
    assert third["win_rate_previous"] is None


def test_the_evaluation_after_the_rounds_is_the_last_rounds(example_rounds: RunFolder) -> None:
    last = example_rounds.plan.step("evaluate")
    figures = example_rounds.store.unfinished(last) / "figures"
    figures.mkdir(parents=True)
    (figures / "evaluation.json").write_text(json.dumps({"judge": "gold", "win_rate": {"value": 0.9}}))
    assert round_rows(example_rounds)[2]["win_rate"] == {"value": 0.9}


def test_scores_are_told_from_the_sft_models_mean_by_the_same_reward_model(example_rounds: RunFolder) -> None:
    """The made-up reward models have their zeros at 10 and 20, and the policies 1 and 2 above."""
    shift = score_shift(example_rounds)
    assert [row["round"] for row in shift] == [0, 1, 2]
    assert [fmean(row["scores"]) for row in shift] == pytest.approx([0.0, 1.0, 2.0], abs=0.4)
    assert fmean(shift[0]["scores"]) == pytest.approx(0.0, abs=1e-9)


def test_scores_of_a_reward_model_that_nobody_evaluated_with_are_left_out(example_rounds: RunFolder) -> None:
    """Round 2's policy is known by the next round's samples alone, whose reward model has no known zero."""
    samples = example_rounds.store.path("r2.evaluate/figures") / "samples.jsonl"
    before = read_jsonl(samples)
    write_jsonl(samples, [{key: row[key] for key in ("id", "prompt", "before")} for row in before])
    assert [row["round"] for row in score_shift(example_rounds)] == [0, 1]


def test_a_policy_that_nobody_evaluated_is_told_by_the_next_rounds_samples(tmp_path: Path) -> None:
    """One reward model for all rounds, and one evaluation at the end."""
    rounds = {"n": 2, "stages": {"sample": {}, "ppo": {}}}
    stages = {"data": {}, "sft": {}, "reward": {}, "rounds": rounds, "evaluate": {}}
    (tmp_path / "config.yaml").write_text(dump(RunConfig(name="t", stages=stages)))
    folder = RunFolder.open(tmp_path)
    reply = {"text": "", "tokens": 1, "finish_reason": "eos", "step": 0}
    row = {"id": "p", "prompt": "?", "before": {**reply, "score": 3.0}, "after": {**reply, "score": 5.0}}
    write_jsonl(tmp_path / "evaluate" / "unfinished" / "figures" / "samples.jsonl", [row])
    figures = tmp_path / "r2.sample" / "unfinished" / "figures"
    figures.mkdir(parents=True)
    (figures / "sample.json").write_text(json.dumps({"scores": [4.0, 4.5]}))
    assert [(row["round"], row["scores"]) for row in score_shift(folder)] == [(0, [0.0]), (1, [1.0, 1.5]), (2, [2.0])]


def test_the_page_has_the_table_and_llama_2s_picture(example_rounds: RunFolder) -> None:
    write_summary(example_rounds.root)
    page = write_report(example_rounds.root).read_text()
    assert "Round by round" in page
    for cell in ("70.0% (61%–79%)", "<td>2.20</td>", "<td>92</td>"):
        assert cell in page
    assert "After 2 rounds of feedback the policy beats the SFT model" in page
    figure = shift_picture(read_facts(example_rounds.root).shift)
    assert figure is not None
    assert [trace["name"].partition(",")[0] for trace in figure.data] == ["SFT", "round 1", "round 2"]
    assert figure.data[0]["name"].split()[-1] == "0.00"
    assert "score-shift" in page


def test_a_run_without_rounds_says_nothing_of_them(example_run: RunFolder) -> None:
    assert round_rows(example_run) == score_shift(example_run) == []
    assert "Round by round" not in write_report(example_run.root).read_text()


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 5.0], list(range(50))])
def test_a_density_is_one_in_all_whatever_the_scores(scores: list[float]) -> None:
    x = np.linspace(min(scores) - 60, max(scores) + 60, 400_001)
    assert np.trapezoid(density(scores, x[:: 1 + len(scores) // 10]), x[:: 1 + len(scores) // 10]) == pytest.approx(
        1, abs=0.01
    )
