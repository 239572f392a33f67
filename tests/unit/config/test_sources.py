"""reward.sources: what belongs together, and what a critic can start from."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lodestar.config import RunConfig
from lodestar.config.rewards import critic_source, served_sources, watched_source
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, plan
from lodestar.recipe.stage import needs_own_model

FUNCTION = {"name": "f", "kind": "function", "function": "m:f"}
POLICY = {"critic": {"init": "policy"}}


def run(*sources: dict[str, Any], **more: Any) -> RunConfig:
    return RunConfig.model_validate({"name": "r", "reward": {"sources": sources}, **more})


def planned(*sources: dict[str, Any], **more: Any) -> Plan:
    return plan(run(*sources, **more))


def test_without_sources_the_runs_own_model_scores_and_the_worlds_gold_is_watched() -> None:
    served = served_sources((), synthetic=True)
    assert [(source.name, source.kind, source.watched) for source in served] == [
        ("reward", "model", False),
        ("gold", "gold", True),
    ]
    assert (watched_source(served), needs_own_model(served)) == ("gold", True)


def test_data_without_a_gold_reward_watches_what_it_is_told_to() -> None:
    assert watched_source(served_sources((), synthetic=False)) is None
    other = {"name": "other-half", "paths": ["runs/b/reward/reward"], "watched": True}
    sources = run({"name": "reward"}, other).services.reward.sources
    assert watched_source(served_sources(sources, synthetic=True)) == "other-half"
    data = {"data": {"kind": "hh", "root": "x"}, "pretrain": {}}
    with pytest.raises(ConfigError, match=r"kind gold exists for data\.source synthetic only"):
        planned({"name": "reward"}, {"name": "g", "kind": "gold", "watched": True}, **data)


@pytest.mark.parametrize(
    "sources",
    [
        [FUNCTION],
        [{"name": "r"}, FUNCTION],
        [{"name": "r", "paths": ["a", "b"]}],
        [{"name": "r", "heads": "ensemble"}],
        [{"name": "r", "heads": {"helpful": 1.0}}],
        [{"name": "r", "weight": 0.5}],
        [{"name": "r", "offset": "card"}],
    ],
)
def test_a_critic_from_the_reward_is_refused_where_no_single_model_is_the_score(sources: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"functions, rules, ensembles .* set ppo\.critic\.init: policy"):
        planned(*sources)
    assert planned(*sources, ppo=POLICY).last("ppo") is not None
    assert critic_source(run(*sources).services.reward.sources) is None


def test_a_critic_may_start_from_one_model_that_has_a_watched_judge_beside_it() -> None:
    watched = {"name": "w", "paths": ["x", "y"], "watched": True}
    sources = run({"name": "r", "paths": ["m"]}, watched).services.reward.sources
    assert critic_source(sources).paths == ("m",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"name": "g", "kind": "gold"}, "for watching alone, never for training; set watched: true"),
        ({"name": "f", "kind": "function"}, "function must be set"),
        ({"name": "f", "kind": "rule"}, "rule must name one of"),
        ({"name": "f", "kind": "rule", "rule": "length"}, "words goes with rule: length"),
        ({"name": "f", "kind": "rule", "rule": "ended", "pattern": "x"}, "pattern goes with rule: pattern"),
        ({"name": "f", "kind": "function", "function": "m:f", "paths": ["x"]}, "paths belongs to kind model"),
        ({"name": "f", "kind": "function", "function": "m:f", "offset": "card"}, "a function has no card"),
        ({"name": "f", "watched": True, "weight": 2.0}, "a watched source has no weight"),
        ({"name": "Bad Name"}, "String should match pattern"),
        ({"name": "r", "wieght": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_source_that_does_not_fit_together_is_refused(source: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        run(source, {"name": "other"}, ppo=POLICY)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([{"name": "a"}, {"name": "a"}], "each source needs a name of its own"),
        ([{"name": "a", "watched": True}], "none makes the score"),
        (
            [{"name": "a"}, {"name": "b", "watched": True}, {"name": "c", "watched": True}],
            "at most one source may be watched",
        ),
    ],
)
def test_sources_that_do_not_fit_each_other_are_refused(sources: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        run(*sources, ppo=POLICY)


def test_a_wrong_key_inside_a_source_gets_a_suggestion(tmp_path: Any) -> None:
    from lodestar.config import load_config
    from lodestar.errors import ConfigError

    (tmp_path / "r.yaml").write_text("name: r\nreward: {sources: [{name: a, wieght: 2}]}\n")
    with pytest.raises(ConfigError, match=r"reward\.sources\.0\.wieght: unknown option; did you mean .*weight"):
        load_config(tmp_path / "r.yaml")
