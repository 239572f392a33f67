"""The data stage, from every kind of source to the normal form, and what it says about bad input."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import LlamaConfig

from lodestar.config import DataConfig, ModelConfig
from lodestar.data.files import DataFiles, read_comparisons, read_demonstrations, read_prompts, read_text
from lodestar.data.prepare import prepare
from lodestar.data.world import parse
from lodestar.errors import DataError
from lodestar.model.loading import load_tokenizer
from tests.unit.data.templates import CHATML, REFUSES, byte_tokenizer

SYNTHETIC = {"source": "synthetic", "demonstration_rows": 300, "comparison_rows": 300, "prompt_rows": 100}


def _prepare(
    data: dict[str, Any],
    folder: Path,
    *,
    model: str | None = None,
    seed: int = 0,
    needed: dict[str, str] | None = None,
    functions: bool = False,
) -> dict[str, int]:
    options = DataConfig.model_validate({"evaluation_rows": 50} | data)
    words = {"kind": "word" if options.source == "synthetic" else "bpe", "vocab_size": 400}
    start = ModelConfig.model_validate({"path": model, "tokenizer": words})
    told: dict[str, Any] = {"response_tokens": 8, "needed": needed, "functions": functions}
    return prepare(options, start, DataFiles(folder), seed=seed, **told)


def _dialogue(i: int, reply: str) -> str:
    return f"\n\nHuman: What is {i} and {i}?\n\nAssistant: {reply}"


def _write_hh(folder: Path, rows: int = 60, name: str = "a.jsonl.gz") -> Path:
    lines = [{"chosen": _dialogue(i, f"It is {2 * i}."), "rejected": _dialogue(i, "No.")} for i in range(rows)]
    path = folder / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def _families(folder: Path) -> dict[str, set[str]]:
    files = DataFiles(folder)
    return {split: {row.prompt for row in read_comparisons(files.feedback(split))} for split in SPLITS}


SPLITS = ("train", "held_out", "evaluation")


def test_the_synthetic_world_fills_every_file(tmp_path: Path) -> None:
    folder = tmp_path
    counts = _prepare(SYNTHETIC, folder)
    files = DataFiles(folder)
    assert counts == json.loads(files.counts.read_text())
    assert counts["prompts.ppo"] == len(read_prompts(files.prompts("ppo"))) == 100
    assert counts["prompts.evaluation"] == len(read_prompts(files.prompts("evaluation"))) == 50
    assert counts["bad_rows"] == counts["long_rows"] == 0
    assert len(read_demonstrations(files.demonstrations("train"))) == counts["demonstrations.train"]
    assert len(read_text(files.text("train"))) == counts["text.train"]
    assert "<unk>" not in load_tokenizer(files.tokenizer).decode(
        load_tokenizer(files.tokenizer)(read_prompts(files.prompts("ppo"))[0].text)["input_ids"]
    )
    for prompt in read_prompts(files.prompts("ppo")):
        parse(prompt.text)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        _prepare(SYNTHETIC, tmp_path / name, seed=seed)
        return {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.json*")}

    assert written("a", 1) == written("b", 1)
    assert written("c", 2)["prompts/ppo.jsonl"] != written("a", 1)["prompts/ppo.jsonl"]


def test_evaluation_prompts_are_seen_by_no_stage(tmp_path: Path) -> None:
    _prepare(SYNTHETIC, tmp_path)
    files, families = DataFiles(tmp_path), _families(tmp_path)
    evaluation = {prompt.text for prompt in read_prompts(files.prompts("evaluation"))}
    ppo = {prompt.text for prompt in read_prompts(files.prompts("ppo"))}
    shown = {row.prompt for split in SPLITS[:2] for row in read_demonstrations(files.demonstrations(split))}
    assert not evaluation & (ppo | shown | families["train"] | families["held_out"])
    assert not ppo & families["train"]
    assert not families["train"] & families["held_out"]


@pytest.mark.parametrize("kind", ["synthetic", "hh"])
def test_shuffled_labels_keep_the_pairs_and_turn_half_of_them(tmp_path: Path, kind: str) -> None:
    _write_hh(tmp_path)
    data = SYNTHETIC if kind == "synthetic" else {"source": "hh", "root": str(tmp_path)}
    for name, shuffle in (("plain", False), ("shuffled", True)):
        _prepare(data | {"shuffle_labels": shuffle}, tmp_path / name)
    plain, shuffled = (read_comparisons(DataFiles(tmp_path / name).feedback("train")) for name in ("plain", "shuffled"))
    assert [row.completions for row in plain] == [row.completions for row in shuffled]
    agree = [a.label == b.label for a, b in zip(plain, shuffled, strict=True) if a.label != 0.5]
    assert 0.3 < sum(agree) / len(agree) < 0.7


def test_hh_dialogues_become_prompts_and_completions(tmp_path: Path) -> None:
    _write_hh(tmp_path)
    folder = tmp_path / "run"
    counts = _prepare({"source": "hh", "root": str(tmp_path)}, folder)
    rows = read_comparisons(DataFiles(folder).feedback("train"))
    assert rows[0].prompt.startswith("\n\nHuman: What is ")
    assert rows[0].prompt.endswith("\n\nAssistant:")
    assert rows[0].completions[1] == " No."
    assert rows[0].id.startswith("a:")
    assert counts["comparisons.train"] == 48
    shown = read_demonstrations(DataFiles(folder).demonstrations("train"))
    assert {row.completion for row in shown} == {row.completions[0] for row in rows}


def test_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    path = _write_hh(tmp_path, name="a.jsonl")
    with path.open("a") as file:
        file.write('{"chosen": "half\n[1]\n{"prompt": "x"}\n')
    folder = tmp_path / "run"
    counts = _prepare({"source": "hh", "root": str(tmp_path)}, folder)
    assert counts["bad_rows"] == 3
    named = DataFiles(folder).bad_rows.read_text().splitlines()
    assert named[0].startswith(f"{path}:61: is not JSON: ")
    assert named[1] == f"{path}:62: must be an object {{…}}, is list"
    assert named[2] == (f"{path}:63: is a row with prompt, the file began with chosen and rejected: split it by schema")


def test_strict_refuses_the_first_bad_row(tmp_path: Path) -> None:
    path = _write_hh(tmp_path, name="a.jsonl")
    with path.open("a") as file:
        file.write("{}\n")
    data = {"source": "hh", "root": str(tmp_path), "strict": True}
    with pytest.raises(DataError, match=f"{path}:61: needs chosen and rejected"):
        _prepare(data, tmp_path / "run")


def test_rows_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [{"prompt": f"q{i}", "chosen": "word " * (200 if i % 3 == 0 else 3), "rejected": "no"} for i in range(90)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = _prepare({"source": "jsonl", "root": str(tmp_path), "max_tokens": 40}, tmp_path / "run")
    kept = sum(counts[f"comparisons.{split}"] for split in SPLITS)
    assert kept == 60
    assert counts["long_rows"] == 30


def test_own_demonstrations_and_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    _write_hh(tmp_path / "pairs", name="p.jsonl")
    shown = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes"}]} for i in range(40)
    ]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    (tmp_path / "book.txt").write_text("\n\n".join("A paragraph about nothing much. " * 8 for _ in range(120)))
    folder = tmp_path / "run"
    data = {
        "source": "jsonl",
        "root": str(tmp_path),
        "files": ["pairs/p.jsonl"],
        "demonstrations": "shown.jsonl",
        "text": "book.txt",
    }
    counts = _prepare(data, folder)
    files = DataFiles(folder)
    assert {row.completion for row in read_demonstrations(files.demonstrations("train"))} == {" yes"}
    assert counts["text.held_out"] >= 1
    assert "paragraph" in read_text(files.text("train"))[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder; set data.root to the folder of the files"),
        ({}, "holds no file ending in .jsonl, .json, .csv"),
        ({"a.jsonl": ""}, "a.jsonl: has no rows"),
        ({"a.jsonl": '{"x": 1}\n'}, "a.jsonl: has no usable row; the first was refused: .*a.jsonl:1: needs chosen"),
        ({"a.jsonl.gz": "not gzip"}, "a.jsonl.gz: cannot be read"),
        ({"a.jsonl": '{"prompt": "x", "chosen": "a", "rejected": "b"}\n'}, "no rows are left for it"),
    ],
)
def test_unusable_sources_say_why(tmp_path: Path, files: dict[str, str] | None, message: str) -> None:
    root = tmp_path / "source"
    if files is not None:
        root.mkdir()
        for name, text in files.items():
            (root / name).write_text(text)
    with pytest.raises(DataError, match=message):
        _prepare({"source": "jsonl", "root": str(root)}, tmp_path / "run")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/b.jsonl: no such file"):
        _prepare({"source": "jsonl", "root": str(tmp_path), "files": ["b.jsonl"]}, tmp_path / "run")


def _model(folder: Path, template: str | None) -> str:
    tokenizer = byte_tokenizer(template)
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=200).save_pretrained(folder)
    return str(folder)


def _asked(i: int, *before: tuple[str, str]) -> dict[str, Any]:
    turns = [{"role": role, "content": text} for role, text in (*before, ("user", f"What is {i}?"))]
    return {"prompt": turns, "chosen": "yes", "rejected": "no", "topic": "sums"}


def test_rows_that_the_template_refuses_are_bad_rows_or_mended_when_asked(tmp_path: Path) -> None:
    model, source = _model(tmp_path / "model", REFUSES), tmp_path / "rows"
    source.mkdir()
    rows = [*map(_asked, range(60)), _asked(60, ("system", "s")), _asked(61, ("user", "u"))]
    (source / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "root": str(source), "max_prompt_tokens": 100}
    folder = tmp_path / "run"
    counts = _prepare(data, folder, model=model)
    assert counts["bad_rows"] == 2
    named = DataFiles(folder).bad_rows.read_text()
    assert f"{source}/a.jsonl:61: the chat template refuses it: roles must take turns" in named
    assert f"{source}/a.jsonl: nothing reads the columns topic" in DataFiles(folder).notes.read_text()
    mended = _prepare(data | {"merge_turns": True, "fold_system": True}, tmp_path / "b", model=model)
    assert (mended["bad_rows"], mended["merged_turns"] > 0, mended["folded_systems"] > 0) == (0, True, True)
    ok = source / "ok"
    ok.mkdir()
    (ok / "a.jsonl").write_text("".join(json.dumps(_asked(i)) + "\n" for i in range(60)))
    with pytest.raises(DataError, match=r"columns that nothing reads: topic"):
        _prepare(data | {"strict": True, "root": str(ok)}, tmp_path / "c", model=model)
    _prepare(data | {"strict": True, "root": str(ok)}, tmp_path / "d", model=model, functions=True)


def test_a_chosen_template_and_a_pinned_date_are_saved_with_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("".join(json.dumps(_asked(i)) + "\n" for i in range(60)))
    data = {"source": "jsonl", "root": str(tmp_path / "rows"), "max_prompt_tokens": 100, "date": "2020-02-03"}
    for name, template in (("none", None), ("dated", "{{ strftime_now('%d %b %Y') }} " + CHATML)):
        model, folder = _model(tmp_path / name, template), tmp_path / f"run-{name}"
        _prepare(data, folder, model=model)
        saved = load_tokenizer(DataFiles(folder).tokenizer)
        prompt = read_prompts(DataFiles(folder).prompts("ppo"))[0]
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        assert saved.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == prompt.text
        assert prompt.text.startswith("\n\nHuman: What" if name == "none" else "03 Feb 2020 <|im_start|>user")


def test_prompts_alone_are_enough_where_no_stage_takes_more(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(60)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "root": str(tmp_path), "prompts": "p.jsonl", "columns": {"prompt": "question"}}
    model, folder = _model(tmp_path / "model", CHATML), tmp_path / "run"
    _prepare(data | {"strings": "messages"}, folder, model=model)
    assert [sorted((folder / name).iterdir()) for name in ("demonstrations", "feedback")] == [[], []]
    prompts = read_prompts(DataFiles(folder).prompts("ppo"))
    assert all(
        prompt.text == f"<|im_start|>user\nWhat is {prompt.columns['answer']}?<|im_end|>\n<|im_start|>assistant\n"
        for prompt in prompts
    )
    with pytest.raises(
        DataError, match=r"holds no reply to imitate, which stages\.sft takes: name data\.demonstrations"
    ):
        _prepare(data, folder, model=model, needed={"demonstrations": "stages.sft"})
    with pytest.raises(DataError, match=r"holds no feedback, which stages\.reward takes: name files of comparisons"):
        _prepare(data, folder, model=model, needed={"feedback": "stages.reward"})


def test_families_that_share_a_prompt_are_joined_and_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "family": f"f{i}"} for i in range(60)]
    rows.append({"prompt": "q0 ", "chosen": "a", "rejected": "c", "family": "f59"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    counts = _prepare({"source": "jsonl", "root": str(tmp_path)}, folder)
    assert counts["joined_families"] == 1
    assert "the families 'f0' and 'f59' share a prompt and count as one" in DataFiles(folder).notes.read_text()
    sides = [{row.prompt for row in read_comparisons(DataFiles(folder).feedback(split))} for split in SPLITS]
    assert sum({"q0", "q0 ", "q59"} <= side for side in sides) == 1


def test_an_empty_normal_form_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(DataError, match=r"prompts.jsonl: has no rows"):
        read_prompts(tmp_path / "prompts.jsonl")


def test_the_hub_reader_takes_a_local_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "source" / "helpful"
    source.mkdir(parents=True)
    _write_hh(source, name="train.jsonl")
    folder = tmp_path / "run"
    counts = _prepare({"source": "hub", "root": str(tmp_path / "source"), "files": ["helpful"]}, folder)
    assert counts["comparisons.train"] == 48
    assert read_comparisons(DataFiles(folder).feedback("train"))[0].completions[1] == " No."


def test_a_hub_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: cannot be loaded"):
        _prepare({"source": "hub", "root": str(tmp_path / "nowhere")}, tmp_path / "run")
