"""The data stage, from every kind of source to the normal form, and what it says about bad input."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import LlamaConfig

from lodestar.config import RunConfig
from lodestar.data.files import DataFiles, read_comparisons, read_demonstrations, read_prompts, read_text
from lodestar.data.prepare import prepare
from lodestar.data.world import parse
from lodestar.errors import DataError
from lodestar.layout import RunFolder
from lodestar.model.loading import load_tokenizer
from tests.unit.data.templates import CHATML, REFUSES, byte_tokenizer

SYNTHETIC = {"kind": "synthetic", "demonstration_rows": 300, "comparison_rows": 300, "prompt_rows": 100}


def _config(data: dict[str, Any], **sections: Any) -> RunConfig:
    own = {"tokenizer": {"kind": "word" if data["kind"] == "synthetic" else "bpe", "vocab_size": 400}}
    judge = "gold" if data["kind"] == "synthetic" else "reward"
    evaluation = {"prompts": 50, "judge": judge}
    return RunConfig.model_validate({"name": "t", "data": data, "model": own, "evaluation": evaluation} | sections)


def _dialogue(i: int, reply: str) -> str:
    return f"\n\nHuman: What is {i} and {i}?\n\nAssistant: {reply}"


def _write_hh(folder: Path, rows: int = 60, name: str = "a.jsonl.gz") -> Path:
    lines = [{"chosen": _dialogue(i, f"It is {2 * i}."), "rejected": _dialogue(i, "No.")} for i in range(rows)]
    path = folder / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def _families(folder: RunFolder) -> dict[str, set[str]]:
    files = DataFiles.of(folder)
    return {split: {row.prompt for row in read_comparisons(files.comparisons(split))} for split in SPLITS}


SPLITS = ("train", "held_out", "evaluation")


def test_the_synthetic_world_fills_every_file(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), _config(SYNTHETIC, pretrain={})
    counts = prepare(config, folder)
    files = DataFiles.of(folder)
    assert counts == json.loads(files.counts.read_text())
    assert counts["prompts.ppo"] == len(read_prompts(files.ppo_prompts)) == 100
    assert counts["prompts.evaluation"] == len(read_prompts(files.evaluation_prompts)) == 50
    assert counts["bad_rows"] == counts["long_rows"] == 0
    assert len(read_demonstrations(files.demonstrations("train"))) == counts["demonstrations.train"]
    assert len(read_text(files.text("train"))) == counts["text.train"]
    assert "<unk>" not in load_tokenizer(folder.tokenizer).decode(
        load_tokenizer(folder.tokenizer)(read_prompts(files.ppo_prompts)[0].text)["input_ids"]
    )
    for prompt in read_prompts(files.ppo_prompts):
        parse(prompt.text)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        prepare(_config(SYNTHETIC, seed=seed), RunFolder(tmp_path / name))
        return {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.json*")}

    assert written("a", 1) == written("b", 1)
    assert written("c", 2)["data/prompts.ppo.jsonl"] != written("a", 1)["data/prompts.ppo.jsonl"]


def test_evaluation_prompts_are_seen_by_no_stage(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    prepare(_config(SYNTHETIC), folder)
    files, families = DataFiles.of(folder), _families(folder)
    evaluation = {prompt.text for prompt in read_prompts(files.evaluation_prompts)}
    ppo = {prompt.text for prompt in read_prompts(files.ppo_prompts)}
    shown = {row.prompt for split in SPLITS[:2] for row in read_demonstrations(files.demonstrations(split))}
    assert not evaluation & (ppo | shown | families["train"] | families["held_out"])
    assert not ppo & families["train"]
    assert not families["train"] & families["held_out"]


def test_shuffled_labels_keep_the_pairs(tmp_path: Path) -> None:
    for name, shuffle in (("plain", False), ("shuffled", True)):
        prepare(_config(SYNTHETIC | {"shuffle_labels": shuffle}), RunFolder(tmp_path / name))
    plain, shuffled = (
        read_comparisons(DataFiles.of(RunFolder(tmp_path / name)).comparisons("train"))
        for name in ("plain", "shuffled")
    )
    assert [row.completions for row in plain] == [row.completions for row in shuffled]
    agree = sum(a.label == b.label for a, b in zip(plain, shuffled, strict=True)) / len(plain)
    assert agree < 0.6


def test_hh_dialogues_become_prompts_and_completions(tmp_path: Path) -> None:
    _write_hh(tmp_path)
    folder = RunFolder(tmp_path / "run")
    counts = prepare(_config({"kind": "hh", "root": str(tmp_path)}), folder)
    rows = read_comparisons(DataFiles.of(folder).comparisons("train"))
    assert rows[0].prompt.startswith("\n\nHuman: What is ")
    assert rows[0].prompt.endswith("\n\nAssistant:")
    assert rows[0].completions[1] == " No."
    assert rows[0].id.startswith("a:")
    assert counts["comparisons.train"] == 48
    shown = read_demonstrations(DataFiles.of(folder).demonstrations("train"))
    assert {row.completion for row in shown} == {row.completions[0] for row in rows}


def test_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    path = _write_hh(tmp_path, name="a.jsonl")
    with path.open("a") as file:
        file.write('{"chosen": "half\n[1]\n{"prompt": "x"}\n')
    folder = RunFolder(tmp_path / "run")
    counts = prepare(_config({"kind": "hh", "root": str(tmp_path)}), folder)
    assert counts["bad_rows"] == 3
    named = DataFiles.of(folder).bad_rows.read_text().splitlines()
    assert named[0].startswith(f"{path}:61: is not JSON: ")
    assert named[1] == f"{path}:62: must be an object {{…}}, is list"
    assert named[2] == (f"{path}:63: is a row with prompt, the file began with chosen and rejected: split it by schema")


def test_strict_refuses_the_first_bad_row(tmp_path: Path) -> None:
    path = _write_hh(tmp_path, name="a.jsonl")
    with path.open("a") as file:
        file.write("{}\n")
    config = _config({"kind": "hh", "root": str(tmp_path), "strict": True})
    with pytest.raises(DataError, match=f"{path}:61: needs chosen and rejected"):
        prepare(config, RunFolder(tmp_path / "run"))


def test_rows_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [{"prompt": f"q{i}", "chosen": "word " * (200 if i % 3 == 0 else 3), "rejected": "no"} for i in range(90)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = prepare(_config({"kind": "jsonl", "root": str(tmp_path), "max_tokens": 40}), RunFolder(tmp_path / "run"))
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
    folder = RunFolder(tmp_path / "run")
    data = {
        "kind": "jsonl",
        "root": str(tmp_path),
        "files": ["pairs/p.jsonl"],
        "demonstrations": "shown.jsonl",
        "text": "book.txt",
    }
    counts = prepare(_config(data, pretrain={}), folder)
    files = DataFiles.of(folder)
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
        prepare(_config({"kind": "jsonl", "root": str(root)}), RunFolder(tmp_path / "run"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/b.jsonl: no such file"):
        prepare(_config({"kind": "jsonl", "root": str(tmp_path), "files": ["b.jsonl"]}), RunFolder(tmp_path / "run"))


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
    sections = {"model": {"path": model}, "ppo": {"max_tokens": 8}}
    data = {"kind": "jsonl", "root": str(source), "max_prompt_tokens": 100}
    folder = RunFolder(tmp_path / "run")
    counts = prepare(_config(data, **sections), folder)
    assert counts["bad_rows"] == 2
    named = DataFiles.of(folder).bad_rows.read_text()
    assert f"{source}/a.jsonl:61: the chat template refuses it: roles must take turns" in named
    assert f"{source}/a.jsonl: nothing reads the columns topic" in DataFiles.of(folder).notes.read_text()
    mended = prepare(_config(data | {"merge_turns": True, "fold_system": True}, **sections), RunFolder(tmp_path / "b"))
    assert (mended["bad_rows"], mended["merged_turns"] > 0, mended["folded_systems"] > 0) == (0, True, True)
    ok = source / "ok"
    ok.mkdir()
    (ok / "a.jsonl").write_text("".join(json.dumps(_asked(i)) + "\n" for i in range(60)))
    with pytest.raises(DataError, match=r"columns that nothing reads: topic"):
        prepare(_config(data | {"strict": True, "root": str(ok)}, **sections), RunFolder(tmp_path / "c"))


def test_a_chosen_template_and_a_pinned_date_are_saved_with_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("".join(json.dumps(_asked(i)) + "\n" for i in range(60)))
    data = {"kind": "jsonl", "root": str(tmp_path / "rows"), "max_prompt_tokens": 100, "date": "2020-02-03"}
    for name, template in (("none", None), ("dated", "{{ strftime_now('%d %b %Y') }} " + CHATML)):
        model, folder = _model(tmp_path / name, template), RunFolder(tmp_path / f"run-{name}")
        prepare(_config(data, model={"path": model}, ppo={"max_tokens": 8}), folder)
        saved = load_tokenizer(folder.tokenizer)
        prompt = read_prompts(DataFiles.of(folder).ppo_prompts)[0]
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        assert saved.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == prompt.text
        assert prompt.text.startswith("\n\nHuman: What" if name == "none" else "03 Feb 2020 <|im_start|>user")


RULE = {"sources": [{"name": "brief", "kind": "rule", "rule": "length", "words": 5}]}


def test_prompts_alone_are_enough_for_rewards_by_rule(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(60)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "jsonl", "root": str(tmp_path), "prompts": "p.jsonl", "columns": {"prompt": "question"}}
    model = {"path": _model(tmp_path / "model", CHATML)}
    ppo = {"critic": {"init": "policy"}, "score": {"offset": "none"}, "max_tokens": 8}
    folder = RunFolder(tmp_path / "run")
    sections = {"model": model, "ppo": ppo, "reward": RULE}
    prepare(_config(data | {"strings": "messages"}, sft=None, **sections), folder)
    prompts = read_prompts(DataFiles.of(folder).ppo_prompts)
    assert all(
        prompt.text == f"<|im_start|>user\nWhat is {prompt.columns['answer']}?<|im_end|>\n<|im_start|>assistant\n"
        for prompt in prompts
    )
    with pytest.raises(DataError, match=r"holds no reply to imitate: name data\.demonstrations, or set sft: null"):
        prepare(_config(data, **sections), folder)
    with pytest.raises(DataError, match=r"holds no demonstrations for ppo\.score\.offset: set it to samples"):
        prepare(_config(data, sft=None, model=model, reward=RULE, ppo=ppo | {"score": {}}), folder)
    with pytest.raises(DataError, match="holds no feedback, and the run trains a reward model"):
        prepare(_config(data, sft=None, model=model, ppo=ppo), folder)


def test_families_that_share_a_prompt_are_joined_and_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "family": f"f{i}"} for i in range(60)]
    rows.append({"prompt": "q0 ", "chosen": "a", "rejected": "c", "family": "f59"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = RunFolder(tmp_path / "run")
    counts = prepare(_config({"kind": "jsonl", "root": str(tmp_path)}), folder)
    assert counts["joined_families"] == 1
    assert "the families 'f0' and 'f59' share a prompt and count as one" in DataFiles.of(folder).notes.read_text()
    sides = [{row.prompt for row in read_comparisons(DataFiles.of(folder).comparisons(split))} for split in SPLITS]
    assert sum({"q0", "q0 ", "q59"} <= side for side in sides) == 1


def test_ppo_ptx_gets_its_text_without_a_pretraining_stage(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    prepare(_config(SYNTHETIC, ppo={"ptx": {"coefficient": 1.0}}), folder)
    assert read_text(DataFiles.of(folder).text("train"))


def test_an_empty_normal_form_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(DataError, match=r"prompts.jsonl: has no rows"):
        read_prompts(tmp_path / "prompts.jsonl")


def test_the_hub_reader_takes_a_local_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "source" / "helpful"
    source.mkdir(parents=True)
    _write_hh(source, name="train.jsonl")
    folder = RunFolder(tmp_path / "run")
    counts = prepare(_config({"kind": "hub", "root": str(tmp_path / "source"), "files": ["helpful"]}), folder)
    assert counts["comparisons.train"] == 48
    assert read_comparisons(DataFiles.of(folder).comparisons("train"))[0].completions[1] == " No."


def test_a_hub_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: cannot be loaded"):
        prepare(_config({"kind": "hub", "root": str(tmp_path / "nowhere")}), RunFolder(tmp_path / "run"))
