"""The number of options is a budget: a new one is added here on purpose, with a reason in docs/log.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from lodestar.config import RunConfig, load_config
from lodestar.errors import ConfigError
from lodestar.recipe.plan import plan
from lodestar.recipe.stage import registry
from lodestar.recipe.written import written_as_before

ROOT = Path(__file__).parents[3]
EXPECTED = Path(__file__).with_name("options.txt")


def _options(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from _options(inner, f"{prefix}{name}.")


def test_every_option_is_listed() -> None:
    listed = [*_options(RunConfig)]
    for name, stage in registry().items():
        listed += [option for option in _options(stage, f"stages.{name}.") if not option.endswith(".use")]
    assert sorted(listed) == EXPECTED.read_text().splitlines()


def _shipped() -> list[Path]:
    recipes = sorted((ROOT / "lodestar" / "recipes").glob("*.yaml"))
    return [ROOT / "lodestar" / "local" / "demo.yaml", *sorted((ROOT / "examples").glob("*.yaml")), *recipes]


@pytest.mark.parametrize("path", _shipped(), ids=lambda path: path.name)
def test_every_configuration_that_ships_has_a_sound_plan(path: Path) -> None:
    given = yaml.safe_load(path.read_text())
    source = given.get("stages", {}).get("data", {})
    needs_root = source.get("source", "synthetic") != "synthetic" and not source.get("root")
    run = load_config(
        path, ["data.root=somewhere"] if needs_root else [] + ([] if "name" in given else ["name=recipe"])
    )
    assert not written_as_before(given), "as runs were written before recipes"
    assert [step.kind for step in plan(run).steps][-1] == "report"


def test_the_demo_with_people_asks_twenty_pairs_and_learns_from_them_alone() -> None:
    made = plan(load_config(ROOT / "lodestar" / "local" / "people.yaml"))
    assert made.step("label").stage.model_dump()["budget"] == 20
    assert made.step("reward").inputs["feedback"] == ("label/feedback",)
    assert made.step("taught").inputs["against"] == ("sft/policy",)


def test_the_readmes_configurations_have_sound_plans() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    runs = [yaml.safe_load(block) for block in blocks]
    assert len(runs) >= 3
    for tree in runs:
        assert plan(RunConfig.model_validate({"name": "readme", "model": {"path": "x"}, **tree})).steps


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"ppo": {"max_staleness": 1}}, r"deterministic needs ppo\.max_staleness 0"),
        ({"policy": {"swap": "continue"}}, r"deterministic needs services\.policy\.swap drain"),
    ],
)
def test_what_depends_on_timing_is_refused_in_a_deterministic_run(section: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=said):
        plan(RunConfig(name="run", deterministic=True, **section))
