"""What a judge said, and how far it agrees with people."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError
from sklearn.metrics import cohen_kappa_score

from lodestar.config import RunConfig
from lodestar.crew.port import server_task
from lodestar.errors import ConfigError
from lodestar.labelling.options import JudgeOptions
from lodestar.labelling.reading import chance_of_a, letter_of
from lodestar.labelling.shared import agreement_with, asked_of, shared_pairs
from lodestar.llm.port import Answer, Token
from lodestar.recipe.plan import Plan, calls_of, plan
from lodestar.recipe.store import Store
from lodestar.records import Choice, Feedback


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), (" B.", "B"), ("(B)", "B"), ("**A**", "A"), ("B: it is kinder than A.", "B"), ("Answer: A", "A"),
        ("A is better, since B lies", "A"), ("The better reply is (B).", "B"), ("A\n\nbecause", "A"),
        ("A good reply says more", None), ("(A) and (B) are alike", "A"), ("Reply (A) or reply (B)?", None),
        ("Both", None), ("", None), ("ABBA", None), ("It's a B-movie", None),
    ],
)  # fmt: skip
def test_a_letter_is_what_stands_by_itself_and_neither_is_neither(text: str, letter: str | None) -> None:
    assert letter_of(text) == letter


def test_the_chance_is_of_both_letters_where_the_answer_names_one() -> None:
    top = {"A": math.log(0.3), " A": math.log(0.1), "(B": math.log(0.2), "C": math.log(0.4)}
    tokens = (Token("The", {"The": 0.0, "A": -9.0}), Token(" answer: ", {}), Token("A", top), Token(".", {}))
    assert chance_of_a(Answer("The answer: A.", True, 1, 1, tokens)) == pytest.approx(0.4 / 0.6)
    assert chance_of_a(Answer("B", True, 1, 1)) == 0.0
    assert chance_of_a(Answer("B", True, 1, 1, (Token("B", {"B": -0.1}),))) == 0.0
    assert chance_of_a(Answer("Neither", True, 1, 1, (Token("Neither", {"A": -1.0}),))) is None


def test_kappa_is_cohens_of_every_pair_counted_both_ways_round() -> None:
    people = [
        Feedback(f"p{i}", ("x", "y"), (Choice(0, 1, label=label),), f"r{i}")
        for i, label in enumerate([1, 1, 1, 0, 0, 1, 1, 0, 1, 0.5])
    ]
    pairs = shared_pairs(people, 100, seed=1)
    assert len(pairs) == 9, "a tie decides nothing"
    assert len(shared_pairs(people, 4, seed=1)) == 4
    judged = [
        Feedback(one.prompt, one.replies, (Choice(0, 1, label=0.8 if one.prompt in ("p0", "p1", "p5", "p6") else 0.1),),
                 one.id)
        for one in asked_of(pairs)
    ]  # fmt: skip
    found = agreement_with(pairs, judged)
    assert found["n"] == 9
    assert found["agreement"]["value"] == pytest.approx(7 / 9)
    said = [int(pair.label) for pair in pairs.values()]
    chose = [int(row.verdict[0].label > 0.5) for row in judged]  # type: ignore[index]
    both = cohen_kappa_score(said + [1 - one for one in said], chose + [1 - one for one in chose])
    assert found["kappa"]["value"] == pytest.approx(both)
    assert found["kappa"]["low"] == pytest.approx(2 * found["agreement"]["low"] - 1)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://x/v1"}, {"name": "m"}, {"url": "ftp://x", "name": "m"},
        {"url": "http://x/v1", "name": "m", "address": "x:1"}, {"model": "a", "reward": "b"},
        {"model": "a", "heads": {"x": 1.0}}, {"constitution": "c"}, {"aspect": "harmless", "question": "?"},
        {"address": "x:1", "token_file": "t"}, {"model": "a", "token_file": "t"}, {"tls": "t"}, {"aspect": "honest"},
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JudgeOptions.model_validate(options)


def planned(label: dict[str, object], **stages: object) -> tuple[RunConfig, Plan]:
    told = {"data": {}, "sft": {}, **stages, "sample": {"n": 2}, "label": {"by": "judge", **label}}
    run = RunConfig.model_validate({"name": "t", "stages": told})
    return run, plan(run)


def test_the_newest_reward_model_judges_unless_another_judge_is_named() -> None:
    _, made = planned({"judge": {}}, first={"kind": "reward"})
    step = made.step("label")
    assert step.inputs["scorer"] == ("first/reward",)
    assert step.inputs["people"] == ("data/feedback",)
    assert list(calls_of(step)) == ["reward"]
    _, made = planned({"judge": {"url": "http://x/v1", "name": "m"}})
    assert (list(calls_of(made.step("label"))), "scorer" in made.step("label").inputs) == ([], False)
    _, made = planned({"judge": {"shared": 0}, "use": {"judge": "sft/policy"}})
    assert made.step("label").inputs == {"samples": ("sample/samples",), "judge": ("sft/policy",)}
    assert list(calls_of(made.step("label"))) == ["policy"]
    with pytest.raises(ConfigError, match=r"stages\.label\.scorer: nothing before it makes reward_model"):
        planned({"judge": {}})
    for label in ({}, {"by": "panel", "judge": {}}, {"judge": {"model": "a"}, "use": {"judge": "sft/policy"}}):
        with pytest.raises(ConfigError, match=r"stages\.label: .*judge"):
            planned(label)


def test_a_reward_model_that_nobody_asks_is_no_fault_of_a_label_stage_without_a_judge() -> None:
    stages = {"data": {}, "sft": {}, "sample": {"n": 2}, "label": {}, "reward": {}}
    made = plan(RunConfig.model_validate({"name": "t", "stages": stages}))
    assert made.step("reward").inputs["feedback"] == ("data/feedback", "label/feedback")


def test_a_judge_in_a_folder_is_served_alone_whatever_the_runs_reward_is(tmp_path: Path) -> None:
    run, made = planned({"judge": {"reward": "there", "heads": {"kind": 2.0}}})
    rule = {"name": "and", "kind": "rule", "rule": "pattern", "pattern": "and"}
    run = run.model_copy(update={"services": run.services.model_validate({"reward": {"sources": [rule]}})})
    store = Store(tmp_path, run)
    task = server_task(run, made, store, made.step("label"), "reward", folder=store.root)
    assert task.model == "there"  # type: ignore[attr-defined]
    sources = task.section.sources  # type: ignore[attr-defined]
    assert [(one.name, one.heads) for one in sources if not one.watched] == [("judge", {"kind": 2.0})]
    run, made = planned({"judge": {"model": "there"}})
    task = server_task(run, made, Store(store.root, run), made.step("label"), "policy", folder=store.root)
    assert task.model == "there"  # type: ignore[attr-defined]


def test_how_a_judge_is_reached_may_change_in_a_run_that_has_begun_and_what_it_is_asked_may_not(tmp_path: Path) -> None:
    def asked(**judge: object) -> dict[str, object]:
        run, made = planned({"judge": {"url": "http://x/v1", "name": "m", **judge}})
        return Store(tmp_path, run).asked(made.step("label"))

    assert asked() == asked(timeout_seconds=5, in_flight=2, retries=0, requests_per_minute=3, output_price=1)
    assert asked() != asked(labels="choice")
    assert asked() != asked(url="http://y/v1")


def test_a_judge_is_held_against_people_and_not_against_judges() -> None:
    stages = {"data": {}, "sft": {}, "reward": {}, "sample": {"n": 2}}
    rounds = {"n": 2, "stages": {"label": {"by": "judge", "judge": {}}}}
    made = plan(RunConfig.model_validate({"name": "t", "stages": {**stages, "rounds": rounds}}))
    assert made.step("r2.label").inputs["people"] == ("data/feedback",)


def test_more_samples_than_a_server_gives_at_once_are_refused_before_anything_runs() -> None:
    services = {"policy": {"max_waiting": 8}}
    for stages, said in (
        ({"sample": {"n": 9}}, r"stages\.sample\.n: is 9, beyond services\.policy\.max_waiting 8"),
        ({"reward": {}, "ppo": {"samples_per_prompt": 16}}, r"stages\.ppo\.samples_per_prompt: is 16"),
    ):
        run = RunConfig.model_validate({"name": "t", "stages": {"data": {}, "sft": {}, **stages}, "services": services})
        with pytest.raises(ConfigError, match=said):
            plan(run)
