"""What a run's plan is made of, and every sentence that refuses one before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig, load_config, parse_config
from lodestar.crew.port import server_task
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, plan
from lodestar.recipe.store import Store
from lodestar.recipe.written import recipe, recipes
from lodestar.stages.data import needed


def planned(stages: dict[str, Any] | None = None, **more: Any) -> Plan:
    return plan(RunConfig.model_validate({"name": "t", **({"stages": stages} if stages is not None else {}), **more}))


def ties(made: Plan, name: str) -> dict[str, tuple[str, ...]]:
    return dict(made.step(name).inputs)


def test_the_default_is_instruct_gpt_and_every_port_takes_the_newest_of_its_kind() -> None:
    made = planned()
    assert [step.name for step in made.steps] == ["data", "sft", "reward", "filtered", "ppo", "evaluate", "report"]
    assert ties(made, "sft") == {
        "policy": ("data/tokenizer",),
        "demonstrations": ("data/demonstrations",),
        "tokenizer": ("data/tokenizer",),
    }
    assert ties(made, "ppo")["policy"] == ties(made, "ppo")["reference"] == ("sft/policy",)
    assert ties(made, "evaluate")["policy"] == ("ppo/policy",)
    assert ties(made, "evaluate")["against"] == ("sft/policy",)


def test_pretraining_is_taken_by_what_follows_it() -> None:
    """The first fault: SFT trained random weights although a language model was asked for."""
    made = planned(pretrain={})
    assert [step.name for step in made.steps][:3] == ["data", "pretrain", "sft"]
    assert ties(made, "sft")["policy"] == ("pretrain/policy",)


def test_a_given_model_needs_no_sft_and_shares_the_tokenizer_of_the_data() -> None:
    made = planned(sft=None, model={"path": "mine"})
    assert ties(made, "reward")["policy"] == ties(made, "ppo")["reference"] == ("given/model",)
    assert ties(made, "evaluate")["against"] == ("given/model",)
    for name in ("reward", "ppo", "evaluate"):
        assert ties(made, name)["tokenizer"] == ("data/tokenizer",)


def test_nothing_trains_a_random_trunk() -> None:
    """The second half of the first fault: without SFT a reward model was trained on random weights, exit 0."""
    with pytest.raises(
        ConfigError, match=r"stages\.reward\.policy: nothing before it makes model; put .*sft before it, or"
    ):
        planned(sft=None)


def test_a_reward_of_rules_alone_trains_no_reward_model() -> None:
    rules = {"sources": [{"name": "ended", "kind": "rule", "rule": "ended"}]}
    made = planned(reward=rules, ppo={"critic": {"init": "policy"}})
    assert "reward" not in [step.name for step in made.steps]
    assert "reward" not in ties(made, "ppo")
    with pytest.raises(ConfigError, match=r"stages\.reward: makes a reward model that nothing takes"):
        planned({"ppo": {"critic": {"init": "policy"}}}, recipe="instruct-gpt", services={"reward": rules})


def test_rounds_are_unrolled_and_each_goes_on_from_the_one_before() -> None:
    made = planned(recipe="rounds")
    names = [step.name for step in made.steps]
    assert names[2:6] == ["r1.sample", "r1.label", "r1.reward", "r1.ppo"]
    assert names[-2:] == ["evaluate", "report"]
    assert ties(made, "r1.sample")["policy"] == ("sft/policy",)
    assert "reward" not in ties(made, "r1.sample"), "there is none yet"
    assert ties(made, "r2.sample") == {
        "policy": ("r1.ppo/policy",),
        "reward": ("r1.reward/reward",),
        "prompts": ("data/prompts",),
        "tokenizer": ("data/tokenizer",),
    }
    assert ties(made, "r3.reward")["feedback"] == (
        "data/feedback",
        "r1.label/feedback",
        "r2.label/feedback",
        "r3.label/feedback",
    )
    assert ties(made, "r3.reward")["policy"] == ("sft/policy",)
    assert ties(made, "r3.ppo")["reference"] == ("r2.ppo/policy",)
    assert ties(made, "evaluate")["against"] == ("sft/policy",), "the model from which training by a reward began"
    assert [step.round for step in made.steps if step.kind == "ppo"] == [1, 2, 3]


def test_a_rounds_policy_and_reference_can_be_the_sft_models_again() -> None:
    stages = recipe("rounds")["stages"]
    stages["rounds"]["stages"]["ppo"] = {"use": {"policy": "sft/policy"}}
    made = planned(stages)
    assert ties(made, "r3.ppo")["policy"] == ties(made, "r3.ppo")["reference"] == ("sft/policy",)
    stages["rounds"]["stages"]["reward"] = {"feedback": "newest"}
    assert ties(planned(stages), "r3.reward")["feedback"] == ("r3.label/feedback",)


def test_a_reference_inside_a_round_names_the_rounds_own_artifact_first() -> None:
    stages = {
        "data": {},
        "sft": {},
        "rounds": {"n": 2, "stages": {"sample": {}, "label": {"use": {"samples": "sample/samples"}}}},
    }
    assert ties(planned(stages), "r2.label")["samples"] == ("r2.sample/samples",)


def test_dpo_starts_from_sft_which_is_its_reference_and_what_it_is_compared_with() -> None:
    made = planned(recipe="dpo")
    assert [step.name for step in made.steps] == ["data", "sft", "reward", "dpo", "evaluate", "report"]
    assert ties(made, "dpo") == {
        "policy": ("sft/policy",),
        "reference": ("sft/policy",),
        "feedback": ("data/feedback",),
        "tokenizer": ("data/tokenizer",),
    }
    assert ties(made, "reward")["policy"] == ("sft/policy",), "the judge does not start from what it judges"
    assert ties(made, "evaluate")["policy"] == ("dpo/policy",)
    assert ties(made, "evaluate")["against"] == ("sft/policy",)
    inside = {"sample": {}, "label": {}, "dpo": {}}
    rounds = planned({"data": {}, "sft": {}, "rounds": {"n": 2, "stages": inside}})
    assert ties(rounds, "r2.dpo")["reference"] == ties(rounds, "r2.dpo")["policy"] == ("r1.dpo/policy",)
    assert ties(rounds, "r2.dpo")["feedback"] == ("data/feedback", "r1.label/feedback", "r2.label/feedback")


def test_an_evaluation_in_a_round_compares_with_sft_and_with_the_round_before() -> None:
    """In the first round these are one model, which is served once."""
    inside = {"sample": {}, "label": {}, "reward": {}, "ppo": {}, "evaluate": {"previous": True}}
    made = planned({"data": {}, "sft": {}, "rounds": {"n": 3, "stages": inside}, "evaluate": {"previous": True}})
    compared = {
        name: {port: ties(made, name).get(port) for port in ("policy", "against", "previous")}
        for name in ("r1.evaluate", "r2.evaluate", "r3.evaluate", "evaluate")
    }
    assert compared["r1.evaluate"] == {"policy": ("r1.ppo/policy",), "against": ("sft/policy",), "previous": None}
    for name, own, before in (("r2.evaluate", "r2", "r1"), ("r3.evaluate", "r3", "r2"), ("evaluate", "r3", "r2")):
        assert compared[name] == {
            "policy": (f"{own}.ppo/policy",),
            "against": ("sft/policy",),
            "previous": (f"{before}.ppo/policy",),
        }


def test_the_round_before_is_the_round_before_where_every_ppo_starts_from_sft() -> None:
    inside = {"reward": {}, "ppo": {"use": {"policy": "sft/policy"}}, "evaluate": {"previous": True}}
    made = planned({"data": {}, "sft": {}, "rounds": {"n": 2, "stages": inside}})
    assert ties(made, "r2.evaluate")["previous"] == ("r1.ppo/policy",)


# ruff: noqa: E501
REFUSED = [
    ({"data": {}, "stf": {}}, r"stages\.stf: there is no stage 'stf'; did you mean sft\?"),
    ({"sft": {}}, r"stages\.sft\.policy: nothing before it makes model or tokenizer"),
    ({"data": {}, "sft": {"use": {"polcy": "x"}}}, r"stages\.sft\.use\.polcy: sft takes no polcy; did you mean policy\?"),
    ({"data": {}, "sft": {"use": {"policy": "ppo/policy"}}, "reward": {}, "ppo": {}}, r"comes of ppo, which is not before sft: a cycle"),
    ({"data": {}, "sft": {"use": {"policy": "sft/policy"}}}, r"comes of sft, which is not before sft: a cycle"),
    ({"data": {}, "sft": {"use": {"policy": "data/feedback"}}}, r"data/feedback is a feedback artifact, and policy takes model or tokenizer"),
    ({"data": {}, "sft": {"use": {"policy": "date/tokenizer"}}}, r"nothing makes date/tokenizer; did you mean data/tokenizer\?"),
    ({"data": {}, "sft": {"use": {"policy": "data/policy"}}}, r"data makes no policy; it makes data/demonstrations"),
    ({"data": {}, "rounds": {"n": 0, "stages": {"sft": {}}}}, r"stages\.rounds\.n: must be a whole number from 1, is 0"),
    ({"data": {}, "rounds": {"n": 1}}, r"stages\.rounds\.stages: must list the stages of a round"),
    ({"data": {}, "rounds": {"n": 1, "steps": 2, "stages": {"sft": {}}}}, r"stages\.rounds\.steps: rounds have n and stages alone"),
    ({"data": {}, "sft": {"n": 4}}, r"stages\.sft: n: unknown option: that is an option of stage sample"),
    ({"data": {}, "sft": {"epoch": 4}}, r"stages\.sft: epoch: unknown option; did you mean epochs\?"),
    ({"data": {}, "sft": [1]}, r"stages\.sft: must be a mapping of options"),
    ({"data": {}, "cache": {"kind": "sft"}}, r"stages\.cache: is no name for a stage"),
    ({"data": {}, "sft": {}, "dpo": {"loss": "ipo", "margin": 1}}, r"margin has no meaning for loss ipo"),
    ({"data": {}, "R2!": {"kind": "sft"}}, r"stages\.R2!: is no name for a stage"),
    ({"data": {}, "sft": {}, "sample": {}, "label": {"by": "file"}}, r"file goes with by: file"),
    ({"data": {}, "sft": {}, "sample": {}, "label": {"by": "people"}}, r"people goes with by: people, and only with it"),
    ({"data": {}, "sft": {}, "sample": {}, "label": {"people": {}}}, r"people goes with by: people, and only with it"),
    ({"data": {}, "sft": {}, "sample": {}, "label": {"by": "people", "people": {"token_file": "t"}}}, r"token_file needs tls"),
    ({"data": {}, "sft": {}, "sample": {}, "label": {"by": "people", "people": {"form": "prompt"}}}, r"people\.form"),
    ({"data": {}, "sft": {}, "sample": {}, "label": {"by": "people", "people": {"form": "ranking"}, "choose": "uncertain"}}, r"goes with people\.form: pair alone"),
    ({"data": {}, "sft": {}, "sample": {"n": 10}, "label": {"by": "people", "people": {"form": "ranking"}}}, r"stages\.label\.people\.form: ranking shows 9 replies at most, and sample makes 10"),
    ({"data": {}, "sft": {}, "sample": {}, "label": {"choose": "uncertain"}}, r"stages\.label\.choose: uncertain needs scores"),
    ({"data": {}, "sft": {}, "reward": {}, "sample": {}, "label": {"choose": "bald"}}, r"stages\.label\.choose: bald compares the members of an ensemble, and services\.reward\.sources must hold one"),
    ({"data": {}, "sft": {}, "reward": {}, "sample": {}, "label": {"choose": "uncertain", "diverse": True}}, r"diverse goes with choose: disagreement, bald, volume_removal"),
    ({"data": {}, "sft": {}, "rounds": {"n": 1, "stages": {"sample": {}, "label": {"choose": "uncertain"}, "reward": {}, "ppo": {}}}}, r"stages\.r1\.label\.choose: uncertain needs scores"),
    ({"data": {"source": "hh", "root": "x"}, "sft": {}, "sample": {}, "label": {}}, r"by: panel exists for data\.source synthetic only"),
    ({"data": {}, "sft": {}, "reward": {}, "ppo": {}, "evaluate": {"previous": True}}, r"evaluate\.previous: ppo/policy is of no round"),
    ({"data": {}, "sft": {}, "reward": {}, "evaluate": {"people": {}}}, r"stages\.evaluate\.people: compare two models, and there is one"),
    ({"data": {}, "sft": {}, "reward": {}, "ppo": {}, "evaluate": {"people": {"form": "ranking"}}}, r"people\.form must be pair"),
    ({"data": {"source": "hh", "root": "x"}, "sft": {}, "reward": {}, "evaluate": {"judge": "gold"}}, r"gold exists for data\.source synthetic only"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_a_plan_that_cannot_be_is_refused_by_name(stages: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(stages)


def test_pairs_are_chosen_by_uncertainty_where_the_samples_are_scored_by_the_runs_reward_model() -> None:
    label = {"choose": "uncertain", "by": "people", "people": {}}
    made = planned({"data": {}, "sft": {}, "reward": {}, "sample": {}, "label": label})
    assert ties(made, "label") == {"samples": ("sample/samples",)}
    rules = {"reward": {"sources": [{"name": "ended", "kind": "rule", "rule": "ended"}]}}
    with pytest.raises(ConfigError, match=r"stages\.label\.choose: uncertain needs scores"):
        planned({"data": {}, "sft": {}, "sample": {}, "label": label}, services=rules)


def test_in_rounds_pairs_are_chosen_by_the_ensemble_of_the_round_before() -> None:
    ensemble = {"reward": {"sources": [{"name": "mine", "heads": "ensemble"}]}}
    ppo = {"critic": {"init": "policy"}}
    inner = {"sample": {}, "label": {"choose": "bald", "diverse": True}, "reward": {"ensemble": 4}, "ppo": ppo}
    made = planned({"data": {}, "sft": {}, "rounds": {"n": 2, "stages": inner}}, services=ensemble)
    assert "reward" not in made.step("r1.sample").inputs
    assert made.step("r2.sample").inputs["reward"] == ("r1.reward/reward",)


def test_two_stages_of_one_name_are_refused_though_yaml_would_keep_the_last(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("name: t\nstages:\n  data: {}\n  sft: {epochs: 1}\n  sft: {epochs: 2}\n")
    with pytest.raises(ConfigError, match=r"sft stands twice(.|\n)*line 5"):
        load_config(tmp_path / "twice.yaml")


def test_a_recipe_takes_the_files_own_options_and_refuses_stages_it_does_not_have() -> None:
    made = parse_config({"name": "t", "recipe": "rounds", "stages": {"rounds": {"n": 1}, "sft": {"epochs": 9}}})
    assert [step.name for step in plan(made).steps if step.kind == "ppo"] == ["r1.ppo"]
    assert plan(made).step("sft").stage.model_dump()["epochs"] == 9
    with pytest.raises(ConfigError, match=r"recipe rounds has no such stage; did you mean rounds\?"):
        parse_config({"name": "t", "recipe": "rounds", "stages": {"round": {}}})
    with pytest.raises(ConfigError, match=r"there is no recipe 'instructgpt'; did you mean instruct-gpt\?"):
        parse_config({"name": "t", "recipe": "instructgpt"})


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_that_ships_has_a_sound_plan(name: str) -> None:
    assert planned(recipe=name).steps[-1].kind == "report"


def test_overrides_reach_stages_by_their_names_and_services_too() -> None:
    run = parse_config(
        {"name": "t", "recipe": "instruct-gpt"}, ["ppo.steps=8", "sft.epochs=1", "policy.replicas=2", "label=null"][:3]
    )
    assert plan(run).step("ppo").stage.model_dump()["steps"] == 8
    assert run.services.policy.replicas == 2
    rounds = parse_config({"name": "t", "recipe": "rounds"}, ["rounds.n=1", "rounds.stages.ppo.steps=3"])
    assert plan(rounds).step("r1.ppo").stage.model_dump()["steps"] == 3


def test_the_yaml_of_before_recipes_means_what_it_meant() -> None:
    old = {
        "name": "t",
        "data": {"kind": "synthetic", "comparison_rows": 70},
        "pretrain": {"epochs": 2},
        "reward_model": {"epochs": 3},
        "ppo": {"steps": 5},
        "evaluation": {"prompts": 9, "best_of": [2], "watch_every": 3, "judge": "gold"},
        "policy": {"replicas": 2},
    }
    new = {
        "name": "t",
        "recipe": "instruct-gpt",
        "stages": {
            "data": {"source": "synthetic", "comparison_rows": 70, "evaluation_rows": 9},
            "pretrain": {"epochs": 2},
            "reward": {"epochs": 3},
            "ppo": {"steps": 5, "running": {"every": 3}},
            "evaluate": {"best_of": [2], "judge": "gold"},
        },
        "services": {"policy": {"replicas": 2}},
    }
    before, now = parse_config(old), parse_config(new)
    assert before.services == now.services
    assert [(s.name, s.stage, dict(s.inputs)) for s in plan(before).steps] == [
        (s.name, s.stage, dict(s.inputs)) for s in plan(now).steps
    ]


def test_the_data_must_hold_what_a_stage_cannot_do_without() -> None:
    """A reward model may do without demonstrations; PPO needs them for its scores' offset alone."""
    rules = {"sources": [{"name": "ended", "kind": "rule", "rule": "ended"}]}
    free = {"critic": {"init": "policy"}, "score": {"offset": "none"}}
    assert needed(planned(), "data") == {
        "demonstrations": "stages.sft",
        "tokenizer": "stages.sft",
        "feedback": "stages.reward",
        "prompts": "stages.ppo",
    }
    alone = planned({"data": {}, "ppo": free, "evaluate": {}}, model={"path": "mine"}, services={"reward": rules})
    assert needed(alone, "data") == {"prompts": "stages.ppo"}


@pytest.mark.parametrize(("fleet", "port"), [("policy", "policy"), ("reference", "reference")])
def test_servers_of_the_given_model_read_with_the_tokenizer_of_the_data(fleet: str, port: str, tmp_path: Path) -> None:
    for made, own in ((planned(model={"path": "mine"}, sft=None), True), (planned(model={"path": "mine"}), False)):
        run = RunConfig.model_validate({"name": "t", "model": {"path": "mine"}})
        step, store = made.step("ppo"), Store(tmp_path, run)
        task = server_task(run, made, store, step, fleet, folder=tmp_path)
        assert task.model_dump()["model"] == str(store.path(step.inputs[port][0]))
        assert task.model_dump()["tokenizer"] == (str(store.path("data/tokenizer")) if own else None)
