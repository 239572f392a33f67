"""``import lodestar`` and its five calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lodestar
from lodestar.config import RunConfig
from lodestar.errors import ConfigError, InvalidArgument, ModelError
from lodestar.local.tiny import write_tiny_models
from lodestar.records import SamplingParams


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_models(folder, eos_bias=0.5)
    return folder


def test_importing_it_loads_nothing_else() -> None:
    program = (
        "import sys\nbefore = set(sys.modules)\nimport lodestar\n"
        "assert {'figures', 'generate', 'plan', 'run', 'score'} <= set(dir(lodestar))\n"
        "heavy = {m.split('.')[0] for m in set(sys.modules) - before} - {'lodestar'} - set(sys.stdlib_module_names)\n"
        "sys.exit(', '.join(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_planning_loads_no_torch() -> None:
    program = "import sys, lodestar; lodestar.plan({'name': 'x'}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_it_does_not_have_is_said() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = lodestar.generat  # type: ignore[attr-defined]


def test_a_plan_comes_from_a_file_options_or_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nstages: {data: {}, sft: {}, reward: {}, ppo: {steps: 3}}\n")
    tree = {"name": "mine", "stages": {"data": {}, "sft": {}, "reward": {}, "ppo": {"steps": 3}}}
    plans = [lodestar.plan(path, "ppo.steps=5"), lodestar.plan(tree, "ppo.steps=5")]
    plans.append(lodestar.plan(RunConfig.model_validate(tree), "stages.ppo.steps=5"))
    for one in plans:
        assert [step.name for step in one.steps] == ["data", "sft", "reward", "ppo"]
        assert one.step("ppo").stage.steps == 5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="stepz"):
        lodestar.plan(path, "ppo.stepz=5")


def test_a_seed_repeats_texts_and_samples_differ(tiny: Path) -> None:
    one = lodestar.generate(tiny / "policy", "t4 t5", n=4, max_tokens=12, seed=1)
    assert one == lodestar.generate(str(tiny / "policy"), "t4 t5", n=4, max_tokens=12, seed=1)
    assert len(set(one)) > 1
    assert all("t1" not in text.split() for text in one), "EOS is no text"
    greedy = [lodestar.generate(tiny / "policy", "t4 t5", temperature=0, max_tokens=4)[0] for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_texts_are_those_of_the_asynchronous_engine(tiny: Path) -> None:
    import asyncio

    from lodestar.cli.generate import opened

    sampling = SamplingParams(12, n=3, seed=5)

    async def through_the_front() -> list[str]:
        texts = [""] * 3
        async with opened(str(tiny / "policy")) as source:
            async for chunk in source.stream("t4 t5", sampling):
                texts[chunk.sample_index] += chunk.text
        return texts

    assert lodestar.generate(tiny / "policy", "t4 t5", n=3, max_tokens=12, seed=5) == asyncio.run(through_the_front())


def test_more_tokens_than_the_context_has_are_as_many_as_it_has(tiny: Path) -> None:
    (text,) = lodestar.generate(tiny / "policy", "t4 t5", max_tokens=100_000, ignore_eos=True, seed=1)
    assert 400 < len(text.split()) < 512


def test_scores_are_those_of_the_model_itself(tiny: Path) -> None:
    from lodestar.rewards.models import ScoringModel
    from lodestar.rewards.rules import Exchange

    pairs = [("t4 t5", "t6 t7"), ("t4", "t8")]
    judge = ScoringModel.load(str(tiny / "reward"))
    expected = judge.scores(judge.encode([Exchange(*pair) for pair in pairs]))[:, 0].tolist()
    assert lodestar.score(tiny / "reward", pairs) == pytest.approx(expected, abs=1e-5)
    assert lodestar.score(tiny / "reward", []) == []


def test_mistakes_are_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="temperatur: is no option"):
        lodestar.generate(tiny / "policy", "t4", temperatur=0.5)
    with pytest.raises(InvalidArgument, match=r"items\[1\]: must be a pair"):
        lodestar.score(tiny / "reward", [("a", "b"), "ab"])  # type: ignore[list-item]
    (tmp_path / "config.yaml").write_text("name: mine\n")
    with pytest.raises(ModelError, match="no reward model yet"):
        lodestar.score(tmp_path, [("a", "b")])
    with pytest.raises(ModelError, match="no model yet"):
        lodestar.generate(tmp_path, "a")
