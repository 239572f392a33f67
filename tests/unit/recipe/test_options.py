"""Options as pages that people read."""

import subprocess
import sys
from pathlib import Path

import pytest

from lodestar.config.base import flat
from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.options import markdown, page, pages
from lodestar.recipe.stage import registry

ROOT = Path(__file__).parents[3]


def test_the_documented_options_are_those_of_the_code() -> None:
    written = (ROOT / "docs" / "options.md").read_text()
    assert written == markdown(), "regenerate: lodestar config options --markdown > docs/options.md"


def test_every_option_of_every_stage_has_a_line_with_its_default_and_meaning() -> None:
    for name, stage in registry().items():
        shown = {option.name: option for option in page(name).options}
        for option in shown.values():
            assert option.meaning, f"{name}.{option.name}"
            assert option.may_be
        assert set(stage.model_fields) - {one.partition(".")[0] for one in shown} == set()
    ppo = {option.name: option for option in page("ppo").options}
    assert (ppo["steps"].default, ppo["steps"].may_be) == ("40", "whole number ≥ 1")
    assert ppo["kl.coefficient"].default == str(flat(registry()["ppo"]().model_dump())["kl.coefficient"])
    assert ppo["ema"].may_be == "number > 0, < 1, or unset"
    top = set(RunConfig.model_fields) - {"model", "services"} | {"services.hang_seconds"}
    assert top == {option.name for option in page("run").options}


def test_a_part_of_a_page_may_be_asked_for() -> None:
    assert {option.name.partition(".")[0] for option in page("ppo.kl").options} == {"kl"}
    assert [option.name for option in page("stages.sft.epochs").options] == ["epochs"]
    assert page("services.reward").name == "services.reward"


@pytest.mark.parametrize(("name", "said"), [("pop", "did you mean ppo?"), ("ppo.stpes", "did you mean steps?")])
def test_a_misspelt_page_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        page(name)


def test_the_command_prints_a_page_without_torch() -> None:
    program = "import sys\nfrom lodestar.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    program += "sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "config", "options", "ppo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "steps  40  whole number ≥ 1" in done.stdout
    assert len(pages()) > 12
