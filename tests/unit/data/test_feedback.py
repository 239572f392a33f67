"""Published data sets and own files become feedback, and every bad row is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lodestar.data.feedback import read_feedback_file
from lodestar.data.files import BadRows
from lodestar.data.hh import Dialogues
from lodestar.data.survey import check
from lodestar.errors import DataError
from lodestar.preference.pairs import choices
from lodestar.records import Choice, Feedback, Ranking, Ratings

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def _read(path: Path, *, strict: bool = True) -> tuple[list[Feedback], list[str]]:
    bad = BadRows(strict=strict)
    rows = read_feedback_file(path, Dialogues(), bad)
    return [row.record for row in rows], [str(error).removeprefix(str(path)) for error in bad.errors]


def _write(folder: Path, rows: list[Any], name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _array(folder: Path, rows: list[Any]) -> Path:
    path = folder / "a.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump(rows, file, indent=1)
    return path


def _message(role: str, text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"message_id": text, "role": role, "text": text, "replies": list(replies), **more}


def _tree(*ranks: int | None) -> dict[str, Any]:
    replies = [_message("assistant", f"reply {i}", rank=rank) for i, rank in enumerate(ranks)]
    return {"message_tree_id": "t", "prompt": _message("prompter", "why?", *replies)}


def test_a_tree_gives_a_ranking_wherever_replies_compete(tmp_path: Path) -> None:
    later = _message("prompter", "and?", *(_message("assistant", f"deep {i}", rank=1 - i) for i in range(2)))
    tree = _tree(2, 0, 1)
    tree["prompt"]["replies"][0]["replies"].append(later)
    tree["prompt"]["replies"].append(_message("assistant", "gone", deleted=True))
    first, second = _read(_write(tmp_path, [tree]))[0]
    assert first.prompt == "\n\nHuman: why?\n\nAssistant:"
    assert first.completions == (" reply 0", " reply 1", " reply 2")
    assert first.verdict == Ranking(((1,), (2,), (0,)))
    assert second.prompt == "\n\nHuman: why?\n\nAssistant: reply 0\n\nHuman: and?\n\nAssistant:"
    assert second.verdict == Ranking(((1,), (0,)))


def test_a_dialogue_and_its_continuation_are_one_family(tmp_path: Path) -> None:
    tree = _tree(0, 1)
    tree["prompt"]["replies"][0]["replies"].append(
        _message("prompter", "and?", *(_message("assistant", f"deep {i}", rank=i) for i in range(2)))
    )
    rows = read_feedback_file(_write(tmp_path, [tree]), Dialogues(), BadRows(strict=True))
    assert {row.family for row in rows} == {"why?"}


@pytest.mark.parametrize(
    ("ranks", "message"),
    [((0, None, 1), "message why?: rank is missing for reply 1 of 3"), ((0, 1, 1), "rank is repeated: [0, 1, 1]")],
)
def test_a_group_with_broken_ranks_is_left_out_and_named(tmp_path: Path, ranks: Any, message: str) -> None:
    found, bad = _read(_write(tmp_path, [_tree(0, 1), _tree(*ranks)]), strict=False)
    assert len(found) == 1
    assert len(bad) == 1
    assert bad[0].startswith(":2: ")
    assert message in bad[0]


def _predictions(preference: list[int]) -> dict[str, Any]:
    return {"question": "q", "preference": preference} | {f"prediction {i}": f"p{i}" for i in range(1, 5)}


def test_six_preferences_between_four_predictions_are_choices_with_ties(tmp_path: Path) -> None:
    (record,) = _read(_array(tmp_path, [_predictions([0, 1, 2, 1, 0, 2])]))[0]
    assert [(c.first, c.second, c.label) for c in choices(record)] == [
        (0, 1, 0.5),
        (0, 2, 1.0),
        (0, 3, 0.0),
        (1, 2, 1.0),
        (1, 3, 0.5),
        (2, 3, 0.0),
    ]


def test_rows_of_a_json_array_are_named_by_their_line(tmp_path: Path) -> None:
    rows = [_predictions([0] * 6), _predictions([0] * 5), _predictions([7] * 6)]
    bad = _read(_array(tmp_path, rows), strict=False)[1]
    assert bad[0].startswith(":17: preference must have 6 values")
    assert "preference[0] must be 0 (tie), 1 or 2, got 7" in bad[1]


def test_every_annotator_of_a_pair_speaks_for_himself(tmp_path: Path) -> None:
    row = {"instruction": "do", "input": "this", "response1": "a", "response2": "b", "cmp_key": "x_y"}
    votes = {"annotator1": 1, "annotator2": 0, "annotator3": 2}
    records = _read(_array(tmp_path, [row | votes]))[0]
    assert [(r.annotator, r.verdict) for r in records] == [
        ("annotator1", (Choice(0, 1, 1.0),)),
        ("annotator2", (Choice(0, 1, 0.5),)),
        ("annotator3", (Choice(0, 1, 0.0),)),
    ]
    assert records[0].prompt == "\n\nHuman: do\n\nthis\n\nAssistant:"
    assert records[0].subset == "x_y"


def test_a_five_step_scale_becomes_label_and_strength(tmp_path: Path) -> None:
    header = (
        "prompt,completion_a,completion_b,completion_a_is_acceptable,completion_b_is_acceptable,preference,evaluator\n"
    )
    lines = 'p,"a\nb",c,yes,no,b-is-slightly-better,yo\np,x,y,yes,yes,tie,yi\np,x,y,yes,yes,maybe,yi\n'
    path = tmp_path / "a.csv"
    path.write_text(header + lines)
    (first, second), bad = _read(path, strict=False)
    assert first.verdict == (Choice(0, 1, 0.0, 1.0),)
    assert (first.completions[0], first.annotator, first.flags) == (" a\nb", "yo", ("completion 1 unacceptable",))
    assert second.verdict == (Choice(0, 1, 0.5, 0.0),)
    assert bad == [
        ":5: preference must be one of a-is-better, a-is-slightly-better, tie, b-is-slightly-better, b-is-better, "
        "got 'maybe'"
    ]


def test_rated_outputs_of_one_source_come_together(tmp_path: Path) -> None:
    rows = [
        {"source": s, "system_output": o, "scores": {"naturalness": n, "overall": 2.0}}
        for s, o, n in (("x", "a", 1.5), ("y", "b", 3.0), ("x", "c", 6.0))
    ]
    first, second = _read(_array(tmp_path, rows))[0]
    assert first.completions == (" a", " c")
    assert first.verdict == Ratings(
        {"naturalness": (1.5, 6.0), "overall": (2.0, 2.0)}, {"naturalness": (1.0, 6.0), "overall": (1.0, 6.0)}
    )
    assert len(second.completions) == 1


def test_a_bad_rating_spoils_no_other_of_its_group(tmp_path: Path) -> None:
    rows = [{"source": "x", "system_output": str(n), "scores": {"naturalness": n}} for n in (1.0, 9.0, float("nan"), 2)]
    (record,), bad = _read(_write(tmp_path, rows), strict=False)
    assert record.completions == (" 1.0", " 2")
    assert bad == [
        ":2: ratings.naturalness[0] must be between 1 and 6, got 9",
        ":3: ratings.naturalness[0] must be a number, got nan",
    ]


def test_unknown_aspects_are_refused_by_name(tmp_path: Path) -> None:
    rows = [{"source": "x", "system_output": "a", "scores": {"naturalnes": 1.0}}]
    with pytest.raises(DataError, match=r"a\.jsonl:1: ratings\.naturalnes: unknown aspect"):
        _read(_write(tmp_path, rows))


def test_summaries_of_one_document_are_rated_together(tmp_path: Path) -> None:
    scores = {"coherence": 1.5, "fluency": 5.0}
    row = {"doc_id": "d", "src": "text", "sys_summs": {m: {"sys_summ": m, "scores": scores} for m in ("M1", "M2")}}
    (record,) = _read(_write(tmp_path, [row]))[0]
    assert (record.id, record.completions) == ("d", (" M1", " M2"))
    assert isinstance(record.verdict, Ratings)
    assert record.verdict.aspects["coherence"] == (1.5, 1.5)


def _judged(instruction: str, response: str) -> str:
    return (
        f"###Task\n\n###The instruction to evaluate:\n{instruction}\n\n###Response to evaluate:\n{response}\n\n"
        "###Score Rubrics:\n[…]"
    )


def test_the_judges_prompt_is_taken_off_a_pair(tmp_path: Path) -> None:
    row = {"source": "honest", "chosen_instruction": _judged("q", "yes"), "rejected_instruction": _judged("q", "no")}
    other = row | {"rejected_instruction": _judged("another", "no")}
    bare = row | {"chosen_instruction": "q"}
    (record,), bad = _read(_write(tmp_path, [row, other, bare]), strict=False)
    assert (record.prompt, record.completions) == ("\n\nHuman: q\n\nAssistant:", (" yes", " no"))
    assert record.subset == "honest"
    assert bad[0] == ":2: the instruction differs between chosen_instruction and rejected_instruction"
    assert bad[1].startswith(":3: chosen_instruction lacks ###The instruction to evaluate")


def test_generations_of_one_context_come_together_with_their_rewards(tmp_path: Path) -> None:
    context = json.dumps([{"role": "user", "text": "tea"}, {"role": "api", "response": {"ok": 1}}])
    rows = [
        {"context": context, "generation": json.dumps({"role": "agent", "text": t}), "reward": r}
        for t, r in (("now", 1.0), ("no", 0.0), ("eh", 0.5))
    ]
    (record,), bad = _read(_write(tmp_path, [*rows, rows[0] | {"generation": "{"}]), strict=False)
    assert record.prompt == 'user: tea\napi: {"ok": 1}\nagent:'
    assert record.completions == (" now", " no")
    assert record.verdict == Ratings({"approval": (1.0, 0.0)}, {"approval": (0.0, 1.0)})
    assert bad[0] == ":3: reward must be 0 or 1, got 0.5"
    assert bad[1].startswith(":4: generation is not JSON")


def test_mixed_schemas_in_a_file_are_refused_by_line(tmp_path: Path) -> None:
    pair = {"prompt": "x", "completions": ["a", "b"], "label": 1}
    ranked = {"prompt": "x", "completions": ["a", "b"], "ranking": [0, 1]}
    found, bad = _read(_write(tmp_path, [pair, ranked, _tree(0, 1)]), strict=False)
    assert len(found) == 1
    assert bad == [
        ":2: is a row with ranking, the file began with label: split it by schema",
        ":3: is a row of OASST trees, the file began with Lodestar's own rows: split it by schema",
    ]


def test_strict_refuses_the_file_at_its_first_bad_row(tmp_path: Path) -> None:
    path = _write(tmp_path, [_tree(0, 1), _tree(0, None), _tree(1, 1)])
    with pytest.raises(DataError, match=r"a\.jsonl:2: message why\?: rank is missing"):
        _read(path)


def test_broken_arrays_say_where(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"a": 1},\n{"a": }\n]')
    with pytest.raises(DataError, match=r"a\.json:3: is not JSON"):
        _read(path, strict=False)


REAL = {
    "hh-rlhf/harmless-base.test.jsonl.gz": (1900, 2, "choices"),
    "oasst-trees/en_100_tree.jsonl.gz": (175, 9, "ranking"),
    "fine-grained-rlhf/dev_feedback.json.gz": (400, 4, "choices"),
    "pandalm/testset-v1.json.gz": (2000, 2, "choices"),
    "human-eval-tulu/eval_annotations_tulu_1.csv.gz": (850, 2, "choices"),
    "likert-topical-chat/topical_chat.json.gz": (48, 6, "ratings"),
    "likert-data2text/sfhot.json.gz": (250, 5, "ratings"),
    "summeval/data.jsonl.gz": (80, 16, "ratings"),
    "hhh-alignment/hhh_alignment_eval.json.gz": (187, 2, "choices"),
    "taskmaster-reward/TM-3-2020.reward_00.json.gz": (450, 3, "ratings, liked or not"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_nearly_whole(name: str) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    rows, most, kind = REAL[name]
    found = check(path)
    assert found.rows >= rows
    assert max(found.completions) >= most
    assert set(found.kinds) == set(kind.split(", "))
    assert len(found.bad_rows) <= 0.1 * found.rows
