"""Every published format is read as it is documented, or refused in a sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lodestar.data.columns import Reading
from lodestar.data.feedback import Found, read_demonstration_file, read_feedback_file, read_file
from lodestar.data.files import BadRows
from lodestar.data.formats import FORMATS, nearest, recognise
from lodestar.data.hh import Dialogues
from lodestar.data.survey import check
from lodestar.errors import DataError
from lodestar.preference.pairs import comparisons
from lodestar.records import Feedback, Ratings

ASKED = "\n\nHuman: q\n\nAssistant:"
Q = [{"role": "user", "content": "q"}]
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def _read(folder: Path, *rows: dict[str, Any], name: str = "a.jsonl", **options: Any) -> tuple[Found, BadRows]:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bad = BadRows(strict=False)
    return read_file(path, Dialogues(), bad, Reading(**options)), bad


PAIRS: dict[str, list[dict[str, Any]]] = {
    "HelpSteer2 preferences": [
        {"prompt": "q", "response_1": "bad", "response_2": "good", "preference_strength": 2},
    ],
    "HelpSteer3 preferences": [
        {
            "domain": "g",
            "language": "en",
            "context": Q,
            "response1": "good",
            "response2": "bad",
            "overall_preference": -3,
        }
    ],
    "HelpSteer": [
        {"prompt": "q", "response": text, "helpfulness": mark, "correctness": mark, "coherence": mark}
        | {"complexity": 4 - mark, "verbosity": 4 - mark}
        for text, mark in (("good", 4), ("bad", 0))
    ],
    "UltraFeedback": [
        {
            "instruction": "q",
            "models": [],
            "completions": [
                {"response": text, "overall_score": mark, "annotations": {"honesty": {"Rating": str(6 - mark)}}}
                for text, mark in (("good", 5), ("bad", 1))
            ],
        }
    ],
    "Nectar": [
        {
            "prompt": ASKED + " ",
            "answers": [{"answer": "bad", "rank": 2.0}, {"answer": "good", "rank": 1.0}],
        }
    ],
    "Stack Exchange preferences": [
        {"qid": 1, "question": "q", "answers": [{"text": "bad", "pm_score": 0}, {"text": "good", "pm_score": 3}]}
    ],
    "SHP": [{"history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_ratio": 2.5}],
    "PKU-SafeRLHF": [
        {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1, "is_response_0_safe": False}
    ],
    "WebGPT comparisons": [
        {"question": {"full_text": "q"}, "answer_0": "good", "answer_1": "bad", "score_0": 0.5, "score_1": -0.5}
    ],
    "Arena votes": [
        {"model_a": "a", "model_b": "b", "winner": "model_b", "conversation_a": [*Q, BAD], "conversation_b": [*Q, GOOD]}
    ],
    "Arena votes (55k)": [
        {
            "model_a": "a",
            "model_b": "b",
            "prompt": '["q"]',
            "response_a": '["good"]',
            "response_b": '["bad"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        }
    ],
    "AlpacaFarm": [{"instruction": "q", "input": "", "output_1": "bad", "output_2": "good", "preference": 2}],
    "Argilla's rated pairs": [
        {"input": "q", "chosen": "good", "rejected": "bad", "rating": [9, 3], "status": "unchanged"}
    ],
    "Label Studio's pairs (JSON-MIN)": [
        {"prompt": "q", "answer1": "bad", "answer2": "good", "comparison": {"selected": "right"}, "annotator": 3}
    ],
    "Label Studio's pairs (JSON)": [
        {
            "id": 7,
            "data": {"prompt": "q", "answer1": "good", "answer2": "bad"},
            "annotations": [
                {"completed_by": 1, "result": [{"type": "pairwise", "value": {"selected": "left"}}]},
            ],
        }
    ],
    "Prodigy's choices": [
        {
            "text": "q",
            "options": [{"id": 1, "text": "good"}, {"id": 2, "text": "bad"}],
            "accept": [1],
            "answer": "accept",
        }
    ],
    "OpenAI preferences": [
        {"input": {"messages": Q}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
    "ShareGPT": [
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        }
    ],
    "Orca pairs": [{"question": "q", "chosen": "good", "rejected": "bad"}],
    "Alpaca pairs": [{"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}],
    "pairs with scores": [
        {"chosen": [*Q, GOOD], "rejected": [*Q, BAD], "chosen_score": 4.0, "rejected_score": 2.0},
    ],
    "PRISM conversations": [
        {
            "conversation_id": "c",
            "user_id": "u",
            "conversation_history": [
                {"turn": 0, "role": "user", "content": "q"},
                {"turn": 0, "role": "model", "content": "good", "score": 90, "if_chosen": True},
                {"turn": 0, "role": "model", "content": "bad", "score": 10, "if_chosen": False},
            ],
        }
    ],
    "PRISM utterances": [
        {"conversation_id": "c", "turn": 0, "user_prompt": "q", "model_response": text, "score": mark}
        for text, mark in (("bad", 5), ("good", 70))
    ],
    "OASST messages": [
        {"message_id": "p", "parent_id": None, "text": "q", "role": "prompter", "rank": None},
        {"message_id": "a", "parent_id": "p", "text": "bad", "role": "assistant", "rank": 1},
        {"message_id": "b", "parent_id": "p", "text": "good", "role": "assistant", "rank": 0},
    ],
}
"""Rows in which good beats bad as an answer to q."""


@pytest.mark.parametrize("name", PAIRS)
def test_a_format_says_which_answer_won(tmp_path: Path, name: str) -> None:
    found, bad = _read(tmp_path, *PAIRS[name])
    assert bad.errors == []
    assert found.format.name == name
    assert [row.record.prompt for row in found.feedback] == [ASKED]
    (one,) = comparisons(row.record for row in found.feedback)
    winner = one.completions[0] if one.label == 1 else one.completions[1]
    assert one.label in (0, 1)
    assert winner == " good"


def test_summaries_are_compared_after_their_post(tmp_path: Path) -> None:
    info = {"id": "t", "post": "long", "title": "T", "subreddit": "s"}
    row = {"info": info, "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1, "worker": "w"}
    found, _ = _read(tmp_path, row)
    (record,) = (one.record for one in found.feedback)
    assert record.prompt == "\n\nHuman: SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: long\n\nTL;DR:\n\nAssistant:"
    assert (comparisons([record])[0].label, record.annotator) == (0.0, "w")


def test_strengths_ties_and_flags_are_kept(tmp_path: Path) -> None:
    def record(row: dict[str, Any], name: str) -> Feedback:
        return _read(tmp_path, row, name=name)[0].feedback[0].record

    def vote(winner: str) -> Feedback:
        return record(PAIRS["Arena votes"][0] | {"winner": winner}, "arena.jsonl")

    assert comparisons([record(PAIRS["HelpSteer3 preferences"][0], "h.jsonl")])[0].strength == 3
    assert comparisons([vote("tie")])[0].label == 0.5
    assert vote("tie (bothbad)").flags == ("both bad",)
    assert record(PAIRS["PKU-SafeRLHF"][0], "p.jsonl").flags == ("completion 0 unsafe",)
    tied = PAIRS["Argilla's rated pairs"][0] | {"status": "tie"}
    assert comparisons([record(tied, "argilla.jsonl")])[0].label == 0.5


def test_verbosity_does_not_say_which_answer_is_better(tmp_path: Path) -> None:
    found, _ = _read(tmp_path, *PAIRS["HelpSteer"])
    verdict = found.feedback[0].record.verdict
    assert isinstance(verdict, Ratings)
    assert verdict.aspects["verbosity"] == (0.0, 4.0)
    assert [verdict.overall(i) for i in (0, 1)] == [1.0, 0.0]


SHOWN: dict[str, dict[str, Any]] = {
    "Alpaca demonstrations": {"instruction": "q", "input": "", "output": "good"},
    "ShareGPT": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
    "LIMA": {"conversations": ["q", "good"]},
    "Dolly": {"instruction": "q", "context": "", "response": "good"},
    "OpenAI conversations with weights": {"messages": [*Q, GOOD | {"weight": 1}]},
    "doccano's sequence to sequence": {"id": 1, "text": "q", "label": ["good"]},
    "Lodestar's own rows": {"messages": [*Q, GOOD]},
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_format_of_demonstrations_shows_a_reply(tmp_path: Path, name: str) -> None:
    found, bad = _read(tmp_path, SHOWN[name])
    assert (found.format.name, bad.errors) == (name, [])
    assert [(row.record.prompt, row.record.completion) for row in found.demonstrations] == [(ASKED, " good")]


def test_likes_without_a_rival_are_feedback_and_only_what_was_liked_is_shown(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "completion": text, "label": label} for text, label in (("good", True), ("bad", False))]
    for name, converted in (
        ("trl.jsonl", rows),
        ("ints.jsonl", [row | {"label": int(row["label"])} for row in rows]),
        ("tails.jsonl", [{"prompt": "q", "response": r["completion"], "is_safe": r["label"]} for r in rows]),
        ("alpaca.jsonl", [{"instruction": "q", "output": r["completion"], "kto_tag": r["label"]} for r in rows]),
    ):
        found, _ = _read(tmp_path, *converted, name=name)
        approvals = [row.record.verdict for row in found.feedback]
        assert [v.aspects["approval"] for v in approvals if isinstance(v, Ratings)] == [(1.0,), (0.0,)]
        bad = BadRows(strict=False)
        shown = read_demonstration_file(tmp_path / name, Dialogues(), bad)
        assert [row.record.completion for row in shown] == [" good"]
        assert "1 of 2 rows hold no reply that was liked best" in bad.notes[0]


def test_verls_rows_are_prompts_with_the_answer_as_a_column(tmp_path: Path) -> None:
    row = {"data_source": "gsm8k", "prompt": Q, "reward_model": {"style": "rule", "ground_truth": "42"}}
    found, _ = _read(tmp_path, row)
    (prompt,) = found.prompts
    assert prompt.record == ASKED
    assert prompt.columns["answer"] == "42"
    assert prompt.columns["data_source"] == "gsm8k"


def test_system_prompt_and_history_are_part_of_the_conversation(tmp_path: Path) -> None:
    row = {"prompt": "q", "system": "sys", "history": [["old", "answer"]], "chosen": "good", "rejected": "bad"}
    found, _ = _read(tmp_path, row)
    (one,) = found.feedback
    assert [(m.role, m.content) for m in one.messages] == [
        ("system", "sys"),
        ("user", "old"),
        ("assistant", "answer"),
        ("user", "q"),
    ]


def test_every_answer_of_a_dialogue_is_learned_when_asked(tmp_path: Path) -> None:
    row = {"messages": [*Q, GOOD, {"role": "user", "content": "more"}, BAD]}
    last, _ = _read(tmp_path, row)
    every, _ = _read(tmp_path, row, all_turns=True)
    assert [one.record.completion for one in last.demonstrations] == [" bad"]
    assert [one.record.completion for one in every.demonstrations] == [" good", " bad"]
    assert every.demonstrations[0].record.prompt == ASKED


def test_a_developers_message_is_the_systems_and_parts_are_text(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "brief"},
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            GOOD,
        ]
    }
    (one,) = _read(tmp_path, row)[0].demonstrations
    assert [(m.role, m.content) for m in one.messages] == [("system", "brief"), ("user", "q")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "completions": ["a"], "labels": [True]}, "is TRL's stepwise supervision"),
        ({"text": "words"}, "is plain text to model the language on"),
        ({"fields": {}, "responses": {}}, "is an Argilla record"),
        ({"text": "x", "answer": "accept", "_input_hash": 1, "_task_hash": 2}, "is a Prodigy task without options"),
        ({"domain": "g", "language": "en", "context": Q, "response": "r"}, "HelpSteer3's feedback or edits"),
        ({"questoin": "q", "chosenn": "a", "rejectedd": "b"}, "the nearest known formats are Orca pairs"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
            "is below score_reje",
        ),
        ({"messages": [*Q, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "calls of tools are not"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, GOOD]}, "only text can be read"),
        ({"prompt": "q", "completion": "a", "label": "fine"}, "label must be true or false, or 1 or 0, got 'fine'"),
        ({"prompt": "half \ud800", "completion": "a"}, "half of a surrogate pair at character 5"),
        ({"prompt": "q", "completion": "a \ufdd0"}, "holds U\\+FDD0, which is no character"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, row)


def test_columns_can_be_named_and_left_out(tmp_path: Path) -> None:
    row = {"ask": "q", "best": "good", "worst": "bad", "noise": 1}
    columns = {"prompt": "ask", "chosen": "best", "rejected": "worst"}
    found, bad = _read(tmp_path, row, columns=columns)
    assert found.feedback[0].record.completions == ("good", "bad")
    assert bad.unused.of(tmp_path / "a.jsonl") == {"noise": 1}
    with pytest.raises(DataError, match=r"columns that nothing reads: noise; name those to leave out in data\.ignore"):
        _read(tmp_path, row, columns=columns, strict=True)
    assert _read(tmp_path, row, columns=columns, ignore=frozenset({"noise"}), strict=True)[0].rows == 1
    with pytest.raises(DataError, match=r"lacks the column asks of data\.columns; it has ask, best, noise, worst"):
        _read(tmp_path, row, columns={"prompt": "asks"})


def test_strings_are_a_users_words_when_asked(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert _read(tmp_path, row)[0].feedback[0].record.prompt == "q"
    assert _read(tmp_path, row, strings="messages")[0].feedback[0].record.prompt == ASKED


def test_a_demonstration_file_given_as_feedback_is_told(tmp_path: Path) -> None:
    _read(tmp_path, SHOWN["Dolly"])
    with pytest.raises(DataError, match=r"holds demonstrations \(Dolly\) and no feedback: name it in data\.demonstr"):
        read_feedback_file(tmp_path / "a.jsonl", Dialogues(), BadRows(strict=False))


def test_formats_have_names_and_addresses_of_their_own() -> None:
    assert len({known.name for known in FORMATS}) == len(FORMATS)
    assert all(known.address.startswith("https://") for known in FORMATS)
    assert nearest(["nothing", "alike"]) == []
    assert recognise({"prompt": "x"}).name == "Lodestar's own rows"


CASES = Path(__file__).parents[3].parent / "shared" / "cases" / "files"
REFUSED = {"score_reversed.jsonl": "score_chosen 2 is below score_rejected 9"}


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here")
def test_every_case_is_read_whole_or_refused_in_a_sentence() -> None:
    for path in sorted(CASES.iterdir()):
        if path.name in REFUSED:
            with pytest.raises(DataError, match=REFUSED[path.name]):
                check(path)
        else:
            found = check(path)
            assert found.rows >= 20, path.name
            assert not found.bad_rows, (path.name, found.bad_rows[:1])
