"""The methods' recipes as plans: what each stage takes, and what does not fit is said before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lodestar.config import RunConfig
from lodestar.config.serve import PolicyTask
from lodestar.config.services import PolicyConfig
from lodestar.crew.port import server_task
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, plan
from lodestar.recipe.store import Store
from lodestar.stages.evaluate import method_of


def planned(recipe: str, stages: dict[str, Any] | None = None, **more: Any) -> tuple[RunConfig, Plan]:
    run = RunConfig.model_validate({"name": "t", "recipe": recipe, "stages": stages or {}, **more})
    return run, plan(run)


def test_each_round_of_expert_iteration_learns_from_its_own_best() -> None:
    _, made = planned("expert-iteration")
    assert made.step("r2.best_of_n").inputs == {"samples": ("r2.sample/samples",), "reward": ("reward/reward",)}
    assert made.step("r2.sft").inputs["demonstrations"] == ("r2.best_of_n/demonstrations",)
    assert made.step("r2.sft").inputs["policy"] == ("r1.sft/policy",)
    assert made.step("r2.sample").inputs["policy"] == ("r1.sft/policy",)
    assert made.step("evaluate").inputs["policy"] == ("r2.sft/policy",)
    assert made.step("evaluate").inputs["against"] == ("sft/policy",)


def test_quark_keeps_to_the_first_reference_and_pools_all_samples() -> None:
    _, made = planned("quark")
    assert made.step("r3.quark").inputs["reference"] == ("sft/policy",)
    assert made.step("r3.quark").inputs["samples"] == tuple(f"r{i}.sample/samples" for i in (1, 2, 3))
    assert [made.conditioned(f"{name}/policy") for name in ("sft", "r1.quark", "r3.quark")] == [False, True, True]
    _, newest = planned("quark", {"rounds": {"stages": {"quark": {"samples": "newest"}}}})
    assert newest.step("r3.quark").inputs["samples"] == ("r3.sample/samples",)


@pytest.mark.parametrize(("recipe", "stage"), [("feedme", "feedme"), ("reward-conditioning", "conditioning")])
def test_binary_methods_go_on_from_sft_on_the_same_feedback_as_the_reward_model(recipe: str, stage: str) -> None:
    _, made = planned(recipe)
    assert made.step(stage).inputs["policy"] == ("sft/policy",)
    assert made.step(stage).inputs["feedback"] == made.step("reward").inputs["feedback"]
    assert made.step("evaluate").inputs["policy"] == (f"{stage}/policy",)


def test_a_control_token_needs_room_before_the_prompt() -> None:
    model = {"architecture": {"context_tokens": 96}}
    stages = {"data": {"max_prompt_tokens": 32}, "rounds": {"n": 2, "stages": {"sample": {"max_tokens": 64}}}}
    assert planned("expert-iteration", stages, model=model)
    with pytest.raises(ConfigError, match=r"stages\.r2\.sample\.max_tokens: .* and a control token it is 97, beyond"):
        planned("quark", stages, model=model)


def test_the_evaluated_policy_is_the_best_of_n_and_nothing_else_is(tmp_path: Path) -> None:
    run, made = planned("best-of-n")

    def told(recipe: tuple[RunConfig, Plan], stage: str, fleet: str, rewards: tuple[str, ...] = ("r:1",)) -> PolicyTask:
        config, steps = recipe
        store, step = Store(tmp_path, config), steps.step(stage)
        task = server_task(config, steps, store, step, fleet, folder=tmp_path, rewards=rewards)
        assert isinstance(task, PolicyTask)
        return task

    served = told((run, made), "evaluate", "policy")
    assert (served.section.best_of, served.endpoints.reward) == (16, ("r:1",))
    rival = told((run, made), "evaluate", "against")
    assert (rival.section.best_of, rival.endpoints.reward) == (1, ())
    rolling = planned("expert-iteration", services={"policy": {"best_of": 4}})
    assert told(rolling, "r1.sample", "policy").section.best_of == 1, "training samples are the policy's own"
    assert told(rolling, "evaluate", "policy").section.best_of == 4
    assert told(rolling, "evaluate", "policy", ()).section.best_of == 1, "nobody there to choose"


def test_best_of_is_bound_by_what_a_request_may_draw() -> None:
    with pytest.raises(ValidationError, match="best_of 9 is beyond max_waiting 8"):
        PolicyConfig(best_of=9, max_waiting=8)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("instruct-gpt", "PPO"),
        ("best-of-n", "best of 16"),
        ("expert-iteration", "expert iteration"),
        ("feedme", "FeedME"),
        ("reward-conditioning", "reward conditioning"),
        ("quark", "Quark"),
    ],
)
def test_a_report_calls_each_method_by_its_name(recipe: str, words: str) -> None:
    run, made = planned(recipe)
    assert method_of(made, made.step("evaluate"), run.services.policy.best_of) == words
    if recipe != "best-of-n":
        assert method_of(made, made.step("evaluate"), 4) == f"{words}, best of 4"
