"""What the run would find hours later is found before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig
from lodestar.crew.inputs import few_prompts, refuse
from lodestar.errors import ConfigError
from lodestar.recipe.plan import plan


def a_run(folder: Path, **tree: Any) -> RunConfig:
    return RunConfig.model_validate({"name": "mine", "runs_dir": str(folder), "recipe": "instruct-gpt", **tree})


def preferences(folder: Path, rows: int) -> Path:
    """A folder with so many comparisons of different prompts."""
    folder.mkdir()
    lines = [json.dumps({"prompt": f"say {i}", "chosen": f"it is {i}", "rejected": "no"}) for i in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    mine = tmp_path / "judge.py"
    mine.write_text("import math\nif True:\n    def score(prompts, completions): ...\n")
    sources = [
        {"name": "one", "kind": "function", "function": f"{tmp_path}/nowhere.py:score"},
        {"name": "two", "kind": "function", "function": f"{mine}:scorr"},
        {"name": "three", "kind": "function", "function": "no.such.module:score"},
        {"name": "four", "kind": "function", "function": f"{mine}:score"},
        {"name": "five", "paths": [f"{tmp_path}/no-scorer"]},
    ]
    stages = {
        "data": {"source": "jsonl", "root": str(tmp_path / "nodata")},
        "sft": None,
        "reward": None,
        "filtered": None,
        "ppo": {"critic": {"init": "policy"}},
        "evaluate": {"judge": "reward"},
    }
    run = a_run(tmp_path, model={"path": "./nomodel"}, stages=stages, services={"reward": {"sources": sources}})
    with pytest.raises(ConfigError) as error:
        refuse(run, plan(run))
    for said in (
        "model.path: ./nomodel: no such folder",
        f"stages.data.root: {tmp_path}/nodata: no such folder",
        f"sources.0.function: {tmp_path}/nowhere.py: no such file",
        f"sources.1.function: {mine} has no scorr; it has math, score",
        "sources.2.function: no module no.such.module can be imported",
        f"sources.4.paths: {tmp_path}/no-scorer: no such folder",
    ):
        assert said in str(error.value)
    assert "sources.3" not in str(error.value)


def test_a_file_below_the_root_is_looked_for(tmp_path: Path) -> None:
    data = {"source": "jsonl", "root": str(preferences(tmp_path / "rows", 4)), "prompts": "more.jsonl"}
    run = a_run(tmp_path, stages={"data": data})
    with pytest.raises(ConfigError, match=r"stages\.data\.prompts: .*more\.jsonl: no such file"):
        refuse(run, plan(run))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, r"stages\.evaluate\.people\.practice: .*known\.jsonl: no such file"),
        (
            [{"prompt": "a", "completions": ["x", "y"], "label": 0.7}],
            r"stages\.evaluate\.people: .*row 1 is no comparison",
        ),
        ([], r"stages\.evaluate\.people: .*known\.jsonl"),
    ],
)
def test_questions_whose_answers_are_known_are_read_before_anybody_is_asked(
    rows: list[dict[str, Any]] | None, said: str, tmp_path: Path
) -> None:
    known = tmp_path / "known.jsonl"
    if rows is not None:
        known.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = a_run(tmp_path, stages={"evaluate": {"people": {"practice": str(known)}}})
    with pytest.raises(ConfigError, match=said):
        refuse(run, plan(run))


def test_too_few_prompts_for_a_batch_are_warned_of_with_numbers(tmp_path: Path) -> None:
    data = {"source": "jsonl", "root": str(preferences(tmp_path / "rows", 500))}
    run = a_run(tmp_path, stages={"data": data, "ppo": {"batch": 64}, "evaluate": {"judge": "reward", "prompts": 64}})
    ppo, evaluate = refuse(run, plan(run))
    assert ppo.startswith(
        "ppo: a step takes 64 prompts, and the data leave 50 at most, so each stands in a step about 1.3"
    )
    assert "data.prompts names a file of others" in ppo
    assert evaluate == "evaluate: 64 prompts are asked for, and 50 at most are kept for it"
    (tmp_path / "rows" / "more.jsonl").write_text(
        "".join(json.dumps({"prompt": f"tell {i}"}) + "\n" for i in range(99))
    )
    more = a_run(
        tmp_path,
        stages={"data": {**data, "prompts": "more.jsonl"}, "ppo": {"batch": 64}, "evaluate": {"judge": "reward"}},
    )
    assert few_prompts(more, plan(more)) == []


def test_more_samples_than_there_can_be_prompts_are_refused(tmp_path: Path) -> None:
    stages = {"data": {"prompt_rows": 100}, "sft": {}, "sample": {"prompts": 101}}
    run = RunConfig.model_validate(
        {"name": "mine", "model": {"architecture": {"context_tokens": 300}}, "stages": stages}
    )
    with pytest.raises(ConfigError, match=r"stages\.sample\.prompts: is 101, and the data leave 100 at most: raise"):
        few_prompts(run, plan(run))


def test_rows_that_cannot_be_read_are_said_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text('{"nothing": 1}\n')
    run = a_run(tmp_path, stages={"data": {"source": "jsonl", "root": str(tmp_path / "rows")}})
    with pytest.raises(ConfigError, match=r"stages\.data: .*rows\.jsonl"):
        refuse(run, plan(run))
