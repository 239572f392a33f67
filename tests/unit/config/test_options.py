"""The number of options is a budget: a new one is added here on purpose, with a reason in docs/log.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from lodestar.config import RunConfig, load_config

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
    assert sorted(_options(RunConfig)) == EXPECTED.read_text().splitlines()


def _shipped() -> list[Path]:
    return [ROOT / "lodestar" / "local" / "demo.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("path", _shipped(), ids=lambda path: path.name)
def test_every_configuration_that_ships_loads(path: Path) -> None:
    given = yaml.safe_load(path.read_text())
    root = [] if given.get("data", {}).get("root") or given["data"]["kind"] == "synthetic" else ["data.root=somewhere"]
    assert load_config(path, root).name == given["name"]


def test_the_readmes_configurations_load() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    run, *more = [yaml.safe_load(block) for block in blocks]
    assert RunConfig.model_validate(run).sft is None
    assert len(more) == 1
    for sections in more:
        merged = {name: {**run.get(name, {}), **section} for name, section in sections.items()}
        assert len(RunConfig.model_validate(run | merged).reward.sources) == 3


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"ppo": {"max_staleness": 1}}, r"deterministic needs ppo\.max_staleness 0"),
        ({"policy": {"swap": "continue"}, "ppo": {"max_staleness": 0}}, r"deterministic needs policy\.swap drain"),
    ],
)
def test_what_depends_on_timing_is_refused_in_a_deterministic_run(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RunConfig(name="run", deterministic=True, **section)
