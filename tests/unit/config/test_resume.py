"""Which options a resumed run may change."""

from lodestar.config import RunConfig, deciding_options
from lodestar.config.resume import DECIDES, MAY_CHANGE


def _options(*may_change: str, **sections: object) -> dict[str, object]:
    return deciding_options(RunConfig.model_validate({"name": "a", **sections}).model_dump(mode="json"), may_change)


def test_where_and_how_fast_a_run_happens_may_change() -> None:
    moved = {"rollout": {"replicas": 3}, "learner": {"threads": 4}, "reward": {"batch_tokens": 64}, "runs_dir": "/x"}
    assert _options(**moved) == _options()


def test_what_a_run_computes_may_not() -> None:
    for change in ({"seed": 3}, {"ppo": {"clip": 0.3}}, {"evaluation": {"prompts": 3}}, {"pretrain": {}}):
        assert _options(**change) != _options()


def test_sources_decide_the_result_though_they_stand_in_the_reward_servers_section() -> None:
    sources = [{"name": "reward", "weight": 2.0}]
    changed = _options(reward={"sources": sources}, ppo={"critic": {"init": "policy"}})
    assert changed["reward.sources"] != _options()["reward.sources"]
    assert not any(key.startswith("reward.") and key not in DECIDES for key in changed)


def test_more_may_change_where_it_does_not_matter() -> None:
    assert _options("evaluation", evaluation={"prompts": 3}) == _options("evaluation")


def test_the_list_names_options_that_exist() -> None:
    assert set(MAY_CHANGE) <= RunConfig.model_fields.keys()
