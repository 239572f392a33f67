"""A served policy under lm-evaluation-harness answers as the harness's own model of transformers does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lodestar.errors import ConfigError
from lodestar.model.tokenizers import load_tokenizer

pytestmark = [
    pytest.mark.slow,  # its imports take long
    pytest.mark.filterwarnings("ignore"),  # its own, and its dependencies'
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason="lm-evaluation-harness is not installed: pip install 'lodestar-rlhf[eval]'",
    ),
]
CHOSEN: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
SAID: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["red"], "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match"}],
}
READ: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tasks over local rows."""
    folder = tmp_path_factory.mktemp("tasks")
    colors, begun = ["blue", "green", "not red"], ["the sky is", "what color is the grass ?", "is it ?", "it is"]
    rows = [
        {
            "question": begun[i % 4],
            "choices": colors,
            "answer": i % 3,
            "text": " ".join(begun[j % 4] for j in range(i % 5 * 8 + 1)),
        }
        for i in range(15)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in (("sky_chosen", CHOSEN), ("sky_said", SAID), ("sky_read", READ)):
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "test_split": "test", **where, **task}))
    return folder


@pytest.fixture(scope="module")
def served(start_service: Any, tiny_models: Any) -> Any:
    from lodestar.harness import ServedPolicy

    policy = start_service("policy", model=str(tiny_models.sft))
    return ServedPolicy([policy.address], load_tokenizer(tiny_models.sft))


def test_every_kind_of_task_gives_what_transformers_gives(served: Any, tasks: Path, tiny_models: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    from lodestar.harness import answers

    options: dict[str, Any] = {"shots": 0, "limit": None, "chat": False, "seed": 1}
    load: dict[str, Any] = {"device": "cpu", "dtype": "float32", "batch_size": 1}
    plain = HFLM(str(tiny_models.sft), add_bos_token=True, max_length=64, **load)
    ours = answers(served, ["sky_chosen", "sky_said", "sky_read"], tasks, **options)
    theirs = answers(plain, ["sky_chosen", "sky_said"], tasks, **options)  # type: ignore[arg-type]
    # Of texts it tokenizes with BOS and puts another in front; and a window's last token, which ours holds, not in it.
    plain = HFLM(str(tiny_models.sft), add_bos_token=False, max_length=63, **load)
    theirs |= answers(plain, ["sky_read"], tasks, **options)  # type: ignore[arg-type]
    assert set(ours) == set(theirs)
    assert ours["sky_chosen"] == theirs["sky_chosen"]
    assert len(set(ours["sky_chosen"]["acc"].values or ())) == 2, "some are right and some are not"
    assert ours["sky_said"] == theirs["sky_said"]
    perplexity = ours["sky_read"]["word_perplexity"]
    assert perplexity.values is None
    assert perplexity.value == pytest.approx(theirs["sky_read"]["word_perplexity"].value, rel=1e-4)


def test_a_context_that_is_too_long_loses_its_beginning_and_is_counted(served: Any, tasks: Path) -> None:
    from lodestar.harness import answers

    served.cut = 0
    answers(served, ["sky_chosen"], tasks, shots=12, limit=3, chat=False, seed=1)
    assert served.cut == 9


def test_what_is_wrong_with_tasks_is_said(served: Any, tasks: Path) -> None:
    from lodestar.harness import answers

    options: dict[str, Any] = {"shots": 0, "limit": 2, "chat": False, "seed": 1}
    with pytest.raises(ConfigError, match="no task 'sky_choosen'; did you mean sky_chosen"):
        answers(served, ["sky_choosen"], tasks, **options)
    odd = SAID | {"task": "sky_odd", "generation_kwargs": {"until": [], "num_beams": 4}}
    where = yaml.safe_load((tasks / "sky_said.yaml").read_text())
    (tasks / "sky_odd.yaml").write_text(yaml.safe_dump({**where, **odd}))
    with pytest.raises(ConfigError, match="a task asks for num_beams in generation"):
        answers(served, ["sky_odd"], tasks, **options)


def test_the_change_is_question_by_question() -> None:
    from lodestar.harness import Measured, tax

    before, after = Measured(0.5, (1.0, 0.0, 1.0, 0.0) * 25), Measured(0.75, (1.0, 1.0, 1.0, 0.0) * 25)
    found = tax({"acc": before, "ppl": Measured(9.0, None)}, {"acc": after, "ppl": Measured(7.0, None)})
    assert (found["acc"]["before"]["value"], found["acc"]["after"]["value"]) == (0.5, 0.75)
    change = found["acc"]["change"]
    assert change["value"] == pytest.approx(0.25)
    assert 0.15 < change["low"] < 0.25 < change["high"] < 0.36, "narrower than two intervals of unpaired shares"
    assert found["ppl"] == {"after": {"value": 7.0}, "before": {"value": 9.0}, "change": {"value": -2.0}}
    assert tax(None, {"acc": after})["acc"].keys() == {"after"}
